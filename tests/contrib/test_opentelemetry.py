"""Traces and metrics of a worker, as an OpenTelemetry SDK gets them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any
from weakref import ref

import pytest
from attrs import fields
from dooers_contrib.opentelemetry import METRICS, instrument
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from dooers import ConfigError, HandlerError, WorkerConfig, WorkerServer, WorkerStats
from dooers.testing import WorkerClient

WHO: dict[str, Any] = {"organization_id": "o", "workspace_id": "w", "user_id": "u"}


class Telemetry:
    """Everything that was exported."""

    def __init__(self) -> None:
        self._spans, self._metrics = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers, self.meters = TracerProvider(), MeterProvider([self._metrics])
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.tracer = self.tracers.get_tracer("tests")

    def instrument(self, worker: WorkerServer, **more: Any) -> None:
        instrument(worker, tracer_provider=self.tracers, meter_provider=self.meters, **more)

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self._spans.get_finished_spans()}

    def points(self) -> dict[str, Any]:
        """The newest of each metric: numbers, and the counts of histograms by outcome."""
        data = self._metrics.get_metrics_data()
        found: dict[str, Any] = {}
        for resource in data.resource_metrics if data is not None else []:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        labels = dict(point.attributes or {})
                        name = f"{metric.name} {labels.get('dooers.outcome', '')}".strip()
                        found[name] = point.value if hasattr(point, "value") else point.count
        return found


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture
def worker(worker_config: WorkerConfig) -> WorkerServer:
    return WorkerServer(worker_config)


async def test_a_turn_is_a_span_and_what_its_handler_does_a_child_of_it(
    worker: WorkerServer, telemetry: Telemetry
) -> None:
    telemetry.instrument(worker)

    @worker.handler
    async def answer(send: Any) -> AsyncIterator[Any]:
        with telemetry.tracer.start_as_current_span("a model"):
            await asyncio.sleep(0)
        yield send.text("done")
        with telemetry.tracer.start_as_current_span("afterwards"):
            pass

    async with worker.lifespan(), WorkerClient(worker) as client:
        reply = await client.say("secret words")
    turn = next(span for name, span in telemetry.spans.items() if name.endswith("answer"))
    assert turn.context is not None
    for child in ("a model", "afterwards"):
        parent = telemetry.spans[child].parent
        assert parent is not None
        assert parent.span_id == turn.context.span_id
    about = dict(turn.attributes or {})
    assert about["gen_ai.conversation.id"] == reply.thread_id
    assert about["dooers.event.id"] == reply.event_id
    assert (about["dooers.worker.id"], about["dooers.outcome"]) == ("worker", "succeeded")
    assert "secret words" not in str(about)
    assert not [name for name in about if "user" in name or "organization" in name]


async def test_a_dispatched_turn_belongs_to_the_span_of_its_caller(worker: WorkerServer, telemetry: Telemetry) -> None:
    telemetry.instrument(worker, people=True)

    @worker.handler
    async def answer() -> str:
        return "done"

    async with worker.lifespan():
        with telemetry.tracer.start_as_current_span("request") as request:
            await (await worker.dispatch(message="hi", **WHO)).collect()
    turn = next(span for name, span in telemetry.spans.items() if name.endswith("answer"))
    assert turn.parent is not None
    assert turn.parent.span_id == request.get_span_context().span_id
    assert (turn.attributes or {})["user.id"] == "u"


async def test_failures_and_stops_are_told_apart(worker: WorkerServer, telemetry: Telemetry) -> None:
    telemetry.instrument(worker)
    at_work = asyncio.Event()

    async def fails() -> str:
        raise ValueError("no")

    async def waits() -> str:
        at_work.set()
        return str(await asyncio.Event().wait())

    async with worker.lifespan():
        with pytest.raises(HandlerError):
            await (await worker.dispatch(fails, message="hi", **WHO)).collect()
        stream = await worker.dispatch(waits, message="hi", **WHO)
        stream.detach()
        await at_work.wait()
        await worker.cancel(thread_id=stream.thread_id)
        points = telemetry.points()
    failed, stopped = (next(s for n, s in telemetry.spans.items() if n.endswith(end)) for end in ("fails", "waits"))
    assert (failed.status.status_code, (failed.attributes or {})["error.type"]) == (StatusCode.ERROR, "ValueError")
    assert [event.name for event in failed.events] == ["exception"]
    assert (stopped.status.status_code, (stopped.attributes or {})["dooers.outcome"]) == (StatusCode.UNSET, "canceled")
    assert (points["dooers.turn.duration failed"], points["dooers.turn.duration canceled"]) == (1, 1)
    assert (points["dooers.turns.failed"], points["dooers.turns.canceled"]) == (1, 1)


async def test_statistics_are_metrics(worker: WorkerServer, telemetry: Telemetry) -> None:
    telemetry.instrument(worker)

    @worker.handler
    async def answer() -> str:
        return "done"

    async with worker.lifespan(), WorkerClient(worker) as client:
        await client.say("hi")
        # From another thread, as an exporter does.
        points = await asyncio.to_thread(telemetry.points)
        assert (points["dooers.sessions"], points["dooers.turns.succeeded"], points["dooers.turn.wait"]) == (1, 1, 1)
        assert points["dooers.changes"] >= points["dooers.commits"] > 0


def test_every_statistic_is_told_once() -> None:
    assert [metric.field for metric in METRICS] == list(dict.fromkeys(metric.field for metric in METRICS))
    assert {metric.field for metric in METRICS} == {field.name for field in fields(WorkerStats)}


def test_a_worker_is_instrumented_once_and_not_kept_alive(worker_config: WorkerConfig, telemetry: Telemetry) -> None:
    worker: WorkerServer | None = WorkerServer(worker_config)
    assert worker is not None
    telemetry.instrument(worker)
    with pytest.raises(ConfigError, match="already"):
        telemetry.instrument(worker)
    gone = ref(worker)
    worker = None
    gc.collect()
    assert gone() is None
    assert telemetry.points() == {}
