"""A client of a worker over a real WebSocket, typed, for terminals and services; the test kit speaks through the same core.

```python
async with Client("ws://127.0.0.1:8000/ws", user_id="ana") as client:
    reply = await client.say("hello")
    async for update in client.stream("go on", reply.thread_id):
        if isinstance(update, Delta):
            print(update.text, end="")
```

From the wire up: `connection.py` matches answers to what was asked, `lifeline.py` makes lost connections again, `feeds.py` brings frames to
their readers, `turns.py` knows when an answer is over, `unfolding.py` turns frames into the types of `updates.py`, `talk.py` has the
operations, `web.py` the socket.
"""

from dooers.client.connection import Frame
from dooers.client.updates import (
    Appended,
    Connecting,
    Delta,
    Looked,
    Lost,
    Page,
    Reconnected,
    Reply,
    RunChanged,
    SettingChanged,
    Settings,
    ThreadChanged,
    ThreadDeleted,
    ToolUse,
    Update,
)
from dooers.client.web import Client

__all__ = [
    "Appended",
    "Client",
    "Connecting",
    "Delta",
    "Frame",
    "Looked",
    "Lost",
    "Page",
    "Reconnected",
    "Reply",
    "RunChanged",
    "SettingChanged",
    "Settings",
    "ThreadChanged",
    "ThreadDeleted",
    "ToolUse",
    "Update",
]
