"""Who may see what: one rule, tried from every side."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from dooers.access import check_may_own, check_visible, scope_of, visible
from dooers.exceptions import ForbiddenError, NotFoundError
from dooers.models import Identity, Scope, Thread, User

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
