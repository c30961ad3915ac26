"""An agent of Pydantic AI behind a chat: its dependencies are typed, and which model it asks is a setting.

pip install 'dooers-workers-server[cli,pydantic-ai]'
export OPENAI_API_KEY=...
dooers run examples.pydantic_ai_agent:worker
dooers chat                      (ask where your order is)
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

from dooers_contrib import pydantic_ai
from openai import AsyncOpenAI
from pydantic_ai import Agent, RunContext
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from dooers import Identity, WorkerConfig, WorkerEvent, WorkerIncoming, WorkerMemory, WorkerSend, WorkerServer

worker = WorkerServer(
    WorkerConfig(database_type="sqlite", database_name="pydantic_ai_agent.db", assistant_name="Order desk")
)


@worker.settings
@dataclass
class Settings:
    model: Literal["gpt-4o-mini", "gpt-4o"] = "gpt-4o-mini"


@dataclass
class Customer:
    """Who asks, for the agent and its tools."""

    name: str
    orders: dict[int, str]


@worker.provide  # made anew for every turn: it depends on whose turn it is
async def customer(identity: Identity) -> Customer:
    return Customer(identity.user_name or identity.user_id, {7: "on its way"})  # stands where a database would be asked


@worker.provide(scope="worker")  # made when it is first needed, closed with the worker
async def provider() -> AsyncIterator[OpenAIProvider]:
    async with AsyncOpenAI() as client:
        yield OpenAIProvider(openai_client=client)


agent = Agent(deps_type=Customer)


@agent.instructions
def instructions(context: RunContext[Customer]) -> str:
    return f"You help {context.deps.name} with their orders. Look them up, do not guess."


@agent.tool
async def get_order(context: RunContext[Customer], number: int) -> dict[str, Any]:
    """Where an order is."""
    return {"number": number, "state": context.deps.orders.get(number, "unknown")}


@worker.handler
async def desk(
    incoming: WorkerIncoming,
    send: WorkerSend,
    memory: WorkerMemory,
    settings: Settings,
    customer: Customer,
    provider: OpenAIProvider,
) -> AsyncIterator[WorkerEvent]:
    yield send.run_start()
    history = pydantic_ai.history(await memory.get_history(limit=20, format="openai"))
    model = OpenAIChatModel(settings.model, provider=provider)
    async with agent.run_stream_events(message_history=history, deps=customer, model=model) as events:
        async for event in pydantic_ai.answer(send, events):
            yield event
    if incoming.context.thread_title is None:
        yield send.update_thread(title=incoming.message[:60])
    yield send.run_end()
