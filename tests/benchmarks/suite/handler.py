"""What is answered in every measurement, by the worker and by its limit: a message says what to do. Not the worker itself.

`stream:N` answers with N texts, `deltas:N` with one text that is streamed in N pieces, `wait` with nothing until it is stopped, `four` with
a text and a title. Anything else gets a text, and a title if the thread has none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

__all__ = ["PIECE", "REPLY", "TEXT", "agent", "asked"]

REPLY = ("Somebody asked, and this is what there is to say about it. " * 8)[:400]
TEXT = "One of many texts, about as long as a line of a chat tends to be."
PIECE = "token "


def asked(message: str) -> tuple[str, int]:
    """The word that a message begins with, and its number."""
    word, _, number = message.partition(":")
    return word, int(number.split()[0]) if word in ("stream", "deltas") else 0


async def agent(incoming: Any, send: Any, memory: Any, analytics: Any, settings: Any) -> AsyncIterator[Any]:
    """The measured handler, with all that a handler may be given."""
    message = incoming.message
    word, number = asked(message)
    yield send.run_start()
    if word == "stream":
        for _ in range(number):
            yield send.text(TEXT)
    elif word == "deltas":
        yield send.stream(pieces(number))
    elif word == "wait":
        await asyncio.Event().wait()
    else:
        yield send.text(REPLY)
    if word == "four" or incoming.context.thread_title is None:
        yield send.update_thread(title=message[:60])
    yield send.run_end()


async def pieces(number: int) -> AsyncIterator[str]:
    for _ in range(number):
        yield PIECE
