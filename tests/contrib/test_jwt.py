"""A token says who a connection is: whole, alone, and only a genuine one. Every classic attack is refused without a reason given."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import importlib
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from dooers_contrib.jwt import MAX_TOKEN, JwtAuthenticator
from issuer import AUDIENCE, ISSUER, Published, Signer, body, by_hand, publishing, signer

from dooers import (
    AuthRequest,
    ConfigError,
    DooersError,
    ForbiddenError,
    Identity,
    UnauthenticatedError,
    WorkerConfig,
    WorkerServer,
)
from dooers.testing import Closed, WorkerClient

RS, OTHER = signer("RS256", "rs"), signer("RS256", "other")
SECRET = "a secret that nobody guesses, of more than 64 bytes, for every one of the HS algorithms"
NOT_ALLOWED = "this connection is not allowed"


def hook(**options: Any) -> JwtAuthenticator:
    return JwtAuthenticator(
        **{"issuer": ISSUER, "audience": AUDIENCE, "key": RS.pem, "algorithms": ["RS256"], **options}
    )


def request(
    token: str | None,
    *,
    headers: Mapping[str, str] | None = None,
    query: Mapping[str, str] | None = None,
    workspace_id: str = "claimed",
    worker_id: str = "worker",
) -> AuthRequest:
    return AuthRequest(
        claims=Identity(organization_id="claimed", workspace_id=workspace_id, user_id="claimed", user_role="admin"),
        worker_id=worker_id,
        auth_token=token,
        headers=headers or {},
        query_params=query or {},
        client=("198.51.100.7", 40000),
    )


async def refused(hook: JwtAuthenticator, request: AuthRequest) -> DooersError:
    with pytest.raises((UnauthenticatedError, ForbiddenError)) as caught:
        await hook(request)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    return caught.value


# ---------------------------------------------------------------- who a token is


async def test_the_identity_is_the_tokens_and_nothing_of_the_clients() -> None:
    exp = int(time.time()) + 60
    identity = await hook()(request(RS.token(name="Alice", email="alice@acme.example", exp=exp)))
    assert identity == Identity(
        organization_id="acme",
        workspace_id="sales",
        user_id="alice",
        user_name="Alice",
        user_email="alice@acme.example",
        expires_at=datetime.fromtimestamp(exp, UTC),
    )


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "ES384", "EdDSA"])
async def test_a_public_key_proves_a_token(algorithm: str) -> None:
    one, other = signer(algorithm, "one"), signer(algorithm, "another")
    checked = hook(key=one.pem, algorithms=[algorithm])
    assert (await checked(request(one.token()))).user_id == "alice"
    assert str(await refused(checked, request(other.token()))) == NOT_ALLOWED


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_a_shared_secret_proves_a_token(algorithm: str) -> None:
    checked = hook(key=SECRET, algorithms=[algorithm])
    assert (await checked(request(Signer(SECRET, algorithm, "any").token()))).user_id == "alice"
    await refused(checked, request(Signer(SECRET[::-1], algorithm, "any").token()))


async def test_claims_are_found_by_name_by_path_and_by_function() -> None:
    checked = hook(
        claims={
            "organization_id": "https://example.com/org.id",
            "workspace_id": "team.id",
            "user_id": lambda claims: f"user-{claims['number']}",
            "user_role": "roles.1",
            "workspace_role": "team.role",
            "system_role": "roles.7",
            "organization_role": "roles.x",
            "identity_ids": "ids",
        }
    )
    token = RS.token(
        **{"https://example.com/org.id": "acme"},
        team={"id": "t-1", "role": "lead"},
        number=7,
        roles=["a", "b"],
        ids=["x", "y"],
    )
    identity = await checked(request(token))
    assert (identity.organization_id, identity.workspace_id, identity.user_id) == ("acme", "t-1", "user-7")
    assert (identity.user_role, identity.workspace_role, identity.system_role) == ("b", "lead", "")
    assert identity.identity_ids == ("x", "y")


async def test_a_path_is_not_taken_for_a_name_whatever_the_token_has() -> None:
    checked = hook(claims={"workspace_id": "team.id"})
    identity = await checked(request(RS.token(**{"team.id": "forged"}, team={"id": "real"})))
    assert identity.workspace_id == "real"


@pytest.mark.parametrize("name", ["organization_id", "workspace_id", "sub"])
@pytest.mark.parametrize("value", [None, "", "  ", 5, True, ["acme"], {"id": "acme"}, "a\0b", "\ud800"])
async def test_an_id_that_is_no_text_is_refused_and_not_taken_from_the_client(name: str, value: Any) -> None:
    assert str(await refused(hook(), request(RS.token(**{name: value})))) == NOT_ALLOWED


@pytest.mark.parametrize("value", [5, ["a"], {}, "a\0b"])
async def test_what_need_not_be_there_must_be_a_text_where_it_is(value: Any) -> None:
    await refused(hook(claims={"user_role": "role"}), request(RS.token(role=value)))


@pytest.mark.parametrize(
    ("value", "ids"), [(None, ()), ("x", ("x",)), ([], ()), (["x"], ("x",)), (["x", 5], None), ([""], None), (5, None)]
)
async def test_identity_ids_are_a_list_of_texts(value: Any, ids: tuple[str, ...] | None) -> None:
    checked, asked = hook(claims={"identity_ids": "ids"}), request(RS.token(ids=value))
    if ids is None:
        await refused(checked, asked)
    else:
        assert (await checked(asked)).identity_ids == ids


# ---------------------------------------------------------------- what a token is good for


async def test_a_client_chooses_among_the_workspaces_that_its_token_lists() -> None:
    checked = hook(workspaces="spaces")
    token = RS.token(workspace_id="ignored", spaces=["sales", "support"])
    for chosen in ("sales", "support"):
        assert (await checked(request(token, workspace_id=chosen))).workspace_id == chosen
    for chosen in ("ignored", "claimed", "", "sale", "Sales"):
        assert isinstance(await refused(checked, request(token, workspace_id=chosen)), ForbiddenError)
    for none in (None, [], [""], "claime", {"claimed": 1}, [["claimed"]]):
        await refused(checked, request(RS.token(spaces=none)))


@pytest.mark.parametrize("workers", ["bots", {"one", "two"}, ["one", "two"], lambda claims: claims["bots"]])
async def test_a_token_is_good_for_the_workers_it_is_meant_for(workers: Any) -> None:
    checked, token = hook(workers=workers), RS.token(bots=["one", "two"])
    assert (await checked(request(token, worker_id="two"))).user_id == "alice"
    for other in ("three", "on", "", "one two"):
        assert isinstance(await refused(checked, request(token, worker_id=other)), ForbiddenError)


async def test_a_token_of_another_tenant_is_of_that_tenant_whatever_the_client_claims() -> None:
    identity = await hook()(request(RS.token(organization_id="rival", workspace_id="w")))
    assert (identity.organization_id, identity.workspace_id) == ("rival", "w")


# ---------------------------------------------------------------- where it stands


@pytest.mark.parametrize(
    ("where", "taken"),
    [
        ({"token": "GOOD"}, True),
        ({"token": "GOOD", "headers": {"authorization": "Bearer bad"}}, True),
        ({"token": "bad", "headers": {"authorization": "Bearer GOOD"}}, False),
        ({"token": "", "headers": {"authorization": "Bearer GOOD"}}, True),
        ({"token": None, "headers": {"authorization": "bearer  GOOD "}}, True),
        ({"token": None, "headers": {"authorization": "Basic GOOD"}}, False),
        ({"token": None, "headers": {"authorization": "GOOD"}}, False),
        ({"token": None, "headers": {"cookie": "a=b; session=GOOD; c"}}, True),
        ({"token": None, "headers": {"cookie": 'session="GOOD"'}}, True),
        ({"token": None, "headers": {"cookie": "xsession=GOOD"}}, False),
        ({"token": None, "query": {"token": "GOOD"}}, True),
        ({"token": None, "query": {"access_token": "GOOD"}}, False),
        ({"token": None, "headers": {"authorization": "Bearer bad"}, "query": {"token": "GOOD"}}, False),
        ({"token": None}, False),
        ({"token": ""}, False),
    ],
)
async def test_the_first_token_counts_and_no_other(where: dict[str, Any], taken: bool) -> None:
    asked = request(**json.loads(json.dumps(where).replace("GOOD", RS.token())))
    checked = hook(cookie="session", query="token")
    if taken:
        assert (await checked(asked)).user_id == "alice"
    else:
        await refused(checked, asked)


async def test_cookies_and_query_parameters_are_not_looked_at_unless_they_are_named() -> None:
    token = RS.token()
    await refused(hook(), request(None, headers={"cookie": f"session={token}"}, query={"token": token}))


# ---------------------------------------------------------------- time


@pytest.mark.parametrize("ago", [0, 1, 86_400])
async def test_an_expired_token_is_told_so_and_gets_no_leeway(ago: int) -> None:
    token = RS.token(exp=int(time.time()) - ago)
    assert str(await refused(hook(leeway=60), request(token))) == "the token has expired"


@pytest.mark.parametrize("name", ["iat", "nbf"])
async def test_a_clock_may_be_a_little_ahead_and_not_much(name: str) -> None:
    now = int(time.time())
    assert (await hook(leeway=30)(request(RS.token(**{name: now + 20})))).user_id == "alice"
    await refused(hook(leeway=30), request(RS.token(**{name: now + 60})))
    await refused(hook(), request(RS.token(**{name: "soon"})))
    await refused(hook(), request(RS.token(**{name: [now]})))


@pytest.mark.parametrize("exp", [None, "never", str(2**33), [2**33], {}, 1e400, -1e400, float("nan"), 10**30, 1e18])
async def test_a_token_without_an_end_is_refused(exp: Any) -> None:
    assert str(await refused(hook(), request(RS.token(exp=exp)))) == NOT_ALLOWED


# ---------------------------------------------------------------- attacks


def hs256(key: str) -> Any:
    return lambda signed: hmac.new(key.encode(), signed, hashlib.sha256).digest()


def tampered() -> str:
    header, _, signature = RS.token().split(".")
    return ".".join([header, by_hand({}, body(sub="admin")).split(".")[1], signature])


FORGED: dict[str, str] = {
    "not a token": "hello",
    "dots only": "..",
    "alg none": by_hand({"alg": "none", "typ": "JWT"}, body()),
    "alg None": by_hand({"alg": "None"}, body()),
    "alg absent": by_hand({"typ": "JWT"}, body()),
    "alg null": by_hand({"alg": None}, body()),
    "alg list": by_hand({"alg": ["RS256"]}, body()),
    "no signature": RS.token().rpartition(".")[0] + ".",
    "public key as a secret": by_hand({"alg": "HS256", "kid": "rs"}, body(), hs256(RS.pem)),
    "other algorithm of the same key": Signer(RS.private, "RS512", "rs").token(),
    "other key": OTHER.token(),
    "other key under this key id": Signer(OTHER.private, "RS256", "rs").token(),
    "other claims under a genuine signature": tampered(),
    "wrong issuer": RS.token(iss="https://evil.example.com/"),
    "issuer without the slash": RS.token(iss=ISSUER.rstrip("/")),
    "issuer as a list": by_hand({"alg": "RS256"}, body(iss=[ISSUER])),
    "no issuer": RS.token(iss=None),
    "wrong audience": RS.token(aud="another-service"),
    "wrong audiences": RS.token(aud=["another-service", "my-worker-2"]),
    "audience as an object": RS.token(aud={AUDIENCE: True}),
    "no audience": RS.token(aud=None),
    "empty audience": RS.token(aud=""),
    "key of its own": by_hand({"alg": "RS256", "jwk": OTHER.jwk()}, body(), lambda signed: b"x"),
    "extension that must be understood": RS.token({"crit": ["exp2"], "exp2": 1}),
    "claims elsewhere": by_hand({"alg": "RS256", "b64": False, "crit": ["b64"]}, b""),
    "header no object": by_hand([], body()),
    "header deep": by_hand(b"[" * 5000, body()),
    "header bad utf-8": by_hand(b'{"alg": "RS256\xff"}', body()),
    "key id no text": by_hand({"alg": "RS256", "kid": {"x": 1}}, body()),
    "not ascii": "é" + RS.token(),
    "lone surrogate": RS.token() + "\ud800",
    "white space": " " + RS.token(),
    "two lines": RS.token() + "\n",
    "very long": RS.token(padding="x" * MAX_TOKEN),
    "very long and empty": "." * 1_000_000,
}


@pytest.mark.parametrize("attack", FORGED)
async def test_a_forged_token_is_refused_and_only_the_log_says_why(
    attack: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = FORGED[attack]
    error = await refused(hook(), request(token, worker_id="worker\nfake line"))
    assert (type(error), str(error)) == (UnauthenticatedError, NOT_ALLOWED)
    [record] = [record for record in caplog.records if record.name == "dooers"]
    assert record.levelno == logging.INFO
    said = record.getMessage()
    assert said.startswith("a connection from ('198.51.100.7', 40000) to worker 'worker\\nfake line' is refused: it")
    assert len(said) < 400
    assert "\n" not in said
    assert not any(part and len(part) > 10 and part in said for part in token.split("."))


@pytest.mark.parametrize("payload", [b"", b"null", b"[]", b"\xff\xfe", b"[" * 5000, b'{"exp": ' + b"9" * 5000 + b"}"])
async def test_claims_that_cannot_be_read_are_refused_even_when_they_are_signed(payload: bytes) -> None:
    await refused(hook(key=SECRET, algorithms=["HS256"]), request(by_hand({"alg": "HS256"}, payload, hs256(SECRET))))


async def test_an_audience_of_several_is_met_by_one_and_none_is_not_checked() -> None:
    checked = hook(audience={"a", "b"})
    assert (await checked(request(RS.token(aud=["x", "b"])))).user_id == "alice"
    await refused(checked, request(RS.token(aud=["x", "y"])))
    for aud in (None, "anything", ["x"]):
        assert (await hook(audience=None)(request(RS.token(aud=aud)))).user_id == "alice"


# ---------------------------------------------------------------- published keys


ES = signer("ES256", "es")


@pytest.fixture
async def published() -> AsyncIterator[Published]:
    async with publishing(RS.jwk(), ES.jwk()) as published:
        yield published


def published_hook(published: Published, **options: Any) -> JwtAuthenticator:
    return hook(key=None, jwks_url=published.url, **{"algorithms": ["RS256", "ES256"], **options})


async def test_published_keys_prove_tokens_and_are_fetched_once(published: Published) -> None:
    checked = published_hook(published)
    for one in (RS, ES, RS):
        assert (await checked(request(one.token()))).user_id == "alice"
    assert published.fetches == 1


async def test_a_token_that_names_no_key_is_tried_with_those_that_fit(published: Published) -> None:
    published.publish(OTHER.jwk(), ES.jwk(), RS.jwk())
    checked = published_hook(published)
    assert (await checked(request(RS.token({"kid": None})))).user_id == "alice"
    await refused(checked, request(signer("RS256", "unpublished").token({"kid": None})))


async def test_a_published_key_is_tried_only_under_its_own_name(published: Published) -> None:
    published.publish(RS.jwk(), OTHER.jwk())
    checked = published_hook(published)
    await refused(checked, request(Signer(RS.private, "RS256", "other").token()))
    await refused(checked, request(Signer(ES.private, "ES256", "rs").token()))
    await refused(checked, request(by_hand({"alg": "HS256", "kid": "rs"}, body(), hs256(RS.pem))))


@pytest.mark.parametrize("header", ["jku", "x5u"])
async def test_keys_are_never_fetched_from_where_a_token_says(published: Published, header: str) -> None:
    async with publishing(OTHER.jwk()) as evil:
        checked = published_hook(published)
        await refused(checked, request(OTHER.token({header: evil.url})))
        await refused(checked, request(OTHER.token({header: evil.url}, iss=evil.url)))
        assert (published.fetches, evil.fetches) == (1, 0)


async def test_a_token_that_cannot_be_good_makes_no_fetch(published: Published) -> None:
    checked = published_hook(published)
    for attack in ("not a token", "alg none", "public key as a secret", "very long", "key id no text"):
        await refused(checked, request(FORGED[attack]))
    assert published.fetches == 0


async def test_a_flood_of_invented_key_ids_is_one_fetch(published: Published) -> None:
    checked = published_hook(published)
    for number in range(50):
        await refused(checked, request(Signer(OTHER.private, "RS256", f"invented-{number}").token()))
    assert published.fetches == 1


async def test_while_there_are_no_keys_a_client_is_told_to_come_again(published: Published) -> None:
    published.jwks = "down"
    error = await refused(published_hook(published), request(RS.token()))
    assert (type(error), str(error)) == (UnauthenticatedError, "the token cannot be checked at the moment; try again")


# ---------------------------------------------------------------- what can be wrong before any token


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"issuer": ""}, "issuer: expected"),
        ({"issuer": None}, "issuer: expected"),
        ({"audience": ""}, "audience: expected"),
        ({"audience": []}, "audience: expected"),
        ({"audience": [""]}, "audience: expected"),
        ({"algorithms": []}, "algorithms: expected"),
        ({"algorithms": "RS256"}, "algorithms: expected a list"),
        ({"algorithms": ["none"]}, "algorithms: expected"),
        ({"algorithms": ["RS256", "none"]}, "algorithms: expected"),
        ({"algorithms": ["HS256"]}, "algorithms: expected"),
        ({"algorithms": ["RS256", "HS256"]}, "algorithms: expected"),
        ({"algorithms": ["ES256"]}, "algorithms: expected"),
        ({"algorithms": ["RS999"]}, "algorithms: expected"),
        ({"key": SECRET}, "algorithms: expected a list of those that fit the key (HS256, HS384, HS512)"),
        ({"key": "x" * 40, "algorithms": ["HS512"]}, "algorithms: expected a list of those that fit the key (HS256)"),
        ({"key": "x" * 31, "algorithms": ["HS256"]}, "this secret has 31 bytes, and needs 32 at least"),
        ({"key": "", "algorithms": ["HS256"]}, "key: expected"),
        ({"key": RS.private_pem}, "a private key belongs to the issuer alone"),
        ({"key": "-----BEGIN PUBLIC KEY-----\nnonsense\n-----END PUBLIC KEY-----"}, "key: expected"),
        ({"key": json.dumps(RS.jwk()), "algorithms": ["HS256"]}, "key: expected"),
        ({"key": None}, "expected a key or a jwks_url, got neither"),
        ({"jwks_url": "https://id.example.com/jwks.json"}, "expected a key or a jwks_url, got both"),
        ({"key": None, "jwks_url": "http://id.example.com/jwks.json"}, "jwks_url: expected an https URL"),
        ({"key": None, "jwks_url": "https://id.example.com/", "algorithms": ["HS256"]}, "algorithms: expected"),
        ({"key": None, "jwks_url": "https://id.example.com/", "algorithms": ["none"]}, "algorithms: expected"),
        ({"claims": {"organisation_id": "org"}}, "did you mean 'organization_id'?"),
        ({"claims": {"expires_at": "exp"}}, "claims: expected"),
        ({"claims": {"user_id": ""}}, "expected names of claims"),
        ({"claims": {"user_id": 5}}, "expected names of claims"),
        ({"workspaces": ""}, "expected names of claims"),
        ({"workspaces": "spaces", "claims": {"workspace_id": "space"}}, "got both"),
        ({"workers": []}, "workers: expected"),
        ({"workers": 5}, "workers: expected"),
        ({"cookie": ""}, "cookie: expected"),
        ({"query": ""}, "query: expected"),
        ({"leeway": -1}, "leeway: expected"),
        ({"leeway": 3600}, "leeway: expected"),
        ({"leeway": float("nan")}, "leeway: expected"),
        ({"retry_after": 0}, "retry_after"),
        ({"refresh_after": 5}, "refresh_after"),
        ({"keep_for": 60}, "keep_for"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        hook(**options)
    assert told in str(caught.value)
    assert SECRET not in str(caught.value)


def test_the_secret_is_not_shown() -> None:
    assert SECRET not in repr(hook(key=SECRET, algorithms=["HS256"]))


def test_without_its_libraries_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)
    monkeypatch.delitem(sys.modules, "dooers_contrib.jwt")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'dooers-workers-server\[jwt\]'"):
        importlib.import_module("dooers_contrib.jwt")


# ---------------------------------------------------------------- end to end


@pytest.fixture
async def worker(worker_config: WorkerConfig, published: Published) -> AsyncIterator[WorkerServer]:
    worker = WorkerServer(worker_config)
    worker.authenticate(published_hook(published))

    @worker.handler
    async def who(identity: Identity) -> str:
        return f"{identity.organization_id}/{identity.workspace_id}/{identity.user_id}/{identity.user_role}"

    yield worker
    await worker.close()


async def test_a_worker_believes_the_token_and_not_the_client(worker: WorkerServer) -> None:
    claimed: dict[str, Any] = {
        "organization_id": "claimed",
        "workspace_id": "claimed",
        "user_id": "admin",
        "user_role": "admin",
    }
    async with WorkerClient(worker, auth_token=RS.token(), **claimed) as client:
        assert (await client.say("Who am I?")).text == "acme/sales/alice/"


async def test_people_of_two_tenants_do_not_see_each_others_threads(worker: WorkerServer) -> None:
    same: dict[str, Any] = {"organization_id": "acme", "workspace_id": "sales", "user_id": "alice"}
    async with (
        WorkerClient(worker, auth_token=RS.token(), **same) as alice,
        WorkerClient(worker, auth_token=ES.token(organization_id="rival"), **same) as rival,
    ):
        thread_id = (await alice.say("A secret.")).thread_id
        answer = await rival.ask("thread.subscribe", {"thread_id": thread_id})
        assert answer["payload"]["error"]["code"] == "NOT_FOUND"


@pytest.mark.parametrize("attack", ["alg none", "other key", "wrong audience"])
async def test_a_worker_refuses_and_closes(worker: WorkerServer, attack: str) -> None:
    client = WorkerClient(worker)
    await client.open()
    payload = {"worker_id": "worker", "organization_id": "acme", "workspace_id": "sales", "user_id": "alice"}
    answer = await client.ask("connect", {**payload, "auth_token": FORGED[attack]})
    assert answer["payload"]["error"] == {"code": "UNAUTHENTICATED", "message": NOT_ALLOWED}
    with pytest.raises(Closed) as closed:
        await client.receive()
    assert closed.value.code == 4401
    await client.drop()


async def test_a_hundred_people_connect_at_once_with_one_fetch(worker: WorkerServer, published: Published) -> None:
    published.gate.clear()
    clients = [WorkerClient(worker, auth_token=ES.token(sub=f"user-{number}")) for number in range(100)]
    connecting = [asyncio.create_task(client.__aenter__()) for client in clients]
    await published.arrived.wait()
    published.gate.set()
    await asyncio.gather(*connecting)
    assert published.fetches == 1
    assert (await clients[42].say("Who am I?")).text == "acme/sales/user-42/"
    for client in clients:
        await client.drop()
