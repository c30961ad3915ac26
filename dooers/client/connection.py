"""One connection to a worker, whatever carries it: frames out, answers matched to what was asked, the rest passed on.

It ends once and for all; making another one is `lifeline.py`'s business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol, TypeAlias
from uuid import uuid4

from attrs import frozen

from dooers import exceptions
from dooers.codec import loads
from dooers.exceptions import DisconnectedError, DooersError, NoAnswerError, RateLimitedError
from dooers.protocol import ANSWERS, serialize

__all__ = ["Connection", "Frame", "Gone", "Link"]

Frame: TypeAlias = dict[str, Any]

# A refusal is raised as what the worker itself raised, where the code tells.
ERRORS = {
    error.code: error
    for error in vars(exceptions).values()
    if isinstance(error, type) and issubclass(error, DooersError) and "code" in vars(error)
}
# Our own words for the end of a connection to something that is no worker.
NOT_OURS = 1002


class Gone(Exception):
    """A connection has ended; `code` is the WebSocket's close code, None where there was none."""

    def __init__(self, code: int | None = None, reason: str = "", *, final: bool = False) -> None:
        super().__init__(f"{code}{f': {reason}' if reason else ''}")
        self.code = code
        self.reason = reason
        # Another connection would be no better, or there is nobody to make one.
        self.final = final

    @property
    def error(self) -> DisconnectedError:
        """The same for users of a client."""
        if self.code == NOT_OURS:
            return DisconnectedError("whatever is there does not speak this protocol", self.code)
        return DisconnectedError(f"the connection was closed ({self})", self.code)


class Link(Protocol):
    """What carries texts both ways: a WebSocket, or a pair of queues."""

    def put(self, text: str) -> None:
        """Send a text, in the order of the calls."""
        ...

    async def get(self) -> str:
        """The next text; Gone when there will be none."""
        ...

    async def close(self) -> None:
        """End it from this side."""
        ...

    def abort(self) -> None:
        """End it at once, as a network that fails would."""
        ...


@frozen
class _Asked:
    answer: str
    future: asyncio.Future[dict[str, Any]] | None
    into: Callable[[Frame], None] | None


class Connection:
    """`heard` gets every frame, with whether somebody here waits for it; `gone` is called once, before whoever waits."""

    def __init__(
        self,
        link: Link,
        heard: Callable[[Frame, bool], None],
        gone: Callable[[Connection, Gone], None],
    ) -> None:
        self.link = link
        self.gone: Gone | None = None
        self._heard = heard
        self._tell_gone = gone
        # In the order they were asked: most answers carry no id. What nobody waits for any more stays, as its answer comes all the same.
        self._asked: dict[str, _Asked] = {}
        self._reader = asyncio.create_task(self._read(), name="client-reader")
        self._beating: asyncio.Task[None] | None = None

    def post(self, frame_type: str, payload: Mapping[str, Any], frame_id: str) -> None:
        """Send a frame; its answer is for whoever hears all frames."""
        if frame_type in ANSWERS:
            self._asked[frame_id] = _Asked(ANSWERS[frame_type], None, None)
        self.link.put(serialize(frame_type, dict(payload), frame_id))

    async def ask(
        self,
        frame_type: str,
        payload: Mapping[str, Any],
        within: float,
        into: Callable[[Frame], None] | None = None,
    ) -> dict[str, Any]:
        """Send a frame; the payload of its answer. `into` gets the answer in its place among the other frames.

        A refusal is raised as the error of its code; Gone when the connection ends first, NoAnswerError after `within` seconds.
        """
        if self.gone is not None:
            raise self.gone
        frame_id = uuid4().hex
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[frame_id] = _Asked(ANSWERS.get(frame_type, "ack"), future, into)
        self.link.put(serialize(frame_type, dict(payload), frame_id))
        try:
            async with asyncio.timeout(within):
                return await future
        except TimeoutError:
            raise NoAnswerError(f"no answer to {frame_type} within {within:g} s") from None

    def beat(self, every: float, within: float) -> None:
        """Show that this side lives, every so many seconds; a worker that does not answer to that is as good as gone."""
        if self.gone is None:
            self._beating = asyncio.create_task(self._beat(every, within), name="client-heartbeat")

    async def _beat(self, every: float, within: float) -> None:
        with suppress(Gone):
            try:
                while True:
                    await asyncio.sleep(every)
                    await self.ask("ping", {}, within)
            except NoAnswerError:
                self.link.abort()

    async def close(self) -> None:
        """End it from this side; returns when nothing of it is left."""
        try:
            await self.link.close()
        finally:
            if self.gone is None and not self._reader.done():
                self._reader.cancel()
            await asyncio.wait([self._reader, *([self._beating] if self._beating is not None else [])])

    async def _read(self) -> None:
        gone = Gone()
        try:
            while True:
                self._take(loads(await self.link.get()))
        except Gone as error:
            gone = error
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            gone = Gone(NOT_OURS, final=True)
            gone.__cause__ = error
            self.link.abort()
        except asyncio.CancelledError:
            gone = Gone(reason="its event loop ends", final=True)
            raise
        finally:
            self.gone = gone
            if self._beating is not None:
                self._beating.cancel()
            self._tell_gone(self, gone)
            for asked in self._asked.values():
                if asked.future is not None and not asked.future.done():
                    asked.future.set_exception(gone)
                    asked.future.exception()  # whoever waited may have gone
            self._asked.clear()

    def _take(self, frame: Frame) -> None:
        kind, payload = frame["type"], frame["payload"]
        if kind == "ack":
            found: str | None = payload["ack_id"]
        else:
            found = next((one for one, asked in self._asked.items() if asked.answer == kind), None)
        asked = self._asked.pop(found or "", None)
        self._heard(frame, asked is not None and asked.future is not None)
        if asked is None or asked.future is None:
            return
        if asked.into is not None and payload.get("ok", True):
            asked.into(frame)
        if asked.future.done():
            return
        if payload.get("ok", True):
            asked.future.set_result(payload)
        else:
            asked.future.set_exception(_refusal(payload.get("error") or {}))


def _refusal(told: Mapping[str, Any]) -> DooersError:
    code, message = str(told.get("code", "SERVER_ERROR")), str(told.get("message", "refused"))
    error = ERRORS.get(code, DooersError)(message)
    error.code = code
    if isinstance(error, RateLimitedError):
        error.retry_after = float(told.get("retry_after", error.retry_after))
    return error
