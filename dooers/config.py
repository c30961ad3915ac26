"""WorkerConfig: every knob of a worker, checked when it is constructed. Reads the environment once, opens nothing."""

from __future__ import annotations

import os
import re
from base64 import b64decode, urlsafe_b64decode
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from attrs import Attribute, Factory, field, fields, frozen

from dooers.exceptions import ConfigError, meant, quoted
from dooers.models import Operation
from dooers.schema import SettingsSchema

__all__ = ["ORDERS", "DatabaseType", "SslMode", "TurnOrder", "WorkerConfig", "signing_key"]

DatabaseType: TypeAlias = Literal["postgres", "sqlite", "cosmos", "memory"]
TurnOrder: TypeAlias = Literal["queue", "parallel", "reject", "replace"]
ORDERS: tuple[str, ...] = get_args(TurnOrder)
# PostgreSQL's own words: "require" encrypts and does not ask who is there, "verify-full" asks.
SslMode: TypeAlias = Literal["disable", "prefer", "require", "verify-ca", "verify-full"]

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")
_PREFIX = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}|")

Validator: TypeAlias = Callable[[Any, "Attribute[Any]", Any], None]


_SECRET = (
    "database_password",
    "database_key",
    "settings_encryption_key",
    # An address may hold a token, and who knows it may post there.
    "analytics_webhook_url",
    "analytics_webhook_secret",
)


def _wrong(attribute: Attribute[Any], expected: str, value: Any, hint: str = "") -> ConfigError:
    got = f"a {type(value).__name__} that is not shown" if attribute.name in _SECRET else quoted(value)
    return ConfigError(f"WorkerConfig.{attribute.name}: expected {expected}, got {got}{hint}")


def _of(*types: type) -> Validator:
    def check(_: Any, attribute: Attribute[Any], value: Any) -> None:
        # bool is an int to isinstance, but `database_port=True` is a mistake.
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            names = " or ".join("None" if t is type(None) else t.__name__ for t in types)
            raise _wrong(attribute, names, value)

    return check


def _at_least(low: float, *types: type) -> Validator:
    typed = _of(*(types or (int,)))

    def check(instance: Any, attribute: Attribute[Any], value: Any) -> None:
        typed(instance, attribute, value)
        if value is not None and not value >= low:  # NaN is neither below nor above
            raise _wrong(attribute, f"at least {low}", value)

    return check


def _port(instance: Any, attribute: Attribute[Any], value: Any) -> None:
    _of(int)(instance, attribute, value)
    if not 1 <= value <= 65535:
        raise _wrong(attribute, "a port from 1 to 65535", value)


def _prefix(instance: Any, attribute: Attribute[Any], value: Any) -> None:
    _of(str)(instance, attribute, value)
    if not _PREFIX.fullmatch(value):
        raise _wrong(attribute, "letters, digits and underscores (at most 40, no digit first)", value)


def _one_of(known: tuple[str, ...]) -> Validator:
    def check(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if value not in known:
            hint = meant(str(value).lower().replace("postgresql", "postgres"), known)
            raise _wrong(attribute, f"one of {', '.join(known)}", value, hint)

    return check


def _schema(_: Any, attribute: Attribute[Any], value: Any) -> None:
    if value is not None and not isinstance(value, SettingsSchema):
        hint = "; a settings class goes to @worker.settings" if isinstance(value, type) else ""
        raise _wrong(attribute, "a SettingsSchema", value, hint)


def _url(instance: Any, attribute: Attribute[Any], value: Any) -> None:
    _of(str, type(None))(instance, attribute, value)
    if value is not None and not value.startswith(("http://", "https://")):
        raise _wrong(attribute, "an http(s) URL", value)


def _file(instance: Any, attribute: Attribute[Any], value: Any) -> None:
    _of(str, type(None))(instance, attribute, value)
    if value is not None and not Path(value).is_file():
        raise _wrong(attribute, "the path of a file that is there", value)


def _origins(instance: Any, attribute: Attribute[Any], value: Any) -> None:
    for origin in value or ():
        if not isinstance(origin, str) or not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin):
            raise _wrong(attribute, "origins such as 'https://app.example.com' (scheme and host, no path)", origin)


def _encryption_keys(_: Any, attribute: Attribute[Any], value: tuple[str, ...]) -> None:
    for key in value:
        try:
            fits = isinstance(key, str) and len(urlsafe_b64decode(key)) == 32
        except ValueError:
            fits = False
        if not fits:
            make = 'python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'
            raise _wrong(attribute, "Fernet keys (32 bytes in URL-safe base64)", key, f"; make one: {make}")


def signing_key(secret: str) -> bytes:
    """The bytes of a webhook's secret: base64 after `whsec_`, as the Standard Webhooks have it, else the text. ValueError for no base64."""
    if not secret.startswith("whsec_"):
        return secret.encode()
    text = secret.removeprefix("whsec_")
    return b64decode(text + "=" * (-len(text) % 4), validate=True)


def _webhook_secrets(_: Any, attribute: Attribute[Any], value: tuple[str, ...]) -> None:
    for secret in value:
        try:
            fits = isinstance(secret, str) and bool(signing_key(secret))
        except ValueError:
            fits = False
        if not fits:
            raise _wrong(attribute, "a text, or base64 after whsec_", secret)


def _permissions(_: Any, attribute: Attribute[Any], value: Mapping[str, frozenset[str]]) -> None:
    known = get_args(Operation)
    for operation, roles in value.items():
        if operation not in known:
            raise _wrong(attribute, f"operations of {', '.join(known)}", operation, meant(operation, known))
        if any(not isinstance(role, str) or not role for role in roles):
            raise _wrong(attribute, f"names of roles for {operation!r}", sorted(map(repr, roles)))


def _texts(value: Any) -> Any:
    """One text, or several, as a tuple; anything else is left for the validator to refuse."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, Iterable) else () if value is None else (value,)


def _maybe_texts(value: Any) -> Any:
    return None if value is None else _texts(value)


def _roles(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"WorkerConfig.permissions: expected a mapping from operations to roles, got {quoted(value)}")
    return {operation: frozenset(_texts(roles)) for operation, roles in value.items()}


def _environment(variable: str, default: Any, parse: Callable[[str], Any] = str) -> Any:
    """A default that the environment may replace; what is passed to WorkerConfig goes before both."""

    def read() -> Any:
        text = os.environ.get(variable)
        if text is None:
            return default
        try:
            return parse(text)
        except ValueError:
            raise ConfigError(
                f"{variable}: expected {parse.__name__.strip('_').replace('_', ' ')}, got {quoted(text)}"
            ) from None

    return Factory(read)


def _bool(text: str) -> bool:
    word = text.strip().lower()
    if word not in _TRUE + _FALSE:
        raise ValueError(word)
    return word in _TRUE


def _bool_or_mode(text: str) -> Any:
    return text.strip() if text.strip() in get_args(SslMode) else _bool(text)


def _ssl(instance: Any, attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, bool):
        _one_of(("True", "False", *get_args(SslMode)))(instance, attribute, value)


def _masked(value: Any) -> str:
    return "None" if value is None else "'***'"


def _url_without_password(url: str | None) -> str:
    # As far as the last @, whatever stands before it; and passwords may be in the query too.
    return repr(url if url is None else re.sub(r"\?.*", "?***", re.sub(r"//.*@", "//***@", url)))


@frozen(kw_only=True)
class WorkerConfig:
    """How a worker is set up. Wrong values raise ConfigError here, not later.

    Durations are seconds, sizes are bytes. `database_host, _port, _user, _name, _password, _key, _ssl` and `_ssl_ca` fall back
    to `WORKER_DATABASE_HOST` and so on, `settings_encryption_key` and `analytics_webhook_secret` to `WORKER_SETTINGS_ENCRYPTION_KEY`
    and `WORKER_ANALYTICS_WEBHOOK_SECRET`, then to the default; what you pass wins. `docs/security.md` has the table of all limits.
    """

    # Which database. For sqlite `database_name` is the path of the file (":memory:" keeps it in this process).
    database_type: DatabaseType = field(default="postgres", validator=_one_of(get_args(DatabaseType)))
    database_host: str = field(default=_environment("WORKER_DATABASE_HOST", "localhost"), validator=_of(str))
    database_port: int = field(default=_environment("WORKER_DATABASE_PORT", 5432, int), validator=_port)
    database_user: str = field(default=_environment("WORKER_DATABASE_USER", "postgres"), validator=_of(str))
    database_name: str = field(default=_environment("WORKER_DATABASE_NAME", ""), validator=_of(str))
    database_password: str = field(
        default=_environment("WORKER_DATABASE_PASSWORD", ""), validator=_of(str), repr=_masked
    )
    database_key: str = field(default=_environment("WORKER_DATABASE_KEY", ""), validator=_of(str), repr=_masked)
    # True is "verify-full": encrypted, and the server must prove its name. `database_ssl_ca`: a PEM file of your own authority.
    database_ssl: bool | SslMode = field(
        default=_environment("WORKER_DATABASE_SSL", False, _bool_or_mode), validator=_ssl
    )
    database_ssl_ca: str | None = field(default=_environment("WORKER_DATABASE_SSL_CA", None), validator=_file)
    # PostgreSQL: bounds of the pool of each process; no prepared statements (0) behind pgbouncer in transaction mode.
    database_pool_min: int = field(default=1, validator=_at_least(0))
    database_pool_max: int = field(default=10, validator=_at_least(2))
    database_statement_cache: int = field(default=100, validator=_at_least(0))
    # Seconds that one call may take: a statement, a connection, and with SQLite as long as another process may hold the file.
    database_timeout: float = field(default=10.0, validator=_at_least(0.01, int, float))
    database_table_prefix: str = field(default="worker_", validator=_prefix)
    database_auto_migrate: bool = field(default=True, validator=_of(bool))

    # How several processes hear of each other: redis://..., or by default whatever the database brings along.
    broker_url: str | None = field(
        default=_environment("WORKER_BROKER_URL", None), validator=_of(str, type(None)), repr=_url_without_password
    )
    # A running turn says every `run_heartbeat` seconds that it lives; one that has not for `run_timeout` is dead, and its run failed.
    run_heartbeat: float = field(default=2.0, validator=_at_least(0.01, int, float))
    run_timeout: float = field(default=6.0, validator=_at_least(0.02, int, float))

    # Who answers.
    worker_id: str = field(default="worker", validator=_of(str))
    assistant_name: str = field(default="Assistant", validator=_of(str))
    settings_schema: SettingsSchema | None = field(default=None, validator=_schema)
    private_threads: bool = field(default=False, validator=_of(bool))

    # Who may do what: operations that only some roles have, e.g. {"settings.patch": "admin"}. Anything else, everybody may.
    permissions: Mapping[Operation, Collection[str]] = field(factory=dict, converter=_roles, validator=_permissions)
    # The pages that may open a WebSocket, by their origin. None: any. What sends no Origin is no browser, and not kept out by this.
    allowed_origins: Collection[str] | None = field(default=None, converter=_maybe_texts, validator=_origins)
    # Fernet keys for passwords in the database: the first encrypts, all decrypt. Empty: they are kept in clear.
    settings_encryption_key: str | Iterable[str] | None = field(
        default=_environment("WORKER_SETTINGS_ENCRYPTION_KEY", None),
        converter=_texts,
        validator=_encryption_keys,
        repr=_masked,
    )
    # For development: people see what went wrong, not only a number to look it up in the log by.
    expose_errors: bool = field(default=False, validator=_of(bool))

    # Analytics. Without a URL nothing ever leaves the process.
    analytics_enabled: bool = field(default=True, validator=_of(bool))
    analytics_webhook_url: str | None = field(default=None, validator=_url, repr=_masked)
    # Signs each batch by the Standard Webhooks scheme. Several, in a tuple or with commas between: a signature of each, to change from
    # an old one to a new one. Empty: nothing is signed.
    analytics_webhook_secret: str | Iterable[str] | None = field(
        default=_environment("WORKER_ANALYTICS_WEBHOOK_SECRET", None),
        converter=_texts,
        validator=_webhook_secrets,
        repr=_masked,
    )
    analytics_batch_size: int = field(default=10, validator=_at_least(1))
    analytics_flush_interval: float = field(default=5.0, validator=_at_least(0.01, int, float))

    # Limits on what a client can make grow. An identity's connections count together; people without a user_id count one by one.
    max_frame_bytes: int = field(default=4 * 1024 * 1024, validator=_at_least(1024))
    max_content_parts: int = field(default=100, validator=_at_least(1))
    max_text_length: int = field(default=200_000, validator=_at_least(1))
    max_data_url_bytes: int = field(default=2 * 1024 * 1024, validator=_at_least(0))
    max_setting_bytes: int = field(default=256 * 1024, validator=_at_least(1))
    max_page_size: int = field(default=200, validator=_at_least(1))
    max_connections: int = field(default=10_000, validator=_at_least(1))
    max_connections_per_identity: int = field(default=100, validator=_at_least(1))
    max_subscriptions: int = field(default=1000, validator=_at_least(1))
    max_turns_per_identity: int = field(default=100, validator=_at_least(1))
    frames_per_second: float = field(default=500.0, validator=_at_least(0.01, int, float))
    frames_burst: int = field(default=2000, validator=_at_least(1))
    connect_timeout: float = field(default=30.0, validator=_at_least(0.01, int, float))
    # A connection of which nothing was heard for so long is closed. None: never; dead peers are the server's pings' to find.
    idle_timeout: float | None = field(default=None, validator=_at_least(0.01, int, float, type(None)))
    outbox_frames: int = field(default=10_000, validator=_at_least(16))
    outbox_bytes: int = field(default=16 * 1024 * 1024, validator=_at_least(65536))
    # What becomes of a message whose thread is being answered: it waits, runs beside, is refused, or takes the other's place.
    turn_order: TurnOrder = field(default="queue", validator=_one_of(ORDERS))
    handler_timeout: float | None = field(default=None, validator=_at_least(0.001, int, float, type(None)))
    thread_queue_limit: int = field(default=100, validator=_at_least(1))

    # The turn. `pipeline_depth` is how many changes of one turn may be on their way to the disk while the handler goes on.
    pipeline_depth: int = field(default=32, validator=_at_least(1))
    teardown_timeout: float = field(default=10.0, validator=_at_least(0.01, int, float))
    # A worker that closes lets turns finish for so long, and has then so long for everything else: it has closed within the sum.
    shutdown_grace: float = field(default=10.0, validator=_at_least(0, int, float))
    shutdown_timeout: float = field(default=10.0, validator=_at_least(0.1, int, float))

    def __new__(cls, **values: Any) -> WorkerConfig:
        # attrs would raise a bare TypeError for a misspelt option; this one says what was probably meant.
        for name in values:
            if name not in (known := cls.names()):
                raise ConfigError(f"WorkerConfig has no option {name!r}{meant(name, known)}")
        return object.__new__(cls)

    def __attrs_post_init__(self) -> None:
        if self.run_timeout / self.run_heartbeat < 3 - 1e-9:
            raise ConfigError(
                f"WorkerConfig.run_timeout: expected at least three heartbeats ({3 * self.run_heartbeat:g}), "
                f"got {self.run_timeout}"
            )
        if self.database_pool_min > self.database_pool_max:
            raise ConfigError(
                f"WorkerConfig.database_pool_min: expected at most database_pool_max ({self.database_pool_max}), "
                f"got {self.database_pool_min}"
            )
        if self.database_type == "sqlite" and self.database_table_prefix.lower().startswith("sqlite_"):
            raise ConfigError(
                "WorkerConfig.database_table_prefix: SQLite keeps names that begin with sqlite_ for itself"
            )
        if self.database_type != "memory" and not self.database_name:
            what = "the path of its file" if self.database_type == "sqlite" else "the name of the database"
            raise ConfigError(
                f"WorkerConfig.database_name: {self.database_type} needs {what}; pass it or set WORKER_DATABASE_NAME"
            )

    @classmethod
    def names(cls) -> list[str]:
        """The names of all fields, in the order they are declared."""
        return [attribute.name for attribute in fields(cls)]
