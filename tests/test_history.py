"""A thread as each vendor wants to read it."""

from __future__ import annotations

from base64 import b64decode
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dooers.exceptions import InvalidValueError
from dooers.history import FORMATS, HistoryFormat, Said, format_history
from dooers.models import Actor, ContentPart, DocumentPart, ImagePart, TextPart

PNG = "data:image/png;base64,AAAA"
PDF = "data:application/pdf;base64,BBBB"
WEB_IMAGE = ImagePart("https://x/i.png", "image/png", alt="a cat")
WEB_PDF = DocumentPart("https://x/d.pdf", "d.pdf", "application/pdf")
CSV = DocumentPart("https://x/t.csv", "t.csv", "text/csv")


def said(actor: Actor, *content: ContentPart | str) -> Said:
    parts = [TextPart(part) if isinstance(part, str) else part for part in content]
    return Said(actor, parts, seq=1, turn_seq=1)


def only(format: str, event: Said) -> dict[str, Any]:
    (message,) = format_history([event], format)
    return message


TALK = [said("user", "hello"), said("assistant", "hi"), said("user", "bye")]


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("openai", [("user", "hello"), ("assistant", "hi"), ("user", "bye")]),
        ("voyage", [("user", "hello"), ("assistant", "hi"), ("user", "bye")]),
        ("anthropic", [("user", "hello"), ("assistant", "hi"), ("user", "bye")]),
        ("google", [("user", [{"text": "hello"}]), ("model", [{"text": "hi"}]), ("user", [{"text": "bye"}])]),
        ("cohere", [("USER", "hello"), ("CHATBOT", "hi"), ("USER", "bye")]),
    ],
)
def test_a_talk_in_plain_text_reads_as_each_vendor_writes_it(format: str, expected: list[tuple[str, Any]]) -> None:
    key = {"google": "parts", "cohere": "message"}.get(format, "content")
    assert format_history(TALK, format) == [{"role": role, key: text} for role, text in expected]


@pytest.mark.parametrize("format", FORMATS)
def test_an_empty_thread_is_an_empty_history(format: str) -> None:
    assert format_history([], format) == []


def test_the_formats_are_those_that_are_promised() -> None:
    assert set(FORMATS) == set(get_args(HistoryFormat))


@pytest.mark.parametrize(
    ("format", "hint"),
    [
        ("OpenAI", "'openai'"),
        ("gemini", None),
        ("claude", None),
        ("anthropc", "'anthropic'"),
        (None, None),
        (["openai"], None),
    ],
)
def test_an_unknown_format_is_refused_with_the_known_ones(format: Any, hint: str | None) -> None:
    with pytest.raises(InvalidValueError) as raised:
        format_history([], format)
    assert str(raised.value).startswith("format: expected one of openai, anthropic, google, cohere, voyage, got ")
    if hint is not None:
        assert f"did you mean {hint}?" in str(raised.value)


# ---------------------------------------------------------------- parts


def test_several_texts_of_one_message_stand_on_lines_of_their_own() -> None:
    event = said("user", "one", "two")
    assert only("openai", event)["content"] == "one\ntwo"
    assert only("voyage", event)["content"] == "one\ntwo"
    assert only("anthropic", event)["content"] == "one\ntwo"
    assert only("google", event)["parts"] == [{"text": "one"}, {"text": "two"}]
    assert only("cohere", event)["message"] == "one\ntwo"


def test_an_image_by_url() -> None:
    event = said("user", "look", WEB_IMAGE)
    assert only("openai", event)["content"] == [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "https://x/i.png"}},
    ]
    assert only("anthropic", event)["content"] == [
        {"type": "text", "text": "look"},
        {"type": "image", "source": {"type": "url", "url": "https://x/i.png"}},
    ]
    assert only("google", event)["parts"] == [
        {"text": "look"},
        {"file_data": {"mime_type": "image/png", "file_uri": "https://x/i.png"}},
    ]
    assert only("cohere", event)["message"] == "look\n[image: a cat]"
    assert only("voyage", event)["content"] == "look\n[image: a cat]"


def test_an_image_in_a_data_url() -> None:
    event = said("user", ImagePart(PNG))
    assert only("openai", event)["content"] == [{"type": "image_url", "image_url": {"url": PNG}}]
    assert only("anthropic", event)["content"] == [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    ]
    assert only("google", event)["parts"] == [{"inline_data": {"mime_type": "image/png", "data": "AAAA"}}]
    assert only("cohere", event)["message"] == "[image: inline]"


def test_a_long_data_url_is_not_put_into_words_whole() -> None:
    event = said("assistant", ImagePart("data:image/png;base64," + "A" * 100_000))
    for format in FORMATS:
        if format != "google":
            assert len(str(format_history([said("user", "x"), event], format))) < 600


def test_a_document_by_url() -> None:
    pdf, csv = said("user", WEB_PDF), said("user", CSV)
    assert only("openai", pdf)["content"] == [{"type": "text", "text": "[document: d.pdf]"}]
    assert only("anthropic", pdf)["content"] == [
        {"type": "document", "source": {"type": "url", "url": "https://x/d.pdf"}, "title": "d.pdf"}
    ]
    assert only("anthropic", csv)["content"] == [{"type": "text", "text": "[document: t.csv]"}]
    assert only("google", csv)["parts"] == [{"file_data": {"mime_type": "text/csv", "file_uri": "https://x/t.csv"}}]
    assert only("cohere", csv)["message"] == "[document: t.csv]"
    assert only("voyage", csv)["content"] == "[document: t.csv]"


def test_a_document_in_a_data_url() -> None:
    event = said("user", DocumentPart(PDF, "d.pdf", "application/pdf"))
    assert only("openai", event)["content"] == [{"type": "file", "file": {"filename": "d.pdf", "file_data": PDF}}]
    assert only("anthropic", event)["content"] == [
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "BBBB"},
            "title": "d.pdf",
        }
    ]
    assert only("google", event)["parts"] == [{"inline_data": {"mime_type": "application/pdf", "data": "BBBB"}}]


@pytest.mark.parametrize(
    ("part", "mime", "data"),
    [
        (ImagePart("data:image/png;name=a;base64,AAAA"), "image/png", "AAAA"),
        (ImagePart("DATA:image/png;BASE64,AAAA"), "image/png", "AAAA"),
        (ImagePart("data:;base64,AAAA", "image/gif"), "image/gif", "AAAA"),
        (ImagePart("data:;base64,AAAA"), "application/octet-stream", "AAAA"),
        (ImagePart("data:image/svg+xml,%3Csvg/%3E"), "image/svg+xml", "PHN2Zy8+"),
        (ImagePart("data:image/svg+xml;charset=utf-8,<svg/>"), "image/svg+xml", "PHN2Zy8+"),
        (ImagePart("data:,"), "application/octet-stream", ""),
    ],
)
def test_a_data_url_of_any_spelling_goes_inline(part: ImagePart, mime: str, data: str) -> None:
    event = said("user", part)
    assert only("google", event)["parts"] == [{"inline_data": {"mime_type": mime, "data": data}}]
    source = only("anthropic", event)["content"][0]["source"]
    assert source == {"type": "base64", "media_type": mime, "data": data}
    b64decode(data, validate=True)


def test_an_inline_pdf_without_a_mime_type_of_its_own_takes_that_of_its_part() -> None:
    event = said("user", DocumentPart("data:;base64,BBBB", "d.pdf", "application/pdf"))
    assert only("anthropic", event)["content"][0]["type"] == "document"


def test_what_google_gets_by_url_always_has_a_mime_type_of_its_kind() -> None:
    event = said("user", ImagePart("https://x/i"), DocumentPart("https://x/d", "d", ""))
    mimes = [part["file_data"]["mime_type"] for part in only("google", event)["parts"]]
    assert mimes == ["image/*", "application/octet-stream"]


def test_an_assistants_image_is_told_in_words_where_only_people_may_show_one() -> None:
    events = [said("user", "draw"), said("assistant", "here", WEB_IMAGE, WEB_PDF)]
    expected = "here\n[image: a cat]\n[document: d.pdf]"
    assert format_history(events, "openai")[1] == {"role": "assistant", "content": expected}
    assert format_history(events, "anthropic")[1] == {"role": "assistant", "content": expected}


# ---------------------------------------------------------------- roles


@pytest.mark.parametrize(
    ("actor", "roles"),
    [
        ("system", {"openai": "system", "google": "model", "cohere": "SYSTEM", "voyage": "assistant"}),
        ("tool", {"openai": "assistant", "google": "model", "cohere": "CHATBOT", "voyage": "assistant"}),
    ],
)
def test_a_message_of_neither_side_gets_the_nearest_role(actor: Actor, roles: dict[str, str]) -> None:
    for format, role in roles.items():
        assert only(format, said(actor, "x"))["role"] == role


def test_anthropic_joins_neighbours_and_drops_what_comes_before_the_user() -> None:
    events = [
        said("assistant", "welcome"),
        said("system", "rules"),
        said("user", "a"),
        said("user", "b", WEB_IMAGE),
        said("assistant", "c"),
        said("assistant", "  \n"),
        said("system", "d"),
        said("user", ""),
        said("tool", "e"),
    ]
    assert format_history(events, "anthropic") == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "text", "text": "b"},
                {"type": "image", "source": {"type": "url", "url": "https://x/i.png"}},
            ],
        },
        {"role": "assistant", "content": "c\nd\ne"},
    ]


# ---------------------------------------------------------------- empty texts


def test_an_empty_text_is_kept_where_it_is_allowed_and_left_out_where_it_is_refused() -> None:
    event = said("user", "")
    assert only("openai", event) == {"role": "user", "content": ""}
    assert only("voyage", event) == {"role": "user", "content": ""}
    assert format_history([event, said("user")], "anthropic") == []
    assert format_history([event, said("user")], "google") == []
    assert format_history([event, said("user")], "cohere") == []


def test_an_empty_text_beside_an_image_leaves_the_image() -> None:
    event = said("user", " ", WEB_IMAGE)
    assert [part["type"] for part in only("anthropic", event)["content"]] == ["image"]
    assert len(only("google", event)["parts"]) == 1


# ---------------------------------------------------------------- whatever was said

PARTS: st.SearchStrategy[ContentPart] = st.one_of(
    st.builds(TextPart, st.sampled_from(["", " ", "hi", "two\nlines"])),
    st.builds(
        ImagePart,
        st.sampled_from(["https://x/i", PNG, "data:,", "data:x", ""]),
        st.sampled_from([None, "", "image/png"]),
    ),
    st.builds(
        DocumentPart,
        st.sampled_from(["https://x/d", PDF, "data:text/plain,a%20b"]),
        st.just("f"),
        st.sampled_from(["", "application/pdf", "text/csv"]),
    ),
)
EVENTS = st.lists(
    st.builds(
        lambda actor, content: said(actor, *content), st.sampled_from(get_args(Actor)), st.lists(PARTS, max_size=3)
    ),
    max_size=8,
)


@given(EVENTS)
@settings(max_examples=200, deadline=None)
def test_anthropic_always_begins_with_the_user_and_alternates(events: list[Said]) -> None:
    messages = format_history(events, "anthropic")
    assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2) + ["user"] * (
        len(messages) % 2
    )
    for message in messages:
        content = message["content"]
        assert content
        if isinstance(content, str):
            assert content.strip()
        else:
            assert message["role"] == "user"
            assert all(part["type"] != "text" or part["text"].strip() for part in content)


@given(EVENTS, st.sampled_from(sorted(FORMATS)))
@settings(max_examples=200, deadline=None)
def test_every_format_takes_whatever_was_said_and_leaves_it_as_it_was(events: list[Said], format: str) -> None:
    before = [list(event.content) for event in events]
    messages = format_history(events, format)
    assert len(messages) <= len(events)
    if format in ("openai", "voyage"):
        assert len(messages) == len(events)
    if format in ("google", "cohere"):
        assert all(message.get("parts") or message.get("message") for message in messages)
    assert [list(event.content) for event in events] == before
    assert format_history(events, format) == messages
