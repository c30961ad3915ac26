"""`dooers chat`: a conversation in a terminal, or over a pipe. What comes from the wire is shown as text, never obeyed.

The worker lives in a thread of its own (an event loop that answers pings while somebody thinks about what to type); the main
thread reads lines, so line editing and Ctrl-C work as in every other program.
"""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import nullcontext, suppress
from datetime import datetime
from functools import partial
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal
from attrs import define, field
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markdown import Markdown
from rich.padding import Padding
from rich.segment import Segment, Segments
from rich.spinner import Spinner
from rich.text import Text

from dooers.client import (
    Appended,
    Client,
    Connecting,
    Delta,
    Looked,
    Lost,
    RunChanged,
    ThreadChanged,
    ThreadDeleted,
    Update,
)
from dooers.codec import dumps
from dooers.exceptions import DisconnectedError, DooersError
from dooers.models import ContentPart, DocumentPart, Run, TextPart, ThreadEvent

__all__ = ["Chat", "printable", "run_chat"]

HELP = """\
/threads     your conversations
/open N      go on with number N of them, or with a thread id
/new         begin a new conversation
/stop        stop whatever is answered in this conversation
/quit        leave (so does Ctrl-D); the conversation stays
Ctrl-C stops the answer that is being written; what is there of it stays. A second Ctrl-C leaves."""

# C0, DEL and C1 without tab and newline: with these a terminal is driven (moved, recoloured, made to type).
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LINE = 100
# Seconds without a connection after which a chat ends: somebody waits for a server that comes back, a pipe less long.
_PATIENCE, _PIPED = 60.0, 5.0


def printable(text: object) -> str:
    """A text without the characters that a terminal obeys; newlines and tabs stay."""
    return _CONTROLS.sub("", str(text))


def run_chat(console: Console, url: str, *, thread_id: str | None = None, **claims: Any) -> None:
    """Talk until the input ends or somebody quits. `claims` are the Client's arguments.

    DisconnectedError when the worker is not there, or does not come back; a refused connection raises the error of its code.
    """
    told: list[Chat] = []
    with start_blocking_portal("asyncio") as portal:
        client = Client(
            url,
            deltas=_moves(console),
            retry_for=_PATIENCE if sys.stdin.isatty() else _PIPED,
            on_connection=lambda update: told[0].connection(update) if told else None,
            **claims,
        )
        with portal.wrap_async_context_manager(client):
            chat = Chat(console, portal, client, client.user_id)
            told.append(chat)
            if sys.stdin.isatty():
                chat.note(f"connected to {url} as {chat.user_id}; /help lists the commands")
            if thread_id is not None:
                chat.open(thread_id)
            chat.run()


@define(eq=False)
class Chat:
    """One conversation at a time, and what of it was shown."""

    console: Console
    portal: BlockingPortal
    client: Client
    user_id: str
    thread_id: str | None = None
    title: str | None = None
    listed: list[str] = field(factory=list)
    # The messages that are growing on the screen, by id, with their text so far.
    growing: dict[str, str] = field(factory=dict)
    last_error: str | None = None
    spinner: Spinner = field(factory=lambda: Spinner("dots", Text("…", style="dim"), style="magenta"))

    # ------------------------------------------------------------ what somebody types

    def run(self) -> None:
        """Read lines until there are no more."""
        prompt = self._prompt()
        while True:
            try:
                line = input(prompt).strip()
            except (EOFError, KeyboardInterrupt):
                if prompt:
                    self.console.print()
                break
            if line == "/quit":
                break
            try:
                if line:
                    self._take(line)
            except KeyboardInterrupt:
                break
        if self.thread_id is not None and prompt:
            self.note(f"to come back to this conversation: --thread {self.thread_id}")

    def _prompt(self) -> str:
        if not (sys.stdin.isatty() and self.console.is_terminal):
            return ""
        with suppress(ImportError):
            __import__("readline")  # gives input() its line editing and history, where the platform has it
        # The marks tell readline that the colour takes no room.
        return "\n\001\033[1;36m\002you > \001\033[0m\002"

    def _take(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if command.startswith("/") and command not in COMMANDS:
            self.error(f"there is no {command}; /help lists what there is (a message cannot begin with /)")
            return
        try:
            if command in COMMANDS:
                COMMANDS[command](self, rest.strip())
            else:
                self.say(line)
        except DisconnectedError:
            raise
        except DooersError as error:
            self.error(f"{error} ({error.code})")

    def say(self, text: str) -> None:
        """Send a message and show what comes until the turn is over. Ctrl-C stops it, a second one leaves."""
        self._wait(self.client.stream(text, self.thread_id))

    def _wait(self, updates: AsyncGenerator[Update, None]) -> None:
        waiting = self.portal.start_task_soon(self._show_all, updates)
        try:
            try:
                waiting.result()
            except KeyboardInterrupt:
                self.note("stopping; Ctrl-C again leaves")
                self._stop()
                waiting.result()
        finally:
            waiting.cancel()  # a second Ctrl-C, or the worker would not stop it; else it is done

    async def _show_all(self, updates: AsyncGenerator[Update, None]) -> None:
        # It asks for what is growing a few times a second, however fast that grows.
        live = Live(console=self.console, transient=True, refresh_per_second=12, get_renderable=self._growing)
        try:
            with live if _moves(self.console) else nullcontext():
                async for update in updates:
                    self.show(update)
        finally:
            self.growing.clear()
            await updates.aclose()

    def _stop(self) -> None:
        if self.thread_id is not None:
            self.portal.call(partial(self.client.cancel, thread_id=self.thread_id))

    # ------------------------------------------------------------ commands

    def help(self, _: str = "") -> None:
        """What there is."""
        self.console.print(HELP, style="dim", markup=False)

    def new(self, _: str = "") -> None:
        """The next message opens a new thread."""
        self.thread_id = self.title = None
        self.note("a new conversation")

    def stop(self, _: str = "") -> None:
        """Stop whoever answers in the open thread, also where somebody else has asked."""
        if self.thread_id is None:
            self.error("there is nothing to stop: no conversation is open")
            return
        self._stop()
        self.note("stopped; what was written stays")

    def threads(self, _: str = "") -> None:
        """List the newest threads, numbered for `/open`."""
        found = self.portal.call(partial(self.client.threads, limit=50))
        self.listed = [thread.id for thread in found.items]
        for number, thread in enumerate(found.items, 1):
            here = ">" if thread.id == self.thread_id else " "
            line = Text.assemble(
                (f"{here}{number:>3}  ", "cyan"),
                _short(thread.title or "(no title)", 60),
                (f"  {_when(thread.last_event_at)}  {printable(thread.id)}", "dim"),
            )
            self.console.print(line, soft_wrap=True)
        if (more := (found.total or 0) - len(self.listed)) > 0:
            self.note(f"and {more} older")
        if not self.listed:
            self.note("no conversations yet")

    def open(self, which: str) -> None:
        """Show a thread, by its number in the last list or by its id, and go on with it."""
        if which.isdecimal() and len(which) < 6:
            if not self.listed:
                self.threads()
            if not 1 <= int(which) <= len(self.listed):
                self.error(f"there is no number {which}; /threads lists them")
                return
            which = self.listed[int(which) - 1]
        if not which:
            self.error("which one? /open N, or /open and a thread id")
            return
        self._wait(self.client.watch(which))

    def _opened(self, looked: Looked) -> None:
        self.thread_id, self.title = looked.thread.id, looked.thread.title
        self.note(f"── {self.title or '(no title)'} ── {_when(looked.thread.created_at)}")
        if looked.has_more:
            self.note("(only the newest messages are shown)")
        for event in looked.events:
            self.event(event, mine=True)

    # ------------------------------------------------------------ what the worker says

    def show(self, update: Update) -> None:
        """Show what happens in the open thread."""
        match update:
            case Looked():
                self._opened(update)
            case ThreadChanged():
                self.thread_id = update.thread.id
                if (title := update.thread.title) != self.title:
                    self.title = title
                    self.note(f"· title: {title}")
            case ThreadDeleted():
                self.thread_id = self.title = None
                self.note("· this conversation was deleted")
            case Appended():
                self.thread_id = update.thread_id
                self.event(update.event)
            case Delta():
                self.growing[update.event_id] = update.whole
            case RunChanged():
                self.run_state(update.run)

    def connection(self, update: Connecting) -> None:
        """Say that the connection is lost, or there again."""
        if isinstance(update, Lost):
            self.note(f"· the connection is lost ({update.reason or update.code}); trying again")
        else:
            self.note("· reconnected")

    def _growing(self) -> RenderableType:
        """The end of what is growing, as much as fits on the screen, and a sign of life."""
        text = "\n\n".join(list(self.growing.values()))
        if not text:
            return self.spinner
        lines = self.console.render_lines(_markdown(text), pad=False)[2 - self.console.height :]
        return Group(Segments([segment for line in lines for segment in (*line, Segment.line())]), self.spinner)

    def event(self, event: ThreadEvent, *, mine: bool = False) -> None:
        """Show one event. One's own messages only when asked for: they stand where they were typed."""
        self.growing.pop(event.id, None)
        if event.type != "message":
            self._say(_tool(event))
            return
        text = "\n\n".join(map(_part, event.content))
        if event.actor == "user":
            is_mine = event.user_id == self.user_id
            if mine or not is_mine:
                who = "you" if is_mine else event.user_name or event.user_id or "user"
                self._say(Text.assemble((f"\n{printable(who)} > ", "bold cyan"), printable(text)))
        elif event.actor == "system":
            if text != self.last_error:  # the run has said the same thing
                self._say(Text(printable(text), style="red"))
        else:
            self._say(Text(f"\n{printable(event.author or 'assistant')}", style="bold magenta"))
            self._say(_markdown(text))
            if (event.data or {}).get("incomplete"):
                self.note("  (cut off here)")

    def run_state(self, run: Run) -> None:
        """Show how a run has ended; that it goes on is told by what keeps coming."""
        if run.status == "running":
            if not _moves(self.console):
                self.note("· running")
            return
        self.last_error = run.error
        mark, style = {"succeeded": ("✓", "dim green"), "failed": ("✗", "red")}.get(run.status, ("■", "yellow"))
        took = "" if run.ended_at is None else f" in {(run.ended_at - run.started_at).total_seconds():.1f} s"
        self._say(Text(printable(f"{mark} {run.status}{took}{f': {run.error}' if run.error else ''}"), style=style))

    def note(self, text: str) -> None:
        """Something the chat itself has to say."""
        self._say(Text(printable(text), style="dim"))

    def error(self, text: str) -> None:
        """Something that did not work."""
        self._say(Text(printable(text), style="red"))

    def _say(self, what: RenderableType) -> None:
        self.console.print(what)


COMMANDS: dict[str, Callable[[Chat, str], None]] = {
    "/help": Chat.help,
    "/new": Chat.new,
    "/open": Chat.open,
    "/stop": Chat.stop,
    "/threads": Chat.threads,
}


def _moves(console: Console) -> bool:
    """Whether somebody watches; else everything is written once, when it is whole."""
    return console.is_terminal and not console.is_dumb_terminal and sys.stdin.isatty()


def _markdown(text: str) -> RenderableType:
    # Without hyperlinks: a terminal would hide where one leads, and its address would be written as a control sequence.
    return Padding(Markdown(printable(text), hyperlinks=False), (0, 0, 0, 2))


def _part(part: ContentPart) -> str:
    if isinstance(part, TextPart):
        return part.text
    name = part.filename if isinstance(part, DocumentPart) else part.alt or ""
    return f"[{part.type}] {name} {_short(part.url, 200)}"


def _tool(event: ThreadEvent) -> Text:
    data = event.data or {}
    name = data.get("display_name") or data.get("name") or event.type
    line = Text.assemble(("  ⚙ ", "yellow"), (printable(name), "bold"))
    if event.type != "tool.result":
        line.append(f" {_short(dumps(data.get('args') or {}), _LINE)}", style="dim")
    if event.type != "tool.call":
        line.append(f" → {_short(dumps(data.get('result')), _LINE)}", style="dim")
    return line


def _short(text: object, limit: int) -> str:
    line = " ".join(printable(text).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _when(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M}"
