"""Who is there: nobody is silent beside others without owning up to it, in whatever order their words arrive."""

from __future__ import annotations

import random
from collections import deque
from contextlib import ExitStack

import pytest

from dooers.brokers.company import Company


class Room:
    """Processes whose words take their time: each pair has a line, on which words keep their order."""

    def __init__(self) -> None:
        self.lines: dict[tuple[str, str], deque[str]] = {}
        self.members: dict[str, Company] = {}
        self.missed: dict[str, int] = {}

    def enter(self, name: str) -> Company:
        def say(word: str) -> None:
            for other in self.members:
                self.lines.setdefault((name, other), deque()).append(word)

        def missed() -> None:
            self.missed[name] += 1

        company = self.members[name] = Company(name, say, missed)
        self.missed[name] = 0
        company.ask(anew=True)
        return company

    def leave(self, name: str) -> None:
        self.members.pop(name).leave()

    def crash(self, name: str) -> None:
        del self.members[name]

    def pass_on(self, line: tuple[str, str]) -> None:
        word, who = self.lines[line].popleft().split(" ")
        if line[1] in self.members:
            self.members[line[1]].hear(word, who)

    def settle(self) -> None:
        while busy := [line for line, words in self.lines.items() if words]:
            for line in busy:
                self.pass_on(line)


def is_alone(company: Company) -> bool:
    return company.alone


def test_who_does_not_know_yet_is_not_alone() -> None:
    room = Room()
    one = room.enter("one")
    assert not is_alone(one)
    with one.writing() as told:
        assert told
    room.settle()
    one.settle()
    assert is_alone(one)
    with one.writing() as told:
        assert not told


def test_who_comes_is_known_to_those_who_are_there_and_knows_them() -> None:
    room = Room()
    one = room.enter("one")
    two = room.enter("two")
    room.settle()
    one.settle()
    two.settle()
    assert not is_alone(one)
    assert not is_alone(two)
    assert room.missed == {"one": 0, "two": 0}


def test_who_was_alone_says_so_to_who_comes_and_only_when_all_it_kept_to_itself_is_done() -> None:
    room = Room()
    one = room.enter("one")
    one.settle()
    with one.writing() as told:
        assert not told
        with one.writing():
            room.enter("two")
            room.settle()
            with one.writing() as later:
                assert later
            room.settle()
            assert room.missed["two"] == 0
        room.settle()
        assert room.missed["two"] == 0
    room.settle()
    assert room.missed == {"one": 0, "two": 1}


@pytest.mark.parametrize("goes", ["leave", "crash"])
def test_who_is_left_alone_is_alone_at_once_or_after_the_next_question(goes: str) -> None:
    room = Room()
    one = room.enter("one")
    room.enter("two")
    room.settle()
    one.settle()
    getattr(room, goes)("two")
    room.settle()
    assert is_alone(one) == (goes == "leave")
    one.ask()
    room.settle()
    one.settle()
    assert is_alone(one)


def test_who_could_not_be_heard_for_a_while_owns_up_when_it_is_back() -> None:
    room = Room()
    one = room.enter("one")
    one.settle()
    room.enter("two")
    room.lines.clear()  # nothing of it was heard
    with one.writing() as told:
        assert not told
    one.ask(anew=True)
    assert not is_alone(one)
    room.settle()
    assert room.missed["two"] >= 1


def test_who_answers_too_late_was_not_counted_and_is_told_that_it_missed_something() -> None:
    room = Room()
    one, two = room.enter("one"), room.enter("two")
    room.settle()
    one.ask()
    one.settle()  # two has not answered yet
    assert is_alone(one)
    with one.writing():
        pass
    room.settle()
    assert not is_alone(one)
    assert room.missed["two"] == 1
    two.settle()
    assert not is_alone(two)


@pytest.mark.parametrize("seed", range(300))
def test_whatever_happens_whoever_is_there_hears_of_a_write_or_that_it_missed_one(seed: int) -> None:
    """Each member reads, as a process does, when it comes and when it hears that it missed something."""
    chance, room = random.Random(seed), Room()
    done: list[tuple[str, set[str]]] = []  # silent writes that are through, and who was there and has not read since
    under_way: list[tuple[str, ExitStack]] = []

    def read_anew() -> None:
        for name, count in list(room.missed.items()):
            if count > seen.get(name, 0):
                seen[name] = count
                for _, unread in done:
                    unread.discard(name)

    seen: dict[str, int] = {}
    for step in range(200):
        act = chance.choice(["enter", "leave", "crash", "write", "end", "settle", "ask", "anew", *["pass"] * 12])
        names = list(room.members)
        if act == "enter" and len(names) < 4:
            room.enter(f"p{step}")
        elif act in ("leave", "crash") and names:
            gone = chance.choice(names)
            for name, stack in [one for one in under_way if one[0] == gone]:
                under_way.remove((name, stack))
            getattr(room, act)(gone)
        elif act == "write" and names:
            name = chance.choice(names)
            stack = ExitStack()
            if not stack.enter_context(room.members[name].writing()):
                under_way.append((name, stack))
        elif act == "end" and under_way:
            name, stack = under_way.pop(chance.randrange(len(under_way)))
            done.append((name, {other for other in room.members if other != name}))
            stack.close()
        elif act in ("settle", "ask", "anew") and names:
            company = room.members[chance.choice(names)]
            company.settle() if act == "settle" else company.ask(anew=act == "anew")
        elif lines := [line for line, words in room.lines.items() if words]:
            room.pass_on(chance.choice(lines))
        read_anew()
    for name, stack in under_way:
        done.append((name, {other for other in room.members if other != name}))
        stack.close()
    for company in room.members.values():
        company.ask()
    room.settle()
    read_anew()
    alive = set(room.members)
    assert [(name, unread & alive) for name, unread in done if name in alive and unread & alive] == []
