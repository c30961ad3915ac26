"""Who a connection is, from a JSON Web Token: a hook for `worker.authenticate`. It issues no tokens and renews none.

```python
worker.authenticate(
    JwtAuthenticator(
        issuer="https://id.example.com/",
        audience="my-worker",
        jwks_url="https://id.example.com/.well-known/jwks.json",
        algorithms=["RS256"],
        claims={"organization_id": "org", "workspace_id": "team.id", "user_role": "roles.0"},
    )
)
```

The identity comes from the token, whole: nothing that the client says of itself is believed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, TypeAlias

from attrs import field, fields, frozen

from dooers import AuthRequest, ConfigError, DooersError, ForbiddenError, Identity, UnauthenticatedError

try:
    import jwt

    from dooers_contrib.jwks import PUBLIC, FixedKey, Jwks, Keys, NoKeysError
except ModuleNotFoundError as missing:
    if missing.name not in ("jwt", "cryptography"):
        raise
    raise ModuleNotFoundError("pip install 'dooers-workers-server[jwt]'", name=missing.name) from None

__all__ = ["Claim", "JwtAuthenticator"]

log = logging.getLogger("dooers")

# Where a value is in the token: the name of a claim, a path such as "team.id" or "roles.0", or a function of all claims.
Claim: TypeAlias = str | Callable[[Mapping[str, Any]], Any]

FIELDS = frozenset(one.name for one in fields(Identity)) - {"expires_at"}
NEEDED = ("organization_id", "workspace_id", "user_id")
DEFAULTS: dict[str, Claim] = {
    "organization_id": "organization_id",
    "workspace_id": "workspace_id",
    "user_id": "sub",
    "user_name": "name",
    "user_email": "email",
}

MAX_TOKEN = 16 * 1024
MAX_LEEWAY = 300

# What clients are told. Which check a token failed is for the log: it would help nobody but an attacker.
NOT_ALLOWED = "this connection is not allowed"
EXPIRED = "the token has expired"
TRY_AGAIN = "the token cannot be checked at the moment; try again"

# What PyJWT raises over a token that somebody made up; some versions let errors of the standard library through.
MADE_UP = (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError)


class _Refused(Exception):
    """Why a connection is refused, for the log, and what its client is told instead."""

    def __init__(self, why: str, told: str = NOT_ALLOWED, kind: type[DooersError] = UnauthenticatedError) -> None:
        super().__init__(why)
        self.error = kind(told)


@frozen(kw_only=True, eq=False)
class JwtAuthenticator:
    """A hook for `worker.authenticate` that takes the identity from a token. What cannot work raises ConfigError here.

    `issuer`      what `iss` must be, to the letter
    `audience`    what `aud` must have one of. None: not checked, and a token that was made for any other service is good here
    `algorithms`  how tokens may be signed; they must fit the key, and a token only chooses among them
    `key`         a public key as PEM, or a secret that you share with the issuer (32 bytes or more); or else
    `jwks_url`    where the issuer publishes its keys; what a token says about that is never asked
    `claims`      fields of Identity, and where in the token they are; a name with "://" in it is whole, else dots make a path.
                  Without it: `sub`, `name`, `email`, `organization_id`, `workspace_id`. The three ids must be there
    `workspaces`  where the token lists workspaces: the client's `workspace_id` counts, if it is one of these
    `workers`     the worker ids that a token is good for: a collection, or where the token lists them. None: all
    `cookie`      a cookie to look for it in, too. Browsers send those along from anybody's page: set `allowed_origins`
    `query`       a query parameter to look for it in, too. URLs are kept in the logs of every proxy on the way
    `leeway`      how many seconds ahead of this clock `iat` and `nbf` may be. `exp` has no leeway

    The token is the `auth_token` of `connect`, else of the header `Authorization: Bearer`, else the cookie, else the parameter.
    The keys at `jwks_url` are fetched again after `refresh_after` seconds, or for a key id that is not there, but never more
    often than every `retry_after` seconds; while the issuer does not answer, they are good for `keep_for` seconds.
    """

    issuer: str
    audience: str | Collection[str] | None
    algorithms: Collection[str]
    key: str | bytes | None = field(default=None, repr=False)
    jwks_url: str | None = None
    claims: Mapping[str, Claim] = field(factory=dict)
    workspaces: Claim | None = None
    workers: Claim | Collection[str] | None = None
    cookie: str | None = None
    query: str | None = None
    leeway: float = 10
    refresh_after: float = 600
    retry_after: float = 10
    keep_for: float = 86_400
    _keys: Keys = field(init=False, repr=False)

    @_keys.default
    def _checked_keys(self) -> Keys:
        _check(self)
        keys: FixedKey | Jwks
        if self.key is not None:
            keys = FixedKey.read(self.key)
            fitting = keys.key.algorithms
        else:
            assert self.jwks_url is not None
            keys = Jwks(self.jwks_url, self.refresh_after, self.retry_after, self.keep_for)
            fitting = PUBLIC
        if isinstance(self.algorithms, str) or not self.algorithms or not fitting.issuperset(self.algorithms):
            raise _wrong(
                "algorithms", f"a list of those that fit the key ({', '.join(sorted(fitting))})", self.algorithms
            )
        return keys

    async def __call__(self, request: AuthRequest) -> Identity:
        """Who the request's token says it is. UnauthenticatedError, or ForbiddenError where the token is good, but not for this."""
        try:
            claims, expires_at = await self._verified(self._token(request))
            self._check_worker(claims, request.worker_id)
            identity = self._fields(claims, request.claims.workspace_id)
        except _Refused as refused:
            # INFO, as anybody can cause it. Never the token, nor what it says.
            log.info("a connection from %s to worker %.100r is refused: %s", request.client, request.worker_id, refused)
            raise refused.error from None
        return Identity(**identity, expires_at=expires_at)

    # ------------------------------------------------------------ the token

    def _token(self, request: AuthRequest) -> str:
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        token = request.auth_token or (bearer.strip() if scheme.lower() == "bearer" else "")
        if not token and self.cookie is not None:
            token = _cookie(request.headers.get("cookie", ""), self.cookie)
        if not token and self.query is not None:
            token = request.query_params.get(self.query, "")
        if not token:
            raise _Refused("it has no token")
        if len(token) > MAX_TOKEN:
            raise _Refused(f"its token is over {MAX_TOKEN} characters")
        return token

    async def _verified(self, token: str) -> tuple[dict[str, Any], datetime]:
        """The claims of a token that is genuine, for us, and in its time; and when that ends."""
        algorithm, key_id = self._header(token)
        try:
            candidates = await self._keys.candidates(algorithm, key_id)
        except NoKeysError as error:
            raise _Refused(str(error), TRY_AGAIN) from None
        for key in candidates:
            try:
                claims = self._decoded(token, key.material, algorithm)
            except jwt.InvalidSignatureError:
                continue  # a token that names no key is tried with each
            except jwt.ExpiredSignatureError:
                raise _Refused("its token has expired", EXPIRED) from None
            except MADE_UP as error:
                raise _Refused(f"its token is not valid: {str(error)[:100]!r}") from None
            return claims, _expiry(claims["exp"])
        raise _Refused(f"its token is not signed with one of the {len(candidates)} keys that fit its header")

    def _header(self, token: str) -> tuple[str, str | None]:
        """Algorithm and key id. Nothing is proved yet, so they only choose among what is configured."""
        try:
            header = jwt.get_unverified_header(token)
        except MADE_UP as error:
            raise _Refused(f"its token cannot be read: {str(error)[:100]!r}") from None
        algorithm, key_id = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self.algorithms:
            raise _Refused(f"its token is signed with {str(algorithm)[:20]!r}, which is none of {self.algorithms}")
        return algorithm, key_id

    def _decoded(self, token: str, material: Any, algorithm: str) -> dict[str, Any]:
        audience = self.audience if self.audience is None or isinstance(self.audience, str) else list(self.audience)
        return jwt.decode(
            token,
            material,
            algorithms=[algorithm],
            issuer=self.issuer,
            audience=audience,
            leeway=self.leeway,
            options={"require": ["exp", "iss"], "verify_aud": audience is not None},
        )

    # ------------------------------------------------------------ what it says

    def _check_worker(self, claims: Mapping[str, Any], worker_id: str) -> None:
        if self.workers is None:
            return
        if isinstance(self.workers, str) or callable(self.workers):
            good_for: Collection[str] = _texts("workers", _value(claims, self.workers))
        else:
            good_for = self.workers
        if worker_id not in good_for:
            raise _Refused("its token is not for this worker", kind=ForbiddenError)

    def _fields(self, claims: Mapping[str, Any], claimed_workspace: str) -> dict[str, Any]:
        """The fields of the identity; but for the workspace, where that is the client's to choose, all from the token."""
        found: dict[str, Any] = {}
        for name, claim in {**DEFAULTS, **self.claims}.items():
            if name == "workspace_id" and self.workspaces is not None:
                if claimed_workspace not in _texts("workspaces", _value(claims, self.workspaces)):
                    raise _Refused("its token does not list the workspace that it asks for", kind=ForbiddenError)
                found[name] = claimed_workspace
            elif name == "identity_ids":
                found[name] = _texts(name, _value(claims, claim))
            else:
                found[name] = _text(name, _value(claims, claim), needed=name in NEEDED)
        return found


def _cookie(header: str, name: str) -> str:
    for pair in header.split(";"):
        key, _, value = pair.strip().partition("=")
        if key == name:
            return value.strip('"')
    return ""


def _expiry(exp: Any) -> datetime:
    """When the token ends. PyJWT would read a text as a number, and give an expired token the leeway."""
    if not isinstance(exp, int | float):
        raise _Refused(f"exp: expected a number, got a {type(exp).__name__}")
    try:
        expires_at = datetime.fromtimestamp(exp, UTC)
    except (ValueError, OverflowError, OSError):
        raise _Refused("exp: is beyond any calendar") from None
    if expires_at <= datetime.now(UTC):
        raise _Refused("its token has expired", EXPIRED)
    return expires_at


def _value(claims: Mapping[str, Any], claim: Claim) -> Any:
    """What a claim is, None where there is none."""
    if callable(claim):
        return claim(claims)
    found: Any = claims
    # Names such as "https://example.com/org" have dots that are no path. Decided by the name alone: a token must not choose.
    for step in [claim] if "://" in claim else claim.split("."):
        if isinstance(found, Mapping):
            found = found.get(step)
        elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        else:
            return None
    return found


def _text(name: str, value: Any, *, needed: bool) -> str:
    if value is None and not needed:
        return ""
    if not isinstance(value, str):
        raise _Refused(f"{name}: expected a text in the token, got a {type(value).__name__}")
    if needed and not value.strip():
        raise _Refused(f"{name}: is empty in the token")
    # JSON can say both, databases can keep neither: better no connection than one whose every message fails.
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise _Refused(f"{name}: has characters that are none")
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        value = [value]
    return tuple(_text(name, one, needed=True) for one in value)


# ---------------------------------------------------------------- what can be wrong before any token


def _wrong(name: str, expected: str, value: object, hint: str = "") -> ConfigError:
    return ConfigError(f"JwtAuthenticator.{name}: expected {expected}, got {value!r}{hint}")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _are_texts(value: object) -> bool:
    return isinstance(value, Collection) and bool(value) and all(_is_text(one) for one in value)


def _check(hook: JwtAuthenticator) -> None:
    """All but the algorithms, which need the key."""
    if not _is_text(hook.issuer):
        raise _wrong("issuer", "what `iss` must be, such as 'https://id.example.com/'", hook.issuer)
    if hook.audience is not None and not _are_texts(hook.audience):
        raise _wrong("audience", "a text, several, or None for tokens of any audience", hook.audience)
    if (hook.key is None) == (hook.jwks_url is None):
        raise ConfigError("JwtAuthenticator: expected a key or a jwks_url, got " + ("both" if hook.key else "neither"))
    for name in ("cookie", "query"):
        if (value := getattr(hook, name)) is not None and not _is_text(value):
            raise _wrong(name, "a name", value)
    if not 0 <= hook.leeway <= MAX_LEEWAY:
        raise _wrong("leeway", f"0 to {MAX_LEEWAY} seconds", hook.leeway)
    if not 0 < hook.retry_after <= hook.refresh_after <= hook.keep_for:
        seconds = (hook.retry_after, hook.refresh_after, hook.keep_for)
        raise _wrong("retry_after, refresh_after, keep_for", "seconds, none smaller than the one before", seconds)
    for name in hook.claims:
        if name not in FIELDS:
            near = get_close_matches(str(name), FIELDS, 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise _wrong("claims", f"fields of Identity ({', '.join(sorted(FIELDS))})", name, meant)
    for claim in [*hook.claims.values(), *([] if hook.workspaces is None else [hook.workspaces])]:
        if not callable(claim) and not _is_text(claim):
            raise _wrong("claims, workspaces", "names of claims, paths, or functions of the claims", claim)
    if hook.workspaces is not None and "workspace_id" in hook.claims:
        raise ConfigError("JwtAuthenticator: expected `workspaces` or a claim for `workspace_id`, got both")
    if hook.workers is not None and not callable(hook.workers) and not _are_texts(hook.workers):
        raise _wrong("workers", "worker ids, or where the token lists them", hook.workers)
