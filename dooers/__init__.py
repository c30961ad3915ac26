"""Put an AI agent behind a chat: one handler, two doors, conversations kept, people kept apart.

To read the code, begin with `models` (the words) and `turn` (what a yielded event alters), then follow a Change: `runner` stores
and publishes it, `broadcast` brings it to people. `server` is the face, `docs/architecture.md` the plan of the house.
"""

from dooers.analytics import AnalyticsBatch, AnalyticsEvent, AnalyticsEventPayload, FeedbackData
from dooers.config import WorkerConfig
from dooers.content import check_content
from dooers.context import WorkerAnalytics, WorkerContext, WorkerIncoming, WorkerMemory, WorkerSettings
from dooers.dispatch import DispatchStream
from dooers.exceptions import (
    AlreadyConnectedError,
    ClosingError,
    ConfigError,
    DisconnectedError,
    DispatchError,
    DooersError,
    ForbiddenError,
    HandlerError,
    InternalFieldError,
    InvalidCursorError,
    InvalidValueError,
    NoAnswerError,
    NotConfiguredError,
    NotConnectedError,
    NotFoundError,
    ProtocolError,
    RateLimitedError,
    ReadOnlyError,
    SignatureError,
    StoreError,
    ThreadBusyError,
    TooLargeError,
    UnauthenticatedError,
)
from dooers.history import HistoryFormat
from dooers.models import (
    Actor,
    ContentPart,
    DocumentPart,
    EventType,
    Identity,
    ImagePart,
    Metadata,
    Operation,
    Run,
    RunStatus,
    TextPart,
    Thread,
    ThreadEvent,
    User,
)
from dooers.predecessor import BroadcastManager, ConnectionRegistry, Handler, Persistence
from dooers.predecessor import inner as _inner
from dooers.protocol import VERSION as _version
from dooers.repository import Repository
from dooers.schema import (
    Help,
    Internal,
    Label,
    Number,
    Placeholder,
    ReadOnly,
    Secret,
    SettingsField,
    SettingsFieldGroup,
    SettingsFieldType,
    SettingsSchema,
    SettingsSelectOption,
    Text,
)
from dooers.send import WorkerEvent, WorkerSend
from dooers.server import WorkerServer
from dooers.session import AuthRequest
from dooers.stats import WorkerStats

__version__ = _version
# Not `def __getattr__`: type checkers would then take any name for one of ours.
globals()["__getattr__"] = _inner

__all__ = [
    "Actor",
    "AlreadyConnectedError",
    "AnalyticsBatch",
    "AnalyticsEvent",
    "AnalyticsEventPayload",
    "AuthRequest",
    "BroadcastManager",
    "ClosingError",
    "ConfigError",
    "ConnectionRegistry",
    "ContentPart",
    "DisconnectedError",
    "DispatchError",
    "DispatchStream",
    "DocumentPart",
    "DooersError",
    "EventType",
    "FeedbackData",
    "ForbiddenError",
    "Handler",
    "HandlerError",
    "Help",
    "HistoryFormat",
    "Identity",
    "ImagePart",
    "Internal",
    "InternalFieldError",
    "InvalidCursorError",
    "InvalidValueError",
    "Label",
    "Metadata",
    "NoAnswerError",
    "NotConfiguredError",
    "NotConnectedError",
    "NotFoundError",
    "Number",
    "Operation",
    "Persistence",
    "Placeholder",
    "ProtocolError",
    "RateLimitedError",
    "ReadOnly",
    "ReadOnlyError",
    "Repository",
    "Run",
    "RunStatus",
    "Secret",
    "SettingsField",
    "SettingsFieldGroup",
    "SettingsFieldType",
    "SettingsSchema",
    "SettingsSelectOption",
    "SignatureError",
    "StoreError",
    "Text",
    "TextPart",
    "Thread",
    "ThreadBusyError",
    "ThreadEvent",
    "TooLargeError",
    "UnauthenticatedError",
    "User",
    "WorkerAnalytics",
    "WorkerConfig",
    "WorkerContext",
    "WorkerEvent",
    "WorkerIncoming",
    "WorkerMemory",
    "WorkerSend",
    "WorkerServer",
    "WorkerSettings",
    "WorkerStats",
    "check_content",
]
