"""The keys that prove a token: one that is configured, or the set that an issuer publishes at a URL (a JWKS). Not what a token says.

A published set is fetched when it is first needed, and again when it is old or a token names a key that is not in it. Many
connections at once make one fetch, and whatever goes wrong with a fetch, the keys of the last good one stay, for a bounded time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlsplit

import httpx
from attrs import field, frozen
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import PyJWTError, get_algorithm_by_name

from dooers import ConfigError

__all__ = ["PUBLIC", "FixedKey", "Jwks", "Key", "Keys", "NoKeysError", "read_jwks"]

log = logging.getLogger("dooers")

PublicKey: TypeAlias = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey

# Secret algorithms with the bytes that their key has at least (RFC 7518, 3.2); a shorter one can be guessed offline.
SECRET = {"HS256": 32, "HS384": 48, "HS512": 64}
RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512", "secp256k1": "ES256K"}
PUBLIC = frozenset({*RSA, *CURVES.values(), "EdDSA"})
RSA_BITS = range(2048, 8193)  # shorter ones are broken, longer ones only burn time

# PyJWT's readers of a JWK, by its `kty`. "oct", a secret, is not among them: what is published is no secret.
JWK = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}

FETCH_TIMEOUT = 5.0
MAX_BYTES = 256 * 1024
MAX_KEYS = 50
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class NoKeysError(Exception):
    """There are no keys that could be trusted now: none was ever fetched, or the last ones are too old."""


@frozen
class Key:
    """One key, with the algorithms that it is good for. Which of them a token may use is not up to the token."""

    material: PublicKey | bytes = field(repr=False)
    algorithms: frozenset[str]
    key_id: str | None = None

    def fits(self, algorithm: str, key_id: str | None) -> bool:
        """Whether a token with this header may have been signed with it. One that names no key is tried with all."""
        return algorithm in self.algorithms and (key_id is None or key_id == self.key_id)


class Keys(Protocol):
    """Where keys come from."""

    async def candidates(self, algorithm: str, key_id: str | None) -> list[Key]: ...


def _public(material: Any, whose: str) -> Key:
    """A public key as a Key; ValueError for what this module does not trust."""
    if isinstance(material, RSAPublicKey):
        if material.key_size not in RSA_BITS:
            raise ValueError(f"{whose}: expected an RSA key of 2048 to 8192 bits, got one of {material.key_size}")
        return Key(material, RSA)
    if isinstance(material, EllipticCurvePublicKey) and material.curve.name in CURVES:
        return Key(material, frozenset({CURVES[material.curve.name]}))
    if isinstance(material, Ed25519PublicKey | Ed448PublicKey):
        return Key(material, frozenset({"EdDSA"}))
    raise ValueError(f"{whose}: expected a public RSA, EC or Ed25519 key, got a {type(material).__name__}")


# ---------------------------------------------------------------- a key that is configured


@frozen
class FixedKey:
    """The one key there is, whatever key id tokens name."""

    key: Key

    @classmethod
    def read(cls, key: str | bytes) -> FixedKey:
        """A PEM public key, or else a secret. ConfigError for what is neither."""
        raw = key.encode() if isinstance(key, str) else key
        try:
            return cls(_public(load_pem_public_key(raw), "key") if b"-----BEGIN" in raw else _secret(raw))
        except (PyJWTError, ValueError, UnsupportedAlgorithm) as error:
            hint = "; a private key belongs to the issuer alone" if b"PRIVATE KEY" in raw else ""
            raise ConfigError(
                f"JwtAuthenticator.key: expected a public key as PEM, or a secret, but: {error}{hint}"
            ) from None

    async def candidates(self, algorithm: str, key_id: str | None) -> list[Key]:
        """The key."""
        return [self.key]


def _secret(raw: bytes) -> Key:
    # PyJWT refuses public keys in other shapes than PEM here: whoever has one could sign tokens with it, were it a secret.
    material = get_algorithm_by_name("HS256").prepare_key(raw)
    if len(material) < min(SECRET.values()):
        raise ValueError(f"this secret has {len(material)} bytes, and needs {min(SECRET.values())} at least")
    return Key(material, frozenset(name for name, least in SECRET.items() if len(material) >= least))


# ---------------------------------------------------------------- a set that is published


def checked_url(url: str) -> str:
    """A URL that keys may be fetched from. ConfigError else: who can alter the keys on the way is everybody's identity."""
    try:
        parts = urlsplit(url)
        secure = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
        fits = secure and bool(parts.hostname) and parts.username is None and parts.port != 0
    except (ValueError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise ConfigError(f"JwtAuthenticator.jwks_url: expected an https URL (http for localhost only), got {url!r}")
    return url


def read_jwks(document: bytes) -> list[Key]:
    """The usable keys of a JWKS; ValueError where it is none. What is not for signatures, or odd, is left out."""
    jwks = json.loads(document)
    jwks = jwks.get("keys") if isinstance(jwks, dict) else None
    if not isinstance(jwks, list):
        raise ValueError("expected a JSON object with a list `keys`")
    if len(jwks) > MAX_KEYS:
        raise ValueError(f"expected at most {MAX_KEYS} keys, got {len(jwks)}")
    return list(_usable(jwks))


def _usable(jwks: list[Any]) -> Iterator[Key]:
    for number, jwk in enumerate(jwks):
        try:
            yield _read_jwk(jwk)
        except Exception as error:  # PyJWT and cryptography raise many kinds; one bad key must not cost the good ones
            log.info("keys[%d] of the JWKS is left out: %s", number, str(error)[:200])


def _read_jwk(jwk: dict[str, Any]) -> Key:
    kty, use, key_ops, key_id = jwk.get("kty"), jwk.get("use", "sig"), jwk.get("key_ops", ["verify"]), jwk.get("kid")
    if kty not in JWK:
        raise ValueError(f"kty: expected one of {', '.join(JWK)}, got {kty!r}")
    if use != "sig" or "verify" not in key_ops:
        raise ValueError(f"expected a key for signatures, got one with use {use!r} and key_ops {key_ops!r}")
    if key_id is not None and not isinstance(key_id, str):
        raise ValueError(f"kid: expected a text, got a {type(key_id).__name__}")
    key = _public(get_algorithm_by_name(JWK[kty]).from_jwk(jwk), "the key")
    algorithms = key.algorithms & {jwk["alg"]} if "alg" in jwk else key.algorithms
    if not algorithms:
        raise ValueError(f"alg: {jwk['alg']!r} does not go with kty {kty!r}")
    return Key(key.material, algorithms, key_id)


class Jwks:
    """The keys that are published at a URL, as they were when they were last fetched.

    They are fetched again after `refresh_after` seconds, or for a key id that is not among them, but never more often than
    every `retry_after` seconds: key ids are anybody's to invent. Those of the last good fetch are good for `keep_for` seconds.
    """

    def __init__(
        self,
        url: str,
        refresh_after: float,
        retry_after: float,
        keep_for: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = checked_url(url)
        self._refresh_after, self._retry_after, self._keep_for = refresh_after, retry_after, keep_for
        self._clock = clock
        self._keys: list[Key] = []
        self._fetched = self._tried = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._tls = httpx.create_ssl_context()  # reads the certificates from disk: now, and not while people wait

    async def candidates(self, algorithm: str, key_id: str | None) -> list[Key]:
        """The keys that a token with this header may have been signed with. NoKeysError when nobody could say."""
        if self._age() >= self._refresh_after:
            await self._refresh()
        found = self._find(algorithm, key_id)
        if not found:
            await self._refresh()
            found = self._find(algorithm, key_id)
        if self._age() >= self._keep_for:
            raise NoKeysError(f"the keys at {self._url} could not be fetched")
        return found

    def _age(self) -> float:
        return self._clock() - self._fetched

    def _find(self, algorithm: str, key_id: str | None) -> list[Key]:
        return [key for key in self._keys if key.fits(algorithm, key_id)]

    async def _refresh(self) -> None:
        """Fetch the keys, if that is not too soon. Who comes while they are fetched waits for the same fetch."""
        if self._fetching is None or self._fetching.done():
            if self._clock() - self._tried < self._retry_after:
                return
            self._tried = self._clock()
            self._fetching = asyncio.create_task(self._fetch(), name="dooers-jwks")
        # Shielded: the connection that asked first may go away, and the others still want the keys.
        await asyncio.shield(self._fetching)

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT):
                document = await self._download()
            keys = read_jwks(document)
        except Exception as error:  # a network fails in many ways, and whichever it is: the old keys stay
            log.warning("the keys at %s could not be fetched: %s", self._url, str(error) or repr(error))
            return
        if not keys:
            log.warning("there is no usable key at %s: every token will be refused", self._url)
        self._keys, self._fetched = keys, self._clock()

    async def _download(self) -> bytes:
        # A proxy from the environment is right for the internet and never for this very machine.
        from_environment = urlsplit(self._url).hostname not in LOOPBACK
        # Uncompressed, so that the limit is one on what is unpacked, too. httpx's timeout is for each read; the sum is above.
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        async with (
            httpx.AsyncClient(verify=self._tls, timeout=FETCH_TIMEOUT, trust_env=from_environment) as client,
            client.stream("GET", self._url, headers=headers, follow_redirects=False) as response,
        ):
            if response.status_code != 200:
                raise ValueError(f"expected status 200, got {response.status_code}")
            document = bytearray()
            async for chunk in response.aiter_raw():
                document += chunk
                if len(document) > MAX_BYTES:
                    raise ValueError(f"expected at most {MAX_BYTES} bytes, got more")
            return bytes(document)
