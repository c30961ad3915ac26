"""An issuer of tokens: keys that sign, tokens made by hand, and a real HTTP server for the keys that can also misbehave. Not a test."""

from __future__ import annotations

import asyncio
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import jwt
from attrs import define, field, frozen
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

ISSUER, AUDIENCE = "https://id.example.com/", "my-worker"


@frozen
class Signer:
    """A key pair with a key id."""

    private: Any = field(repr=False)
    algorithm: str
    key_id: str

    @property
    def pem(self) -> str:
        pem: bytes = self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem.decode()

    @property
    def private_pem(self) -> str:
        pem: bytes = self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return pem.decode()

    def jwk(self, **more: Any) -> dict[str, Any]:
        public = jwt.get_algorithm_by_name(self.algorithm).to_jwk(self.private.public_key(), as_dict=True)
        return {**public, "kid": self.key_id, "use": "sig", "alg": self.algorithm, **more}

    def token(self, headers: Any = None, **claims: Any) -> str:
        """A token as the issuer makes them; a header or a claim that is None is left out."""
        named = {name: value for name, value in {"kid": self.key_id, **(headers or {})}.items() if value is not None}
        return jwt.encode(body(**claims), self.private, self.algorithm, named)


@cache
def signer(algorithm: str, key_id: str) -> Signer:
    """The pair of this name: made once, since making RSA keys takes its time."""
    make: Callable[[], Any] = {
        "RS256": lambda: rsa.generate_private_key(65537, 2048),
        "PS256": lambda: rsa.generate_private_key(65537, 2048),
        "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate,
    }[algorithm]
    return Signer(make(), algorithm, key_id)


def body(**claims: Any) -> dict[str, Any]:
    """The claims of a token that is good, but for what is given."""
    now = int(time.time())
    good = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "iat": now,
        "exp": now + 86_400,
        "sub": "alice",
        "organization_id": "acme",
        "workspace_id": "sales",
    }
    return {name: value for name, value in {**good, **claims}.items() if value is not None}


def part(value: Any) -> str:
    """A part of a token, encoded: of bytes, or of anything as JSON."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def by_hand(header: Any, claims: Any, sign: Callable[[bytes], bytes] = lambda signed: b"") -> str:
    """A token that no library would make."""
    signed = f"{part(header)}.{part(claims)}"
    return f"{signed}.{part(sign(signed.encode()))}"


Answer = Callable[["Published", asyncio.StreamWriter], Awaitable[None]]


@define
class Published:
    """The JWKS at a URL of this machine. `fetches` counts who came; `answer` can be replaced by one that misbehaves."""

    jwks: Any = None
    fetches: int = 0
    requests: list[bytes] = field(factory=list)
    arrived: asyncio.Event = field(factory=asyncio.Event)
    gate: asyncio.Event = field(factory=asyncio.Event)  # answers wait for it
    answer: Answer | None = None
    url: str = ""

    def publish(self, *keys: dict[str, Any]) -> None:
        self.jwks = {"keys": list(keys)}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            self.fetches += 1
            self.arrived.set()
            await self.gate.wait()
            await (self.answer or good)(self, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def good(published: Published, writer: asyncio.StreamWriter) -> None:
    respond(writer, json.dumps(published.jwks).encode())


def respond(writer: asyncio.StreamWriter, document: bytes, status: str = "200 OK", *headers: str) -> None:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(document)}", "connection: close", *headers]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + document)


@asynccontextmanager
async def publishing(*keys: dict[str, Any]) -> AsyncIterator[Published]:
    """A server with these keys, until the end of the block."""
    published = Published()
    published.publish(*keys)
    published.gate.set()
    server = await asyncio.start_server(published.serve, "127.0.0.1", 0)
    published.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks.json"
    try:
        yield published
    finally:
        published.gate.set()
        server.close()
        await server.wait_closed()
