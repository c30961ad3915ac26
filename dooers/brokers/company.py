"""Whether there is anybody to tell: which other processes are there, and what one that was alone kept to itself. No connection in here.

On PostgreSQL, telling of a Change in its own transaction makes all commits of the server wait for each other, so a process that is alone
does not. It asks now and then who is there, and says so when it goes. If somebody comes while it writes without telling, it tells
from then on, and when the last of the silent writes is through it says that it was "late": whoever hears that reads for himself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Company"]


class Company:
    """Who else is there, as far as this process knows. `say` is given a word with a name, `missed` is called when a thing was not told."""

    def __init__(self, me: str, say: Callable[[str], None], missed: Callable[[], None]) -> None:
        self._me, self._say, self._missed = me, say, missed
        self._others: set[str] = set()
        self._answered: set[str] = set()
        self._sure = False
        self._silent = 0  # writes on their way of which nobody is told
        self._owes = False

    @property
    def alone(self) -> bool:
        """Whether nobody else is there, for all we know. Who does not know yet is not alone."""
        return self._sure and not self._others

    def ask(self, *, anew: bool = False) -> None:
        """Ask who is there; `anew` after a time in which nobody could be heard."""
        if anew:
            self._owes = self._owes or self.alone
            self._sure = False
        self._answered.clear()
        self._say(f"hello {self._me}")
        self.own_up()

    def settle(self) -> None:
        """Who has not answered is not there."""
        self._others = self._answered.copy()
        self._sure = True

    def leave(self) -> None:
        """Say that this process goes."""
        self._say(f"bye {self._me}")

    @contextmanager
    def writing(self) -> Iterator[bool]:
        """While something is written; whether it is to be told of."""
        if not self.alone:
            yield True
            return
        self._silent += 1
        try:
            yield False
        finally:
            self._silent -= 1
            self.own_up()

    def hear(self, word: str, who: str) -> None:
        """One of the words was said."""
        if who == self._me:
            return
        if word == "bye":
            self._others.discard(who)
            self._answered.discard(who)
            return
        was_alone = self.alone
        self._others.add(who)
        self._answered.add(who)
        self._owes = self._owes or was_alone
        if word == "hello":
            self._say(f"here {self._me}")
        elif word == "late":
            self._missed()
        self.own_up()

    def owe(self) -> None:
        """Something could not be told: others are to read for themselves."""
        self._owes = True

    def own_up(self) -> None:
        """Say so, unless it is too early for that."""
        if self._owes and not self._silent:
            self._owes = False
            self._say(f"late {self._me}")
