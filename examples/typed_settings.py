"""Settings as a class: clients get a form of it, the handler a value with types, and what somebody changes holds from the next message on.

pip install 'dooers-workers-server[cli]'
dooers run examples.typed_settings:worker     (then open http://127.0.0.1:8000, and change something under Settings)
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from dooers import Help, Internal, Label, Number, ReadOnly, Secret, WorkerConfig, WorkerIncoming, WorkerServer

worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name="typed_settings.db"))


@dataclass
class Style:
    """A class within a class is a group of the form."""

    tone: Literal["friendly", "formal"] = "friendly"
    emoji: Annotated[bool, Label("Use emoji")] = False


@worker.settings
@dataclass
class Settings:
    name: Annotated[str, Help("What the assistant calls itself.")] = "Robin"
    words: Annotated[int, Label("Longest answer, in words"), Number(min=1, max=100)] = 50
    version: Annotated[str, ReadOnly()] = "2026.11"
    api_key: Secret = Secret("")  # people may set it; nobody gets it to see again
    budget: Annotated[float, Internal()] = 10.0  # for code only: clients neither see nor change it
    style: Style = field(default_factory=Style)


@worker.handler
async def agent(incoming: WorkerIncoming, settings: Settings) -> str:
    hello = "Good day" if settings.style.tone == "formal" else "Hi"
    key = "with a key" if settings.api_key.reveal() else "without a key"
    words = f"{hello}, I am {settings.name}, {key}. You said: {incoming.message}".split()[: settings.words]
    return " ".join(words) + (" 🙂" if settings.style.emoji else "")
