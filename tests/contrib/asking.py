"""A worker with one handler is asked one thing: what people saw of it live, what is stored, and how the run ended. Not a test."""

from __future__ import annotations

from asyncio import Event, timeout
from collections.abc import AsyncIterator, Callable
from typing import Any

from attrs import frozen

from dooers import HandlerError, WorkerConfig, WorkerEvent, WorkerServer

__all__ = ["WHO", "Turn", "ask", "leave", "stop"]

WHO: dict[str, Any] = {"organization_id": "org", "workspace_id": "main", "user_id": "alice"}


@frozen
class Turn:
    """What became of it. `told` is what the caller of dispatch got, without the run's begin and end."""

    pieces: list[str]
    told: list[WorkerEvent]
    stored: list[Any]
    status: str | None
    error: BaseException | None

    @property
    def texts(self) -> list[str]:
        """The messages of the assistant."""
        return [event.text for event in self.stored if event.type == "message" and event.actor == "assistant"]

    @property
    def cut_off(self) -> list[bool]:
        """Which of them are marked as incomplete."""
        return [
            (event.data or {}).get("incomplete", False)
            for event in self.stored
            if event.type == "message" and event.actor == "assistant"
        ]

    @property
    def story(self) -> list[Any]:
        """What the assistant's side of the thread holds, in order: texts, calls and results with the id of their call."""
        return [
            event.text if event.type == "message" else (event.type.removeprefix("tool."), event.data["id"])
            for event in self.stored
            if event.actor == "assistant"
        ]

    @property
    def authors(self) -> list[Any]:
        """Whose the messages are."""
        return [event.author for event in self.stored if event.type == "message" and event.actor == "assistant"]

    @property
    def tools(self) -> list[tuple[str, Any]]:
        """Tool events: the type, and what they hold."""
        return [(event.type, event.data) for event in self.stored if event.type.startswith("tool.")]


async def ask(config: WorkerConfig, handler: Callable[..., AsyncIterator[WorkerEvent]], message: str = "Well?") -> Turn:
    """Ask, and wait for the whole answer. The run is opened and closed around the handler."""
    worker = WorkerServer(config)

    @worker.handler
    async def agent(incoming: Any, send: Any, memory: Any, analytics: Any) -> AsyncIterator[WorkerEvent]:
        yield send.run_start()
        async for event in handler(send):
            yield event

    async with worker.lifespan():
        stream = await worker.dispatch(message=message, **WHO)
        events, error = [], None
        try:
            async for event in stream.events(deltas=True):
                events.append(event)
        except HandlerError as failed:
            error = failed.original
        repository = await worker.repository()
        stored = await repository.list_events({"thread_id": stream.thread_id}, {"direction": "asc"})
        [run] = await repository.list_runs({"thread_id": stream.thread_id})
    pieces = [event.data["text"] for event in events if event.send_type == "delta"]
    told = [event for event in events if event.send_type not in ("delta", "run_start", "run_end")]
    return Turn(pieces, told, stored[1:], run.status, error)


async def stop(
    config: WorkerConfig, handler: Callable[..., AsyncIterator[WorkerEvent]], begun: Event | None = None
) -> list[Any]:
    """Ask, and stop the turn when `begun` is set, or a piece of text was seen. The assistant's texts that are stored."""
    worker = WorkerServer(config)

    @worker.handler
    async def agent(send: Any) -> AsyncIterator[WorkerEvent]:
        yield send.run_start()
        async for event in handler(send):
            yield event

    async with worker.lifespan(), timeout(30):
        stream = await worker.dispatch(message="Well?", **WHO)
        if begun is None:
            events = stream.events(deltas=True)
            while (await anext(events)).send_type != "delta":
                pass
        else:
            stream.detach()
            await begun.wait()
        assert await worker.cancel(thread_id=stream.thread_id) == 1
        assert stream.status == "canceled"
        repository = await worker.repository()
        stored = await repository.list_events({"thread_id": stream.thread_id}, {"direction": "asc"})
    return [event.text for event in stored if event.type == "message" and event.actor == "assistant"]


async def leave(config: WorkerConfig, handler: Callable[..., AsyncIterator[WorkerEvent]], at: str) -> None:
    """Ask, and go away while the handler stands at the `yield` of an event of this kind."""
    worker = WorkerServer(config)
    worker.handler(handler)
    async with worker.lifespan(), timeout(30):
        stream = await worker.dispatch(message="Well?", **WHO)
        events = aiter(stream)
        while (await anext(events)).send_type != at:
            pass
        await events.aclose()  # type: ignore[attr-defined]
        assert stream.status == "canceled"
