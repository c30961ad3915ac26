"""Everything this package raises on purpose, as one tree. Not a place for control flow: each class is something a caller may catch.

```
DooersError                     anything below; `.code` is what a client sees on the wire
├── ConfigError                 a wrong WorkerConfig or settings schema        (also a ValueError)
├── SignatureError              a handler or provider that cannot be injected  (also a TypeError)
├── ProtocolError               INVALID_FRAME: a frame that cannot be read; carries `.path` and `.frame_id`
├── NotConnectedError           NOT_CONNECTED
├── AlreadyConnectedError       ALREADY_CONNECTED
├── UnauthenticatedError        UNAUTHENTICATED: who are you
├── ForbiddenError              FORBIDDEN: you, but not this
├── NotFoundError               NOT_FOUND: absent, or of another tenant (the two look the same)
├── InvalidValueError           INVALID_VALUE: well formed, but not allowed here (also a ValueError)
├── InvalidCursorError          INVALID_CURSOR
├── ReadOnlyError               READONLY: a settings field that people may not change
├── InternalFieldError          INTERNAL: a settings field that is not for clients
├── NotConfiguredError          NOT_CONFIGURED: asked for what this worker does not have
├── TooLargeError               TOO_LARGE
├── ThreadBusyError             THREAD_BUSY
├── ClosingError                CLOSING: the worker ends, or starts anew; try again in a moment
├── RateLimitedError            RATE_LIMITED: too much at once; carries `.retry_after`, seconds
├── StoreError                  SERVER_ERROR: the database did not do it
├── DisconnectedError           a client's connection is gone, or was never there   (also a ConnectionError)
├── NoAnswerError               a client's connection stands, but nothing came      (also a TimeoutError)
├── DispatchError               dispatch() failed before the handler ran; the cause is `__cause__`
└── HandlerError                the handler raised; the cause is `.original`
```
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "AlreadyConnectedError",
    "ClosingError",
    "ConfigError",
    "DisconnectedError",
    "DispatchError",
    "DooersError",
    "ForbiddenError",
    "HandlerError",
    "InternalFieldError",
    "InvalidCursorError",
    "InvalidValueError",
    "NoAnswerError",
    "NotConfiguredError",
    "NotConnectedError",
    "NotFoundError",
    "ProtocolError",
    "RateLimitedError",
    "ReadOnlyError",
    "SignatureError",
    "StoreError",
    "ThreadBusyError",
    "TooLargeError",
    "UnauthenticatedError",
]


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60


def quoted(value: object, limit: int = 60) -> str:
    """A value as errors quote it: cut to `limit` characters, and never itself an error (huge numbers and deep nests have no repr)."""
    try:
        if isinstance(value, list | tuple | dict | set | frozenset):
            return _short.repr(value)[:limit]  # the repr of a million items would be written out, only to be cut
        return repr(value[:limit] if isinstance(value, str | bytes) else value)[:limit]
    except Exception:
        return f"a {type(value).__name__}"


def meant(name: object, known: Iterable[str], otherwise: str = "") -> str:
    """What an error adds to a name that is not known: the nearest one that is, or `otherwise`."""
    near = get_close_matches(str(name)[:100], list(known), 1)
    return f" (did you mean {near[0]!r}?)" if near else otherwise


def told(what: str, error: BaseException, error_id: str, *, expose: bool) -> str:
    """What people are told of an error that is not theirs: a safe text and the number under which the log has the rest.

    An exception's text may hold anything, connection strings and keys included, so only a developer's `expose` lets it out.
    """
    if expose:
        return f"{what} {quoted(error, 1000)} (error {error_id})"
    return f"{what} If it happens again, mention this number: {error_id}"


class DooersError(Exception):
    """The root of the tree. `.code` is stable and is what goes on the wire."""

    code = "SERVER_ERROR"


class ConfigError(DooersError, ValueError):
    """A WorkerConfig, environment variable or settings schema that cannot work; raised when it is constructed."""


class SignatureError(DooersError, TypeError):
    """A handler or provider asks for something nobody provides; raised at registration, never in a turn."""


class ProtocolError(DooersError):
    """A frame that is not one of the protocol. `path` leads to the fault, `frame_id` says which frame to refuse."""

    code = "INVALID_FRAME"

    def __init__(self, message: str, *, path: str = "", frame_id: str | None = None, code: str | None = None) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path
        self.frame_id = frame_id
        if code is not None:
            self.code = code


class NotConnectedError(DooersError):
    """A frame that needs an identity came before `connect` was acknowledged."""

    code = "NOT_CONNECTED"


class AlreadyConnectedError(DooersError):
    """A second `connect` on one socket; the first stays in force."""

    code = "ALREADY_CONNECTED"


class UnauthenticatedError(DooersError):
    """The connection was refused by the `@worker.authenticate` hook."""

    code = "UNAUTHENTICATED"


class ForbiddenError(DooersError):
    """Known and in the own tenant, but not allowed."""

    code = "FORBIDDEN"


class NotFoundError(DooersError):
    """Absent, or not for this identity. On purpose the two cannot be told apart."""

    code = "NOT_FOUND"


class InvalidValueError(DooersError, ValueError):
    """A value of the right shape that is not allowed where it stands."""

    code = "INVALID_VALUE"


class InvalidCursorError(InvalidValueError):
    """A paging cursor that this thread or list did not hand out."""

    code = "INVALID_CURSOR"


class ReadOnlyError(DooersError):
    """A settings field that is shown to people but cannot be changed by them."""

    code = "READONLY"


class InternalFieldError(DooersError):
    """A settings field that is not for clients at all."""

    code = "INTERNAL"


class NotConfiguredError(DooersError):
    """Something this worker has not been given, for example a settings schema or a handler."""

    code = "NOT_CONFIGURED"


class TooLargeError(DooersError):
    """Over one of the limits of WorkerConfig."""

    code = "TOO_LARGE"


class ThreadBusyError(DooersError):
    """The thread's queue of waiting turns is full."""

    code = "THREAD_BUSY"


class ClosingError(DooersError):
    """The worker is closing and takes nothing new. Nothing was done: the same works in a moment, here or in another process."""

    code = "CLOSING"

    def __init__(self, message: str = "the worker is closing; try again in a moment") -> None:
        super().__init__(message)


class RateLimitedError(DooersError):
    """More at once than one identity may have. What was asked was not done; `retry_after` says in how many seconds to ask again."""

    code = "RATE_LIMITED"

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StoreError(DooersError):
    """The database refused or was not reachable. The driver's exception is `__cause__`; nothing was half written."""


class DispatchError(DooersError):
    """`dispatch()` failed before the handler ran: bad parameters, somebody else's thread, database down.

    Nothing was stored that a retry would repeat. The reason is `__cause__`.
    """

    def __init__(self, message: str, *, code: str = "SERVER_ERROR") -> None:
        super().__init__(message)
        self.code = code


class HandlerError(DooersError):
    """The handler raised while it ran.

    By then the turn is over and recorded: logged, its run marked failed, an error notice in the thread.
    `.original` is the handler's own exception.
    """

    def __init__(self, message: str, original: BaseException) -> None:
        super().__init__(message)
        self.original = original


class DisconnectedError(DooersError, ConnectionError):
    """The worker cannot be reached, or the connection to it is gone. `close_code` is the WebSocket's, where there was one."""

    code = "DISCONNECTED"

    def __init__(self, message: str, close_code: int | None = None) -> None:
        super().__init__(message)
        self.close_code = close_code


class NoAnswerError(DooersError, TimeoutError):
    """The connection stands, but nothing came in time."""

    code = "NO_ANSWER"
