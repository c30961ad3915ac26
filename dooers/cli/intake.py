"""Threads from the lines of an export into a store. What a line may say is `archive.py`'s business.

- **A thread is read to its end before anything of it is written**, so a bad line costs its own thread and no other. One that fits into a
  piece is written from memory, many of them side by side; a larger one is read a second time, and written piece after piece.
- **Numbers stay.** Events keep their `seq`, so what is there already says where to go on: an import may be interrupted and repeated.
- **What is there is left as it is.** Only events after the last one that is there are added.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from typing import IO

from attrs import Factory, define, evolve, field, frozen

from dooers.cli.archive import End, Fault, Head, Line, read
from dooers.exceptions import DooersError, InvalidValueError
from dooers.models import Change, EventQuery, Run, Thread, ThreadEvent
from dooers.stores import Store, applied

__all__ = ["Intake", "Outcome"]

# What is written at once of one thread (events, runs, bytes), and of how many threads side by side.
EVENTS, RUNS, SIZE, SIDE_BY_SIDE = 500, 50, 1 << 20, 64
# After how many lines a Ctrl-C is listened for.
BREATH = 500
# A run that was still running is over where it is brought to: nobody there is at it.
CUT = "it was running when it was exported"


@define
class Outcome:
    """What became of a file. `known` counts the threads to which nothing had to be added."""

    threads: int = 0
    events: int = 0
    runs: int = 0
    known: int = 0
    faults: list[str] = Factory(list)


@frozen
class Piece:
    """What of a thread is written at once: runs, and events whose numbers have no gap."""

    runs: tuple[Run, ...] = ()
    events: tuple[ThreadEvent, ...] = ()


@define
class Gathering:
    """Runs and events, until they are a piece."""

    runs: list[Run] = Factory(list)
    events: list[ThreadEvent] = Factory(list)
    size: int = 0

    def add(self, line: Run | ThreadEvent, size: int) -> Piece | None:
        """Take a line; the piece before it, where it does not go with that."""
        gap = isinstance(line, ThreadEvent) and self.events and line.seq != self.events[-1].seq + 1
        full = len(self.events) >= EVENTS or len(self.runs) >= RUNS or self.size + size > SIZE
        piece = self.take() if (gap or full) and self.size else None
        self.size += size
        if isinstance(line, Run):
            self.runs.append(line)
        else:
            self.events.append(line)
        return piece

    def take(self) -> Piece:
        """What there is, which is then no longer here."""
        piece = Piece(tuple(self.runs), tuple(self.events))
        self.runs, self.events, self.size = [], [], 0
        return piece


@define
class Section:
    """A thread of the file: where it is in there, and how far it is in the store already."""

    thread: Thread
    line: int
    at: int
    there: Thread | None
    newest: ThreadEvent | None  # of what is there
    done: int  # up to which number it is there
    last: int = 0  # the number of its last event in the file
    met: bool = False  # whether the newest of what is there is in the file
    ids: array[int] = field(factory=lambda: array("q"))

    def check(self, line: Run | ThreadEvent) -> None:
        """Fault for what cannot stand here."""
        if line.thread_id != self.thread.id:
            raise Fault(
                f"thread_id: expected {self.thread.id!r}, the thread that this stands under, got {line.thread_id!r:.80}"
            )
        if isinstance(line, Run):
            return
        if not self.last < line.seq <= self.thread.last_seq:
            raise Fault(f"seq: expected a number from {self.last + 1} to {self.thread.last_seq}, got {line.seq}")
        self.last = line.seq
        # A hash each, not an id each: a thread may have a million events.
        self.ids.append(hash(line.id))
        if self.newest is not None and (line.seq, line.id) == (self.newest.seq, self.newest.id):
            self.met = True

    def close(self) -> None:
        """Fault for what can only be seen at the end."""
        ids = sorted(self.ids)
        if any(one == other for one, other in pairwise(ids)):
            raise Fault("id: two events of this thread have the same")
        if self.newest is not None and self.last > self.done and not self.met:
            raise Fault(
                f"the thread is there already, and went on otherwise: its event {self.newest.id!r} is not in the file"
            )
        self.ids = array("q")


class Lines:
    """A file line by line, and which line that is; forth and back."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.number = self.at = self.size = 0

    def next(self) -> Line | None:
        """The next line that is not empty, or None at the end; Fault for a bad one."""
        while text := self._source.readline():
            self.number += 1
            self.size = len(text)
            self.at += self.size
            if text.strip():
                return read(text)
        return None

    def back(self, number: int, at: int) -> None:
        """To behind a line."""
        self._source.seek(at)
        self.number, self.at = number, at


class Intake:
    """Brings the threads of one file into one store. `advance` is told how many bytes are done."""

    def __init__(
        self,
        store: Store,
        source: IO[bytes],
        worker_id: str | None = None,
        advance: Callable[[int], None] = lambda at: None,
    ) -> None:
        self._store = store
        self._lines = Lines(source)
        self._worker_id = worker_id
        self._advance = advance
        self._exported_at: datetime | None = None
        self._pending: dict[str, tuple[Section, Piece, asyncio.Future[Change]]] = {}
        self.outcome = Outcome()

    def begin(self) -> None:
        """Read the head. InvalidValueError where this is no export, or one of another version."""
        try:
            head = self._lines.next()
            if not isinstance(head, Head):
                raise Fault("expected the head of an export, this is none")
        except Fault as fault:
            raise InvalidValueError(
                f"line {self._lines.number}: {fault}; expected a file that `dooers export` wrote"
            ) from None
        self._exported_at = head.exported_at

    async def run(self) -> Outcome:
        """Bring in what follows the head. StoreError where the database cannot be read; what it did not write is a fault of its thread."""
        ended = False
        try:
            line = self._resumed()
            while line is not None:
                ended = isinstance(line, End)
                if isinstance(line, Thread):
                    line = await self._take(line)
                elif isinstance(line, Run | ThreadEvent):
                    self.outcome.faults.append(
                        f"line {self._lines.number}: expected a thread before its runs and events"
                    )
                    line = self._resumed()
                else:
                    if isinstance(line, Head):  # one export behind another
                        self._exported_at = line.exported_at
                    line = self._resumed()
        finally:
            while self._pending:
                await self._settle()
        if not ended and not self.outcome.faults:
            self.outcome.faults.append("the file has no end: is all of it there?")
        self._advance(self._lines.at)
        return self.outcome

    def _resumed(self) -> Line | None:
        """The next line that begins something, whatever stands before it."""
        while True:
            try:
                line = self._lines.next()
            except Fault as fault:
                self.outcome.faults.append(f"line {self._lines.number}: {fault}")
                continue
            return line

    def _skipped(self) -> Line | None:
        """The next line that is of no thread, or begins one: where to go on behind a thread that is left out."""
        while True:
            try:
                line = self._lines.next()
            except Fault:
                continue
            if not isinstance(line, Run | ThreadEvent):
                return line

    # ------------------------------------------------------------ one thread

    async def _take(self, thread: Thread) -> Line | None:
        """Bring in a thread; the line that follows it."""
        if self._worker_id is not None:
            thread = evolve(thread, worker_id=self._worker_id)
        try:
            section = await self._found(thread)
            piece, following = await self._scanned(section)
        except Fault as fault:
            self._fault(thread, fault, "nothing of it was imported")
            return self._skipped()
        try:
            section.close()
        except Fault as fault:
            self._fault(thread, fault, "nothing of it was imported", section.line)
            return following
        end = self._lines.number, self._lines.at
        # Runs come before events; of a thread without any, nobody knows whether all of its runs are there.
        sure = section.done > 0 or (piece is not None and not piece.runs)
        if section.there is not None and section.last <= section.done and sure:
            self.outcome.known += 1
        elif piece is not None:
            if len(self._pending) >= SIDE_BY_SIDE:
                await self._settle()
            change = self._change(section, piece, last=True)
            self._pending[thread.id] = (section, piece, applied(self._store, change))
        else:
            await self._poured(section)
            self._lines.back(*end)
        self._advance(self._lines.at)
        return following

    async def _found(self, thread: Thread) -> Section:
        if thread.id in self._pending:  # twice in one file
            while self._pending:
                await self._settle()
        there = await self._store.thread(thread.id)
        newest = None
        if there is not None:
            for name in ("worker_id", "organization_id", "workspace_id", "user_id", "created_at"):
                if getattr(there, name) != getattr(thread, name):
                    raise Fault(f"there is another thread of this id: its {name} is {str(getattr(there, name))!r:.80}")
            newest = next(iter(await self._store.events(EventQuery(thread_id=thread.id, limit=1))), None)
        line, at = self._lines.number, self._lines.at
        return Section(thread, line, at, there, newest, 0 if there is None else there.last_seq)

    async def _scanned(self, section: Section) -> tuple[Piece | None, Line | None]:
        """Read a thread to its end: what is to be written of it, None if that is more than a piece; and the line that follows."""
        gathering, fits = Gathering(), True
        while isinstance(line := self._lines.next(), Run | ThreadEvent):
            section.check(line)
            if isinstance(line, Run) or line.seq > section.done:
                fits = gathering.add(line, self._lines.size) is None and fits
            if self._lines.number % BREATH == 0:
                self._advance((section.at + self._lines.at) // 2)
                await asyncio.sleep(0)
        if line is None:
            raise Fault("the file ends within this thread")
        return gathering.take() if fits else None, line

    async def _poured(self, section: Section) -> None:
        """Write a thread piece after piece, reading it a second time. A number counts on from the one before, so none may go ahead."""
        half = (self._lines.at - section.at) // 2
        self._lines.back(section.line, section.at)
        gathering = Gathering()
        try:
            while isinstance(line := self._lines.next(), Run | ThreadEvent):
                if isinstance(line, Run) or line.seq > section.done:
                    piece = gathering.add(line, self._lines.size)
                    if piece is not None:
                        self._landed(section, piece, await applied(self._store, self._change(section, piece)))
                        self._advance(section.at + half + (self._lines.at - section.at) // 2)
            piece = gathering.take()
            self._landed(section, piece, await applied(self._store, self._change(section, piece, last=True)))
            self.outcome.threads += 1
        except (Fault, DooersError) as error:
            self._fault(section.thread, error, "a part of it was imported; repeat it when that is mended")

    # ------------------------------------------------------------ writing

    def _change(self, section: Section, piece: Piece, *, last: bool = False) -> Change:
        thread = section.thread
        return Change(
            thread=evolve(thread, last_seq=0),
            opens=section.there is None,
            runs=tuple(map(self._closed, piece.runs)),
            events=piece.events,
            skips=piece.events[0].seq - section.done - 1 if piece.events else 0,
            patch={"updated_at": thread.updated_at, "last_event_at": thread.last_event_at} if last else {},
        )

    def _closed(self, run: Run) -> Run:
        if run.status != "running":
            return run
        assert self._exported_at is not None
        return evolve(run, status="failed", ended_at=max(run.started_at, self._exported_at), error=CUT)

    def _landed(self, section: Section, piece: Piece, stored: Change) -> None:
        section.there = stored.thread
        self.outcome.runs += len(piece.runs)
        if piece.events:
            if stored.events[0].seq != piece.events[0].seq:
                raise Fault(
                    "somebody wrote to it meanwhile, and its numbers are not the file's; remove it there, and repeat this"
                )
            section.done = piece.events[-1].seq
            self.outcome.events += len(piece.events)

    async def _settle(self) -> None:
        """Wait for the thread that has waited longest to be written."""
        thread_id = next(iter(self._pending))
        section, piece, future = self._pending.pop(thread_id)
        try:
            self._landed(section, piece, await future)
            self.outcome.threads += 1
        except (Fault, DooersError) as error:
            self._fault(section.thread, error, "nothing of it was imported", section.line)

    def _fault(self, thread: Thread, error: Exception, what: str, line: int | None = None) -> None:
        number = self._lines.number if line is None else line
        self.outcome.faults.append(f"line {number}: thread {thread.id}: {error}; {what}")
