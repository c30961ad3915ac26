"""WorkerConfig: each option, right and wrong, and where its value comes from."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attrs
import pytest

from dooers import ConfigError, SettingsField, SettingsFieldType, SettingsSchema, WorkerConfig

VARIABLES = {
    "database_host": ("WORKER_DATABASE_HOST", "db.example", "db.example"),
    "database_port": ("WORKER_DATABASE_PORT", "6543", 6543),
    "database_user": ("WORKER_DATABASE_USER", "ann", "ann"),
    "database_name": ("WORKER_DATABASE_NAME", "chats", "chats"),
    "database_password": ("WORKER_DATABASE_PASSWORD", "pw-from-env", "pw-from-env"),
    "database_key": ("WORKER_DATABASE_KEY", "key-from-env", "key-from-env"),
    "database_ssl": ("WORKER_DATABASE_SSL", "true", True),
    "broker_url": ("WORKER_BROKER_URL", "redis://:pw@cache:6379/0", "redis://:pw@cache:6379/0"),
}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, _, _ in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)


def config(**values: Any) -> WorkerConfig:
    return WorkerConfig(**{"database_name": "db", **values})


def test_the_defaults_are_those_of_the_classic_api() -> None:
    made = config()
    assert made.database_type == "postgres"
    assert (made.database_host, made.database_port, made.database_user) == ("localhost", 5432, "postgres")
    assert (made.database_password, made.database_key, made.database_ssl) == ("", "", False)
    assert (made.database_table_prefix, made.database_auto_migrate) == ("worker_", True)
    assert (made.worker_id, made.assistant_name, made.private_threads) == ("worker", "Assistant", False)
    assert (made.analytics_enabled, made.analytics_webhook_url) == (True, None)
    assert (made.analytics_batch_size, made.analytics_flush_interval) == (10, 5.0)
    assert made.max_frame_bytes == 4 * 1024 * 1024
    assert made.max_content_parts == 100


@pytest.mark.parametrize("name", VARIABLES)
def test_the_environment_gives_what_is_not_passed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable, text, value = VARIABLES[name]
    monkeypatch.setenv(variable, text)
    values: dict[str, Any] = {} if name == "database_name" else {"database_name": "db"}
    assert getattr(WorkerConfig(**values), name) == value


@pytest.mark.parametrize(
    ("name", "explicit"),
    [
        ("database_host", "localhost"),
        ("database_port", 5432),
        ("database_user", ""),
        ("database_name", "mine"),
        ("database_password", ""),
        ("database_key", ""),
        ("database_ssl", False),
    ],
)
def test_what_is_passed_wins_over_the_environment_also_when_it_is_empty(
    name: str, explicit: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable, text, _ = VARIABLES[name]
    monkeypatch.setenv(variable, text)
    assert getattr(config(**{name: explicit}), name) == explicit


@pytest.mark.parametrize("text", ["1", "true", "YES", " on ", "True"])
def test_ssl_is_switched_on_by_the_usual_words(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_DATABASE_SSL", text)
    assert config().database_ssl is True


@pytest.mark.parametrize("text", ["0", "false", "No", "off", "", "  "])
def test_ssl_is_switched_off_by_the_usual_words(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_DATABASE_SSL", text)
    assert config().database_ssl is False


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("WORKER_DATABASE_SSL", "maybe", "WORKER_DATABASE_SSL: expected bool or mode, got 'maybe'"),
        ("WORKER_DATABASE_PORT", "five", "WORKER_DATABASE_PORT: expected int, got 'five'"),
        ("WORKER_DATABASE_PORT", "", "WORKER_DATABASE_PORT: expected int, got ''"),
        (
            "WORKER_DATABASE_PORT",
            "70000",
            "WorkerConfig.database_port: expected a port from 1 to 65535, got 70000",
        ),
    ],
)
def test_a_wrong_variable_is_named_with_what_was_expected(
    variable: str, text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigError) as raised:
        config()
    assert str(raised.value) == said


WRONG: list[tuple[str, Any, str]] = [
    ("database_type", "mysql", "one of postgres, sqlite, cosmos, memory, got 'mysql'"),
    ("database_type", None, "one of postgres, sqlite, cosmos, memory, got None"),
    ("database_type", ["sqlite"], "one of postgres, sqlite, cosmos, memory, got ['sqlite'] (did you mean 'sqlite'?)"),
    ("database_type", "PostgreSQL", "got 'PostgreSQL' (did you mean 'postgres'?)"),
    ("database_host", None, "str, got None"),
    ("database_port", "5432", "int, got '5432'"),
    ("database_port", True, "int, got True"),
    ("database_port", 0, "a port from 1 to 65535, got 0"),
    ("database_port", 65536, "a port from 1 to 65535, got 65536"),
    ("database_user", 1, "str, got 1"),
    ("database_name", 1, "str, got 1"),
    ("database_password", 12345, "str, got a int that is not shown"),
    ("database_key", b"key", "str, got a bytes that is not shown"),
    ("database_ssl", "verify_full", "verify-full, got 'verify_full' (did you mean 'verify-full'?)"),
    ("database_ssl", 1, "one of True, False, disable, prefer, require, verify-ca, verify-full, got 1"),
    ("database_ssl_ca", "/nowhere/ca.pem", "the path of a file that is there, got '/nowhere/ca.pem'"),
    ("database_pool_min", -1, "at least 0, got -1"),
    ("database_pool_min", 11, "at most database_pool_max (10), got 11"),
    ("database_pool_max", 1, "at least 2, got 1"),
    ("database_statement_cache", None, "int, got None"),
    ("database_timeout", 0, "at least 0.01, got 0"),
    ("database_table_prefix", "1st_", "letters, digits and underscores (at most 40, no digit first), got '1st_'"),
    ("database_table_prefix", "a-b", "letters, digits and underscores (at most 40, no digit first), got 'a-b'"),
    ("database_table_prefix", 'x"; DROP TABLE y --', "letters, digits and underscores"),
    ("database_table_prefix", "a\n", "letters, digits and underscores"),
    ("database_table_prefix", "é", "letters, digits and underscores"),
    ("database_table_prefix", "a" * 41, "letters, digits and underscores"),
    ("database_table_prefix", None, "str, got None"),
    ("database_auto_migrate", 0, "bool, got 0"),
    ("worker_id", None, "str, got None"),
    ("assistant_name", 5, "str, got 5"),
    ("settings_schema", {}, "a SettingsSchema, got {}"),
    ("private_threads", "no", "bool, got 'no'"),
    ("permissions", ["admin"], "a mapping from operations to roles, got ['admin']"),
    ("permissions", {"settings.write": "admin"}, "got 'settings.write'"),
    ("permissions", {"setting.patch": "admin"}, "(did you mean 'settings.patch'?)"),
    ("permissions", {"thread.read": [None]}, "names of roles for 'thread.read'"),
    ("allowed_origins", "app.example.com", "origins such as 'https://app.example.com' (scheme and host, no path)"),
    ("allowed_origins", ["https://app.example.com/"], "no path), got 'https://app.example.com/'"),
    ("allowed_origins", 5, "no path), got 5"),
    ("settings_encryption_key", "too short", "Fernet keys (32 bytes in URL-safe base64), got a str that is not shown"),
    ("settings_encryption_key", 5, "got a int that is not shown; make one: python -c"),
    ("expose_errors", 1, "bool, got 1"),
    ("analytics_enabled", None, "bool, got None"),
    ("analytics_webhook_url", "ftp://x", "an http(s) URL, got a str that is not shown"),
    ("analytics_webhook_url", 5, "str or None, got a int that is not shown"),
    ("analytics_webhook_secret", "whsec_#", "a text, or base64 after whsec_, got a str that is not shown"),
    ("analytics_webhook_secret", "whsec_", "a text, or base64 after whsec_, got a str that is not shown"),
    ("analytics_webhook_secret", ("",), "a text, or base64 after whsec_, got a str that is not shown"),
    ("analytics_webhook_secret", 5, "a text, or base64 after whsec_, got a int that is not shown"),
    ("analytics_webhook_secret", b"bytes", "a text, or base64 after whsec_, got a int that is not shown"),
    ("analytics_batch_size", 0, "at least 1, got 0"),
    ("analytics_batch_size", 1.5, "int, got 1.5"),
    ("analytics_flush_interval", 0, "at least 0.01, got 0"),
    ("analytics_flush_interval", float("nan"), "at least 0.01, got nan"),
    ("analytics_flush_interval", "5", "int or float, got '5'"),
    ("analytics_flush_interval", True, "int or float, got True"),
    ("max_frame_bytes", 1023, "at least 1024, got 1023"),
    ("max_content_parts", 0, "at least 1, got 0"),
    ("max_text_length", 0, "at least 1, got 0"),
    ("max_data_url_bytes", -1, "at least 0, got -1"),
    ("max_setting_bytes", 0, "at least 1, got 0"),
    ("max_page_size", 0, "at least 1, got 0"),
    ("max_connections", 0, "at least 1, got 0"),
    ("max_connections_per_identity", 0, "at least 1, got 0"),
    ("max_turns_per_identity", 0, "at least 1, got 0"),
    ("frames_per_second", float("nan"), "at least 0.01, got nan"),
    ("frames_burst", 0, "at least 1, got 0"),
    ("max_subscriptions", -1, "at least 1, got -1"),
    ("connect_timeout", None, "int or float, got None"),
    ("outbox_frames", 15, "at least 16, got 15"),
    ("outbox_bytes", 65535, "at least 65536, got 65535"),
    ("turn_order", "fifo", "got 'fifo'"),
    ("turn_order", "Queue", "(did you mean 'queue'?)"),
    ("turn_order", None, "got None"),
    ("turn_order", ["queue"], "got ['queue']"),
    ("handler_timeout", 0, "at least 0.001, got 0"),
    ("handler_timeout", -1, "at least 0.001, got -1"),
    ("handler_timeout", float("nan"), "at least 0.001, got nan"),
    ("handler_timeout", "5", "int or float or None, got '5'"),
    ("handler_timeout", True, "int or float or None, got True"),
    ("thread_queue_limit", 0, "at least 1, got 0"),
    ("pipeline_depth", 0, "at least 1, got 0"),
    ("teardown_timeout", float("nan"), "at least 0.01, got nan"),
    ("shutdown_grace", -0.1, "at least 0, got -0.1"),
    ("broker_url", 5, "str or None, got 5"),
    ("idle_timeout", 0, "at least 0.01, got 0"),
    ("idle_timeout", "60", "int or float or None, got '60'"),
    ("run_heartbeat", 0, "at least 0.01, got 0"),
    ("run_timeout", "6", "int or float, got '6'"),
    ("run_timeout", 5.9, "at least three heartbeats (6), got 5.9"),
]


@pytest.mark.parametrize(("name", "value", "said"), WRONG, ids=[f"{name}={value!r:.20}" for name, value, _ in WRONG])
def test_a_wrong_value_is_refused_with_its_name_what_was_expected_and_what_came(
    name: str, value: object, said: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        config(**{name: value})
    assert str(raised.value).startswith(f"WorkerConfig.{name}: expected ")
    assert said in str(raised.value)


def test_no_option_goes_without_a_wrong_value_in_these_tests() -> None:
    assert {name for name, _, _ in WRONG} == set(WorkerConfig.names())


def test_every_limit_and_its_default_stand_in_the_table_of_the_security_page() -> None:
    page = (Path(__file__).parent.parent / "docs" / "security.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)`(?: \([^|]*\))? \| ([^|]*) \|", page, re.MULTILINE))
    words = ("max_", "frames_", "outbox_")
    limits = [name for name in WorkerConfig.names() if name.startswith(words)]
    limits += ["thread_queue_limit", "connect_timeout", "handler_timeout"]
    made = config()
    assert {name: told.get(name) for name in limits} == {name: str(getattr(made, name)) for name in limits}


def test_permissions_take_one_role_or_several() -> None:
    made = config(permissions={"settings.patch": "admin", "analytics.read": ["admin", "owner"]})
    assert made.permissions == {"settings.patch": {"admin"}, "analytics.read": {"admin", "owner"}}


def test_encryption_keys_come_from_the_environment_newest_first_and_are_never_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    new, old = "bmV3" * 10 + "bmU=", "b2xk" * 10 + "b2w="
    monkeypatch.setenv("WORKER_SETTINGS_ENCRYPTION_KEY", f"{new}, {old}")
    made = config()
    assert made.settings_encryption_key == (new, old)
    assert new not in repr(made)
    assert old not in repr(made)


def test_the_secret_of_the_webhook_comes_from_the_environment_newest_first_and_is_never_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORKER_ANALYTICS_WEBHOOK_SECRET", "new-secret, whsec_b2xkLXNlY3JldA==")
    made = config(analytics_webhook_url="https://example.org/never-token")
    assert made.analytics_webhook_secret == ("new-secret", "whsec_b2xkLXNlY3JldA==")
    assert config(analytics_webhook_secret="mine").analytics_webhook_secret == ("mine",)
    assert config(analytics_webhook_secret=("with, comma",)).analytics_webhook_secret == ("with, comma",)
    assert config(analytics_webhook_secret="").analytics_webhook_secret == ()
    assert not any(secret in repr(made) for secret in ("new-secret", "b2xk", "never-token"))


@pytest.mark.parametrize("mode", ["disable", "prefer", "require", "verify-ca", "verify-full"])
def test_ssl_takes_the_words_of_postgresql(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_DATABASE_SSL", mode)
    assert config().database_ssl == mode


@pytest.mark.parametrize("order", ["queue", "parallel", "reject", "replace"])
def test_each_order_of_turns_is_taken(order: str) -> None:
    assert config(turn_order=order).turn_order == order


def test_messages_queue_and_handlers_have_all_the_time_they_want_unless_told_otherwise() -> None:
    assert (config().turn_order, config().handler_timeout) == ("queue", None)
    assert config(handler_timeout=0.001).handler_timeout == 0.001
    assert config(handler_timeout=3).handler_timeout == 3


def test_the_edges_of_the_ranges_are_inside() -> None:
    made = config(database_port=65535, shutdown_grace=0, analytics_webhook_url="https://x", database_table_prefix="")
    assert made.shutdown_grace == 0
    assert config(database_port=1, database_table_prefix="_" * 40).database_port == 1


def test_a_misspelt_option_is_told_with_what_was_probably_meant() -> None:
    with pytest.raises(
        ConfigError, match=r"WorkerConfig has no option 'databse_name' \(did you mean 'database_name'\?\)"
    ):
        config(databse_name="x")
    with pytest.raises(ConfigError, match=r"WorkerConfig has no option 'zzz'$"):
        config(zzz="x")


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("sqlite", "the path of its file"),
        ("postgres", "the name of the database"),
        ("cosmos", "the name of the database"),
    ],
)
def test_a_database_without_a_name_is_refused(kind: Any, what: str) -> None:
    with pytest.raises(ConfigError) as raised:
        WorkerConfig(database_type=kind)
    said = f"WorkerConfig.database_name: {kind} needs {what}; pass it or set WORKER_DATABASE_NAME"
    assert str(raised.value) == said


def test_memory_needs_no_name() -> None:
    assert WorkerConfig(database_type="memory").database_name == ""


def test_a_prefix_that_sqlite_keeps_for_itself_is_refused_for_sqlite_only() -> None:
    with pytest.raises(ConfigError, match="database_table_prefix: SQLite keeps names"):
        config(database_type="sqlite", database_table_prefix="SQLite_")
    assert config(database_table_prefix="sqlite_").database_table_prefix == "sqlite_"


def test_a_settings_class_in_the_place_of_a_schema_is_sent_where_it_belongs() -> None:
    @dataclass
    class Settings:
        model: str = "m"

    with pytest.raises(ConfigError, match=r"a settings class goes to @worker\.settings"):
        config(settings_schema=Settings)


def test_no_password_and_no_key_is_ever_shown() -> None:
    schema = SettingsSchema([SettingsField("api_key", SettingsFieldType.PASSWORD, "Key", value="sk-default")])
    made = config(database_password="pw-123", database_key="key-123", settings_schema=schema)
    for text in (repr(made), str(made), f"{made}"):
        assert "pw-123" not in text
        assert "key-123" not in text
        assert "sk-default" not in text
    assert "'***'" in repr(made)


def test_a_config_can_be_copied_and_changed_but_not_written_to() -> None:
    made = config(database_password="pw")
    assert copy.deepcopy(made) == made
    assert attrs.evolve(made, worker_id="other").database_password == "pw"
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        made.worker_id = "other"  # type: ignore[misc]


def test_the_environment_is_read_when_a_config_is_made_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_DATABASE_HOST", "one")
    first = config()
    monkeypatch.setenv("WORKER_DATABASE_HOST", "two")
    assert (first.database_host, config().database_host) == ("one", "two")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://ann:pw@cache:6379/0", "'redis://***@cache:6379/0'"),
        ("redis://:p@ss/w0rd@cache", "'redis://***@cache'"),
        ("redis://cache:6379", "'redis://cache:6379'"),
        ("redis://cache?password=pw", "'redis://cache?***'"),
        (None, "None"),
    ],
)
def test_the_password_in_the_url_of_a_broker_is_never_shown(url: str | None, shown: str) -> None:
    assert f"broker_url={shown}" in repr(config(broker_url=url))
