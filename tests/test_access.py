"""Who may see what, and do what: the rules, tried from every side."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from dooers import WorkerConfig, WorkerServer
from dooers.access import Access, Policy, check_may_own, check_visible, origin_allowed, scope_of, visible
from dooers.exceptions import ForbiddenError, NotFoundError
from dooers.models import Identity, Operation, Scope, Thread, User

NOW = datetime(2024, 5, 1, 12, 0, tzinfo=UTC)
ANN = Identity(organization_id="o", workspace_id="s", user_id="ann")
THREAD = Thread(
    id="t",
    worker_id="w",
    organization_id="o",
    workspace_id="s",
    user_id="ann",
    owner=ANN.user,
    created_at=NOW,
    updated_at=NOW,
    last_event_at=NOW,
)


def test_a_scope_has_the_user_only_where_threads_are_private() -> None:
    assert scope_of(ANN, "w", private=False) == Scope("w", "o", "s", None)
    assert scope_of(ANN, "w", private=True) == Scope("w", "o", "s", "ann")


def test_a_thread_is_visible_in_its_own_scope() -> None:
    assert visible(THREAD, scope_of(ANN, "w", private=False))
    assert visible(THREAD, scope_of(ANN, "w", private=True))


@pytest.mark.parametrize("name", ["worker_id", "organization_id", "workspace_id"])
@pytest.mark.parametrize("other", ["", "x", "O", "w "])
@pytest.mark.parametrize("private", [True, False])
def test_a_thread_of_another_worker_or_tenant_is_not_visible(name: str, other: str, private: bool) -> None:
    scope = evolve(scope_of(ANN, "w", private=private), **{name: other})
    assert not visible(THREAD, scope)


def test_another_users_thread_is_visible_exactly_when_threads_are_shared() -> None:
    bob = Identity(organization_id="o", workspace_id="s", user_id="bob")
    assert visible(THREAD, scope_of(bob, "w", private=False))
    assert not visible(THREAD, scope_of(bob, "w", private=True))


def test_an_empty_user_is_nobody_and_not_everybody() -> None:
    nobody = Identity(organization_id="o", workspace_id="s", user_id="")
    scope = scope_of(nobody, "w", private=True)
    assert not visible(THREAD, scope)
    assert not visible(evolve(THREAD, user_id="", owner=User()), scope)
    assert visible(THREAD, scope_of(nobody, "w", private=False))


def test_an_empty_organization_sees_only_threads_without_one() -> None:
    outside = scope_of(Identity(organization_id="", workspace_id="", user_id="ann"), "w", private=False)
    assert not visible(THREAD, outside)
    assert visible(evolve(THREAD, organization_id="", workspace_id=""), outside)


def test_somebody_elses_thread_looks_like_none_at_all() -> None:
    scope = scope_of(ANN, "w", private=True)
    assert check_visible(THREAD, scope) is THREAD
    with pytest.raises(NotFoundError) as absent:
        check_visible(None, scope)
    with pytest.raises(NotFoundError) as foreign:
        check_visible(evolve(THREAD, user_id="bob"), scope)
    assert str(absent.value) == str(foreign.value)


def test_a_private_thread_needs_somebody_to_belong_to() -> None:
    check_may_own(Scope("w", "o", "s", None))
    check_may_own(Scope("w", "o", "s", "ann"))
    with pytest.raises(ForbiddenError, match="user_id"):
        check_may_own(Scope("w", "o", "s", ""))


NAMES = st.sampled_from(["", "a", "b"])


@given(st.tuples(NAMES, NAMES, NAMES, NAMES), st.tuples(NAMES, NAMES, NAMES, NAMES))
@settings(max_examples=200, deadline=None)
def test_private_visibility_is_equality_of_all_four_ids_and_a_user(
    mine: tuple[str, str, str, str], theirs: tuple[str, str, str, str]
) -> None:
    worker, organization, workspace, user = theirs
    thread = evolve(THREAD, worker_id=worker, organization_id=organization, workspace_id=workspace, user_id=user)
    identity = Identity(organization_id=mine[1], workspace_id=mine[2], user_id=mine[3])
    assert visible(thread, scope_of(identity, mine[0], private=True)) == (mine == theirs and mine[3] != "")
    assert visible(thread, scope_of(identity, mine[0], private=False)) == (mine[:3] == theirs[:3])


# ---------------------------------------------------------------- what somebody may do


ADA = evolve(ANN, user_role="admin")
ROLES = ("user_role", "system_role", "organization_role", "workspace_role")


def hooked(answer: Any) -> Policy:
    return Policy(hook=lambda identity, operation, thread: answer)


@pytest.mark.parametrize("operation", get_args(Operation))
def test_without_table_and_hook_everybody_may_do_everything(operation: Operation) -> None:
    assert Policy().allows(ANN, operation)
    assert Policy().allows(ANN, operation, THREAD)


@pytest.mark.parametrize("operation", get_args(Operation))
@pytest.mark.parametrize("place", ROLES)
def test_a_role_counts_wherever_it_is_held_and_for_the_named_operation_only(place: str, operation: Operation) -> None:
    policy = Policy({operation: frozenset({"admin", "owner"})})
    held: dict[str, Any] = {place: "admin"}
    assert policy.allows(evolve(ANN, **held), operation)
    held[place] = "Admin"
    assert not policy.allows(evolve(ANN, **held), operation)
    assert not policy.allows(ANN, operation)
    assert all(policy.allows(ANN, other) for other in get_args(Operation) if other != operation)


def test_no_role_at_all_is_no_role_that_a_table_could_name() -> None:
    assert not Policy({"feedback": frozenset({""})}).allows(ANN, "feedback")
    assert not Policy({"feedback": frozenset()}).allows(ADA, "feedback")


@pytest.mark.parametrize(
    ("answer", "allowed"), [(True, True), (False, False), (None, False), (1, False), ("yes", False)]
)
def test_a_hook_allows_by_saying_true_and_by_nothing_else(answer: Any, allowed: bool) -> None:
    assert hooked(answer).allows(ANN, "thread.read", THREAD) is allowed


def test_table_and_hook_must_both_allow() -> None:
    table: dict[Operation, Any] = {"feedback": frozenset({"admin"})}
    for hook, identity, allowed in [(True, ADA, True), (True, ANN, False), (False, ADA, False), (False, ANN, False)]:
        assert evolve(hooked(hook), permissions=table).allows(identity, "feedback") is allowed


def test_a_worker_says_for_doors_of_others_what_it_allows() -> None:
    worker = WorkerServer(WorkerConfig(database_type="memory", permissions={"thread.post": ["admin"]}))
    assert worker.allows(ADA, "thread.post")
    assert not worker.allows(ANN, "thread.post")
    worker.authorize(lambda identity, operation, thread: False)
    assert not worker.allows(ADA, "thread.post")


def test_a_hook_that_raises_has_refused_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    def hook(identity: Identity, operation: Operation, thread: Thread | None) -> bool:
        raise RuntimeError("the directory is down")

    assert not Policy(hook=hook).allows(ANN, "thread.delete", THREAD)
    assert "thread.delete is refused" in caplog.text
    assert "the directory is down" in caplog.text


def test_a_hook_is_told_who_what_and_which() -> None:
    asked: list[Any] = []

    def hook(*question: Any) -> bool:
        asked.append(question)
        return True

    Policy(hook=hook).allows(ANN, "run.cancel", THREAD)
    Policy(hook=hook).allows(ANN, "settings.patch")
    assert asked == [(ANN, "run.cancel", THREAD), (ANN, "settings.patch", None)]


def an_access(policy: Policy, **scope: str) -> Access:
    return Access(ANN, evolve(scope_of(ANN, "w", private=True), **scope), policy)


def test_what_is_out_of_scope_is_never_asked_of_the_hook() -> None:
    def hook(*_: Any) -> bool:
        raise AssertionError("nobody else's thread reaches the hook")

    assert not an_access(Policy(hook=hook), organization_id="other").sees(THREAD)


@pytest.mark.parametrize(
    ("policy", "thread"),
    [
        (Policy(), None),
        (Policy(), evolve(THREAD, user_id="bob")),
        (Policy({"thread.read": {"admin"}}), THREAD),
        (hooked(False), THREAD),
    ],
    ids=["absent", "somebody else's", "by role", "by hook"],
)
def test_a_thread_that_may_not_be_read_looks_like_none_at_all(policy: Policy, thread: Thread | None) -> None:
    with pytest.raises(NotFoundError, match=r"^there is no such thread$"):
        an_access(policy).seen(thread)


def test_what_may_be_read_but_not_done_is_forbidden_by_its_name() -> None:
    access = an_access(Policy({"thread.delete": {"admin"}}))
    assert access.seen(THREAD) is THREAD
    with pytest.raises(ForbiddenError, match=r"thread\.delete"):
        access.check("thread.delete", THREAD)
    access.check("thread.post", THREAD)


@given(st.sampled_from([True, False, None, 1, "raise"]), st.booleans(), st.booleans())
def test_seeing_is_being_in_scope_and_allowed(answer: Any, inside: bool, role: bool) -> None:
    def hook(*_: Any) -> Any:
        if answer == "raise":
            raise RuntimeError
        return answer

    table: dict[Operation, Any] = {"thread.read": {"reader"}}
    who = evolve(ANN, workspace_role="reader" if role else "")
    access = Access(
        who, evolve(scope_of(who, "w", private=True), user_id="ann" if inside else "bob"), Policy(table, hook)
    )
    assert access.sees(THREAD) is (answer is True and inside and role)


# ---------------------------------------------------------------- which page may ask


@pytest.mark.parametrize(
    ("allowed", "origins", "expected"),
    [
        (None, ["https://evil.example"], True),
        (["https://app.example"], [], True),
        (["https://app.example"], ["https://app.example"], True),
        (["https://app.example", "app://x"], ["app://x"], True),
        ([], [], True),
        ([], ["https://app.example"], False),
        (["https://app.example"], ["https://app.example", "https://evil.example"], False),
        *[
            (["https://app.example"], [origin], False)
            for origin in (
                "https://evil.example",
                "http://app.example",
                "https://app.example:8443",
                "https://app.example.evil.example",
                "https://evilapp.example",
                "https://app.example/",
                "https://app.example https://evil.example",
                "HTTPS://APP.EXAMPLE",
                "null",
                "",
                "*",
            )
        ],
    ],
)
def test_a_page_may_connect_by_the_whole_of_its_origin(
    allowed: list[str] | None, origins: list[str], expected: bool
) -> None:
    headers = [(b"host", b"app.example"), *((b"Origin", origin.encode("latin-1")) for origin in origins)]
    assert origin_allowed({"headers": headers}, allowed) is expected


def test_a_scope_without_headers_is_no_browser() -> None:
    assert origin_allowed({}, ["https://app.example"])
