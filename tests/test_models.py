"""The words: what they hold, what they refuse, what their repr keeps to itself."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import attrs
import pytest

from dooers.exceptions import InvalidValueError
from dooers.models import (
    ContentPart,
    DocumentPart,
    Identity,
    ImagePart,
    Run,
    StoredSettings,
    TextPart,
    Thread,
    ThreadEvent,
    User,
    text_of,
)

NOW = datetime(2024, 5, 1, 12, 0, tzinfo=UTC)


def identity(**values: Any) -> Identity:
    return Identity(**{"organization_id": "o", "workspace_id": "w", "user_id": "u", **values})


def event(**values: Any) -> ThreadEvent:
    return ThreadEvent(**{"id": "e", "thread_id": "t", "type": "message", "actor": "user", "created_at": NOW, **values})


def test_the_text_of_a_message_is_its_text_parts_a_line_each() -> None:
    content: list[ContentPart] = [
        TextPart("one"),
        ImagePart("http://x/i.png"),
        TextPart("two"),
        DocumentPart("http://x/d", "d", "a/b"),
    ]
    assert text_of(content) == "one\ntwo"
    assert event(content=content).text == "one\ntwo"
    assert event().text == ""


def test_an_event_is_whole_unless_it_says_that_it_is_still_being_written() -> None:
    assert event().streaming is False
    assert event(streaming=True) != event()


def test_an_identity_as_it_appears_on_events_has_all_of_its_person() -> None:
    full = identity(
        user_name="n",
        user_email="e",
        user_role="r",
        system_role="s",
        organization_role="or",
        workspace_role="wr",
        identity_ids=["a", "b"],
    )
    assert full.user == User("u", "n", "e", "r", ("a", "b"), "s", "or", "wr")


@pytest.mark.parametrize("name", ["organization_id", "workspace_id", "user_id"])
@pytest.mark.parametrize("value", [None, 7, b"u", ["u"]])
def test_an_identity_without_a_text_for_an_id_is_refused(name: str, value: object) -> None:
    # None would be read as "any user" in a scope, and open everybody's private threads.
    with pytest.raises(InvalidValueError, match=rf"^Identity\.{name}: expected a text, got "):
        identity(**{name: value})


@pytest.mark.parametrize(
    "name", ["user_name", "user_email", "user_role", "system_role", "organization_role", "workspace_role"]
)
def test_a_name_or_role_that_is_not_known_is_empty(name: str) -> None:
    assert getattr(identity(**{name: None}), name) == ""
    with pytest.raises(InvalidValueError, match=rf"Identity\.{name}: expected a text, got 3"):
        identity(**{name: 3})


def test_identity_ids_are_texts_and_one_text_is_one_id() -> None:
    assert identity(identity_ids=None).identity_ids == ()
    assert identity(identity_ids="abc").identity_ids == ("abc",)
    assert identity(identity_ids=iter(["a", "b"])).identity_ids == ("a", "b")
    with pytest.raises(InvalidValueError, match=r"Identity\.identity_ids\[1\]: expected a text, got None"):
        identity(identity_ids=["a", None])


@pytest.mark.parametrize("name", ["user_id", "user_name", "organization_role", "identity_ids"])
@pytest.mark.parametrize("value", ["alice\x00", "\ud800"])
def test_nobody_is_told_by_what_no_database_keeps(name: str, value: str) -> None:
    # Left out, it would make one person another.
    with pytest.raises(InvalidValueError, match=rf"Identity\.{name}.*: holds characters that no database keeps"):
        identity(**{name: value})


@pytest.mark.parametrize("value", [NOW.replace(tzinfo=None), 1790000000, "2030-01-01"])
def test_an_identity_ends_at_an_aware_time(value: object) -> None:
    assert identity(expires_at=NOW).expires_at == NOW
    with pytest.raises(InvalidValueError, match="expires_at: expected an aware time"):
        identity(expires_at=value)


def test_an_identity_cannot_be_changed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        identity().user_id = "somebody else"  # type: ignore[misc]


def test_an_event_knows_its_writer_or_says_none() -> None:
    written = event(user=User("u", "Ann", "ann@x"))
    assert (written.user_id, written.user_name, written.user_email) == ("u", "Ann", "ann@x")
    assert (event().user_id, event().user_name, event().user_email) == (None, None, None)


def test_a_new_thread_and_a_new_run_start_from_nothing() -> None:
    thread = Thread(
        id="t",
        worker_id="w",
        organization_id="o",
        workspace_id="s",
        user_id="u",
        owner=User("u"),
        created_at=NOW,
        updated_at=NOW,
        last_event_at=NOW,
    )
    assert (thread.last_seq, thread.title, thread.metadata) == (0, None, None)
    run = Run(id="r", thread_id="t", started_at=NOW)
    assert (run.status, run.ended_at, run.error, run.agent_id) == ("running", None, None, None)


def test_the_repr_of_stored_settings_shows_no_value() -> None:
    assert "sk-123" not in repr(StoredSettings({"api_key": "sk-123"}, NOW))
    assert StoredSettings().values == {}
