"""Test a worker without a server.

```python
async with WorkerClient(worker, user_id="alice") as client:
    reply = await client.say("hi")
    assert_events(reply, ["hello"])
```

`WorkerClient` speaks the real frames in this process; `FakeModel` stands in for a model; `assert_events` and its words say what an answer
should be; `isolated` keeps the real database out. Fixtures for pytest come with the package, see the page "Testing your worker".
"""

from dooers.client.updates import (
    Appended,
    Delta,
    Looked,
    Lost,
    Reconnected,
    Reply,
    RunChanged,
    ThreadChanged,
    ThreadDeleted,
    ToolUse,
    Update,
)
from dooers.testing.asserting import (
    ExpectationError,
    Expected,
    assert_events,
    assert_succeeded,
    document,
    image,
    notice,
    text,
    tool_call,
    tool_result,
)
from dooers.testing.isolation import isolated
from dooers.testing.model import Answer, Call, FakeModel, Gate, ToolCall
from dooers.testing.worker_client import Closed, WorkerClient

__all__ = [
    "Answer",
    "Appended",
    "Call",
    "Closed",
    "Delta",
    "ExpectationError",
    "Expected",
    "FakeModel",
    "Gate",
    "Looked",
    "Lost",
    "Reconnected",
    "Reply",
    "RunChanged",
    "ThreadChanged",
    "ThreadDeleted",
    "ToolCall",
    "ToolUse",
    "Update",
    "WorkerClient",
    "assert_events",
    "assert_succeeded",
    "document",
    "image",
    "isolated",
    "notice",
    "text",
    "tool_call",
    "tool_result",
]
