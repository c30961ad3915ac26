"""The keys of an issuer: fetched once for many, again when they change, never in a flood, and kept while the issuer is away."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from dooers_contrib import jwks
from dooers_contrib.jwks import MAX_BYTES, MAX_KEYS, Jwks, NoKeysError, read_jwks
from issuer import Answer, Published, Signer, publishing, respond, signer
from jwt import get_algorithm_by_name

from dooers import ConfigError

OLD, NEW = signer("RS256", "old"), signer("ES256", "new")


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def published() -> AsyncIterator[Published]:
    async with publishing(OLD.jwk()) as published:
        yield published


def keys_at(published: Published, clock: Clock) -> Jwks:
    return Jwks(published.url, refresh_after=600, retry_after=10, keep_for=3600, clock=clock)


async def knows(keys: Jwks, of: Signer) -> bool:
    return bool(await keys.candidates(of.algorithm, of.key_id))


async def test_keys_are_fetched_when_they_are_needed_and_then_kept(published: Published, clock: Clock) -> None:
    keys = keys_at(published, clock)
    assert published.fetches == 0
    for _ in range(3):
        assert await knows(keys, OLD)
        clock.now += 100
    assert published.fetches == 1


async def test_a_hundred_connections_at_once_make_one_fetch(published: Published, clock: Clock) -> None:
    keys = keys_at(published, clock)
    published.gate.clear()
    waiting = [asyncio.create_task(knows(keys, OLD)) for _ in range(100)]
    await published.arrived.wait()
    published.gate.set()
    assert all(await asyncio.gather(*waiting))
    assert published.fetches == 1


async def test_a_connection_that_goes_away_does_not_take_the_fetch_of_the_others_with_it(
    published: Published, clock: Clock
) -> None:
    keys = keys_at(published, clock)
    published.gate.clear()
    first, second = (asyncio.create_task(knows(keys, OLD)) for _ in range(2))
    await published.arrived.wait()
    first.cancel()
    published.gate.set()
    assert await second
    assert first.cancelled()
    assert published.fetches == 1


async def test_a_key_that_is_new_is_fetched_for_the_first_token_that_names_it(
    published: Published, clock: Clock
) -> None:
    keys = keys_at(published, clock)
    assert await knows(keys, OLD)
    published.publish(OLD.jwk(), NEW.jwk())
    clock.now += 11
    assert await knows(keys, NEW)
    assert published.fetches == 2


async def test_a_flood_of_invented_key_ids_fetches_once_in_a_while_only(published: Published, clock: Clock) -> None:
    keys = keys_at(published, clock)
    for second in range(60):
        clock.now = 1000.0 + second
        for number in range(20):
            assert await keys.candidates("RS256", f"invented-{second}-{number}") == []
    assert published.fetches == 6
    assert await knows(keys, OLD)


async def test_a_key_that_is_withdrawn_is_gone_after_the_refresh(published: Published, clock: Clock) -> None:
    keys = keys_at(published, clock)
    assert await knows(keys, OLD)
    published.publish(NEW.jwk())
    clock.now += 599
    assert await knows(keys, OLD)
    clock.now += 1
    assert not await knows(keys, OLD)
    assert await knows(keys, NEW)


async def test_an_issuer_that_withdraws_every_key_is_obeyed(published: Published, clock: Clock) -> None:
    keys = keys_at(published, clock)
    assert await knows(keys, OLD)
    published.publish()
    clock.now += 600
    assert not await knows(keys, OLD)


# ---------------------------------------------------------------- an issuer that misbehaves


async def down(published: Published, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def failing(published: Published, writer: asyncio.StreamWriter) -> None:
    respond(writer, json.dumps(published.jwks).encode(), "503 Service Unavailable")


async def page(published: Published, writer: asyncio.StreamWriter) -> None:
    respond(writer, b"<html>Sign in to the wireless network</html>")


async def other_json(published: Published, writer: asyncio.StreamWriter) -> None:
    respond(writer, b'{"keys": {"kid": "x"}}')


async def deep(published: Published, writer: asyncio.StreamWriter) -> None:
    respond(writer, b"[" * 100_000)


async def huge(published: Published, writer: asyncio.StreamWriter) -> None:
    respond(writer, json.dumps(published.jwks).encode() + b" " * MAX_BYTES)


async def endless(published: Published, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
    while True:
        writer.write(b" " * 65536)
        await writer.drain()


async def compressed(published: Published, writer: asyncio.StreamWriter) -> None:
    # It was asked not to: what is small on the way may be of any size when it is unpacked.
    respond(writer, gzip.compress(json.dumps(published.jwks).encode()), "200 OK", "content-encoding: gzip")


async def dripping(published: Published, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.01)  # each read is quick, the whole never ends


async def silent(published: Published, writer: asyncio.StreamWriter) -> None:
    published.gate.clear()
    await published.gate.wait()


async def too_many(published: Published, writer: asyncio.StreamWriter) -> None:
    respond(writer, json.dumps({"keys": [NEW.jwk()] * (MAX_KEYS + 1)}).encode())


MISBEHAVING = [down, failing, page, other_json, deep, huge, endless, compressed, dripping, silent, too_many]


@pytest.mark.parametrize("answer", MISBEHAVING)
async def test_while_the_issuer_misbehaves_the_last_keys_stay_for_a_bounded_time(
    published: Published,
    clock: Clock,
    answer: Answer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys = keys_at(published, clock)
    assert await knows(keys, OLD)
    published.answer = answer
    clock.now += 600
    with monkeypatch.context() as impatient:
        impatient.setattr(jwks, "FETCH_TIMEOUT", 0.2)
        assert await knows(keys, OLD)
    assert published.fetches == 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "could not be fetched" in caplog.text
    assert await knows(keys, OLD)
    assert published.fetches == 2  # not asked again at once
    published.answer = down
    published.gate.set()
    clock.now += 2999
    assert await knows(keys, OLD)
    clock.now += 1
    with pytest.raises(NoKeysError):
        await knows(keys, OLD)
    published.answer = None
    clock.now += 10
    assert await knows(keys, OLD)


async def test_an_issuer_that_was_never_there_leaves_no_keys(published: Published, clock: Clock) -> None:
    keys = keys_at(published, clock)
    published.answer = down
    for _ in range(3):
        with pytest.raises(NoKeysError):
            await knows(keys, OLD)
    assert published.fetches == 1
    published.answer = None
    clock.now += 10
    assert await knows(keys, OLD)


async def test_the_event_loop_is_free_while_keys_are_fetched(published: Published, clock: Clock) -> None:
    keys = keys_at(published, clock)
    published.gate.clear()
    waiting = asyncio.create_task(knows(keys, OLD))
    await published.arrived.wait()  # served by this very loop: a fetch that blocks it would never arrive
    published.gate.set()
    assert await waiting


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect"])
async def test_a_redirect_is_not_followed(published: Published, clock: Clock, status: str) -> None:
    async with publishing(NEW.jwk()) as elsewhere:

        async def redirect(published: Published, writer: asyncio.StreamWriter) -> None:
            respond(writer, b"", status, f"location: {elsewhere.url}")

        published.answer = redirect
        with pytest.raises(NoKeysError):
            await knows(keys_at(published, clock), NEW)
        assert (published.fetches, elsewhere.fetches) == (1, 0)


async def test_nothing_of_this_machine_is_sent_along(
    published: Published, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert await knows(keys_at(published, clock), OLD)
    [request] = published.requests
    assert b"authorization" not in request.lower()
    assert b"cookie" not in request.lower()


# ---------------------------------------------------------------- which keys are trusted


@pytest.mark.parametrize(
    "odd",
    [
        NEW.jwk(use="enc"),
        NEW.jwk(key_ops=["sign"]),
        NEW.jwk(key_ops=5),
        NEW.jwk(alg="RS256"),
        NEW.jwk(alg="HS256"),
        NEW.jwk(alg="none"),
        NEW.jwk(alg=None),
        NEW.jwk(alg=["ES256"]),
        NEW.jwk(kty="RSA"),
        NEW.jwk(kty="oct", k="c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"),
        NEW.jwk(kty=["EC"]),
        NEW.jwk(crv="P-384"),
        NEW.jwk(x="AAAA"),
        NEW.jwk(x="é"),
        NEW.jwk(y=5),
        NEW.jwk(kid=5),
        NEW.jwk(**get_algorithm_by_name("ES256").to_jwk(NEW.private, as_dict=True)),
        {},
        None,
        "key",
        5,
        Signer(rsa.generate_private_key(65537, 1024), "RS256", "short").jwk(),
    ],
)
def test_a_key_that_is_odd_is_left_out_and_the_others_stay(odd: Any) -> None:
    keys = read_jwks(json.dumps({"keys": [OLD.jwk(), odd]}).encode())
    assert [key.key_id for key in keys] == ["old"]


@pytest.mark.parametrize("document", [b"", b"\xff\xfe\xfd", b"null", b"[]", b"{}", b'{"keys": null}', b'{"keys": "x"}'])
def test_what_is_no_jwks_is_refused(document: bytes) -> None:
    with pytest.raises(ValueError):
        read_jwks(document)


def test_a_key_is_good_for_its_own_algorithms_only() -> None:
    jwk = OLD.jwk()
    del jwk["alg"]
    [any_rsa] = read_jwks(json.dumps({"keys": [jwk]}).encode())
    assert any_rsa.algorithms == {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
    [told] = read_jwks(json.dumps({"keys": [OLD.jwk()]}).encode())
    assert told.algorithms == {"RS256"}
    assert told.fits("RS256", "old")
    assert told.fits("RS256", None)
    assert not told.fits("PS256", "old")
    assert not told.fits("RS256", "other")


@pytest.mark.parametrize(
    "url",
    [
        "http://id.example.com/jwks.json",
        "http://localhost.example.com/jwks.json",
        "http://127.0.0.1@id.example.com/",
        "https://user:password@id.example.com/",
        "ftp://id.example.com/",
        "file:///etc/passwd",
        "https://",
        "https://[::1/",
        "https://id.example.com:99999/",
        "",
        "id.example.com",
        5,
    ],
)
def test_keys_come_over_https_or_from_this_machine(url: Any) -> None:
    with pytest.raises(ConfigError, match="expected an https URL"):
        Jwks(url, 600, 10, 3600)


@pytest.mark.parametrize(
    "url", ["https://id.example.com/jwks.json", "http://localhost:8080/jwks", "http://127.0.0.1/k", "http://[::1]:1/k"]
)
def test_https_and_this_machine_are_taken(url: str) -> None:
    Jwks(url, 600, 10, 3600)
