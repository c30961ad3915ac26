"""OpenTelemetry for a worker: a span and two measurements for each turn, and what `worker.stats()` tells as metrics.

    from dooers_contrib.opentelemetry import instrument

    instrument(worker)

By public hooks only: `@worker.around` and `worker.stats()`. Whatever a handler does inside its turn, a model's call that is traced by its
own instrumentation for one, becomes a child of the turn's span. Nothing of what people write is recorded, and who they are only if
asked for; the exceptions of handlers are, with their texts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import Any, Literal, TypeAlias
from weakref import WeakSet, ref

from attrs import frozen

from dooers import ConfigError, WorkerContext, WorkerIncoming, WorkerServer, WorkerStats, __version__

try:
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation, get_meter
    from opentelemetry.trace import SpanKind, TracerProvider, get_tracer
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError("pip install 'dooers-workers-server[opentelemetry]'", name=missing.name) from None

__all__ = ["METRICS", "Metric", "instrument"]

Kind: TypeAlias = Literal["now", "so far"]


@frozen
class Metric:
    """How a field of `WorkerStats` is told: a number of the moment becomes an up-down counter, one that only grows a counter."""

    field: str
    kind: Kind
    unit: str
    says: str

    @property
    def name(self) -> str:
        """What the instrument is called."""
        return f"dooers.{self.field.replace('_', '.', 1)}"


METRICS = (
    Metric("sessions", "now", "{connection}", "Connections that are open"),
    Metric("connections", "so far", "{connection}", "Connections that were opened"),
    Metric("readers_dropped", "so far", "{connection}", "Connections closed because nobody read from them"),
    Metric("subscriptions", "now", "{subscription}", "Subscriptions of connections to threads"),
    Metric("threads_followed", "now", "{thread}", "Threads that somebody is subscribed to"),
    Metric("frames_in", "so far", "{frame}", "Frames that came from clients"),
    Metric("frames_out", "so far", "{frame}", "Frames that were sent to clients"),
    Metric("deltas_dropped", "so far", "{frame}", "Pieces of messages that slow readers did without"),
    Metric("outbox_frames", "now", "{frame}", "Frames that wait to be sent"),
    Metric("outbox_size", "now", "{character}", "Size of the frames that wait to be sent"),
    Metric("outbox_longest", "now", "{frame}", "Frames that wait for the slowest reader"),
    Metric("turns_running", "now", "{turn}", "Turns that are at work"),
    Metric("turns_waiting", "now", "{turn}", "Turns that wait for their place in a thread"),
    Metric("turns_succeeded", "so far", "{turn}", "Turns that ended well"),
    Metric("turns_failed", "so far", "{turn}", "Turns whose handler failed or took too long"),
    Metric("turns_canceled", "so far", "{turn}", "Turns that were stopped"),
    Metric("lanes", "now", "{thread}", "Threads in which a turn runs or waits"),
    Metric("identities", "now", "{identity}", "Identities whose use is counted"),
    Metric("catching_up", "now", "{thread}", "Threads of which something was missed and is being read"),
    Metric("ends_waiting", "now", "{turn}", "Ends of turns that wait for a database that is away"),
    Metric("commits", "so far", "{transaction}", "Transactions of the database that held changes"),
    Metric("changes", "so far", "{change}", "Changes that were stored"),
    Metric("analytics_waiting", "now", "{event}", "Analytics events that wait for the webhook"),
    Metric("analytics_delivered", "so far", "{event}", "Analytics events that the webhook has taken"),
    Metric("analytics_dropped", "so far", "{event}", "Analytics events that were given up"),
    Metric("analytics_failures", "so far", "{attempt}", "Requests to the webhook that failed"),
)

_instrumented: WeakSet[WorkerServer] = WeakSet()


def instrument(
    worker: WorkerServer,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    people: bool = False,
) -> None:
    """Trace and measure every turn of a worker from now on, and tell its statistics. Once a worker; ConfigError the second time.

    Without providers the global ones are used. With `people` spans say whose turn it is: organization, workspace and user.
    """
    if worker in _instrumented:
        raise ConfigError("this worker is instrumented already")
    _instrumented.add(worker)
    meter = get_meter("dooers", __version__, meter_provider)
    _around_turns(worker, tracer_provider, meter, people)
    _tell_statistics(worker, meter)


def _around_turns(worker: WorkerServer, tracer_provider: TracerProvider | None, meter: Meter, people: bool) -> None:
    tracer = get_tracer("dooers", __version__, tracer_provider)
    duration = meter.create_histogram("dooers.turn.duration", "s", "From a handler's begin to its end")
    wait = meter.create_histogram("dooers.turn.wait", "s", "From a message that is stored to its handler's begin")

    @worker.around
    def traced(incoming: WorkerIncoming) -> Iterator[None]:
        context = incoming.context
        about: dict[str, Any] = {"dooers.worker.id": context.worker_id, "dooers.handler": context.handler}
        wait.record(context.waited, about)
        began, outcome = perf_counter(), "succeeded"
        with tracer.start_as_current_span(
            f"turn {context.handler}", kind=SpanKind.CONSUMER, attributes=about | _whose(context, people)
        ) as span:
            try:
                yield
            except asyncio.CancelledError:
                # Not an error: somebody asked for it. (A handler that takes too long is cancelled as well.)
                outcome = "canceled"
                raise
            except BaseException as error:
                outcome = "failed"
                span.set_attribute("error.type", type(error).__qualname__)
                raise
            finally:
                span.set_attribute("dooers.outcome", outcome)
                duration.record(perf_counter() - began, about | {"dooers.outcome": outcome})


def _whose(context: WorkerContext, people: bool) -> dict[str, Any]:
    about = {
        # The semantic conventions' word for what we call a thread.
        "gen_ai.conversation.id": context.thread_id,
        "dooers.event.id": context.event_id,
        "dooers.waited": context.waited,
    }
    if people:
        about |= {
            "dooers.organization.id": context.organization_id,
            "dooers.workspace.id": context.workspace_id,
            "user.id": context.user_id,
        }
    return about


def _tell_statistics(worker: WorkerServer, meter: Meter) -> None:
    # Instruments live as long as their provider, which must not keep a worker that nobody else keeps.
    its, labels = ref(worker), {"dooers.worker.id": worker.config.worker_id}

    def telling(metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            if (alive := its()) is not None:
                yield Observation(_value(alive.stats(), metric), labels)

        return observe

    for metric in METRICS:
        make = meter.create_observable_up_down_counter if metric.kind == "now" else meter.create_observable_counter
        make(metric.name, [telling(metric)], metric.unit, metric.says)


def _value(stats: WorkerStats, metric: Metric) -> int:
    value: int = getattr(stats, metric.field)
    return value
