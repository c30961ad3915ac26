"""Values sealed for a stay in the database, and opened again. Not which values: `context.py` knows that, it gives passwords only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dooers.codec import dumps, loads
from dooers.exceptions import ConfigError, StoreError

__all__ = ["Vault"]

# What is sealed is stored as {SEALED: token}. A password is a text, so none can be mistaken for that; the name is odd so that no
# object of somebody's own, kept under a name outside the schema, is either.
SEALED = "dooers:sealed"


class Vault:
    """Seals with the first key and opens with any; without keys values stay in clear, and what is sealed stays closed.

    A value is sealed together with its place, so a token copied to another field or worker does not open there.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._newest: Any = None
        self._all: Any = None
        if given := list(keys):
            try:
                from cryptography.fernet import Fernet, MultiFernet
            except ImportError:
                raise ConfigError(
                    "WorkerConfig.settings_encryption_key needs a library that is not installed: "
                    "pip install 'dooers-workers-server[encryption]'"
                ) from None
            fernets = [Fernet(key) for key in given]
            self._newest, self._all = fernets[0], MultiFernet(fernets)

    @property
    def has_key(self) -> bool:
        """Whether it seals at all."""
        return self._newest is not None

    def seal(self, value: Any, worker_id: str, field_id: str) -> Any:
        """The value as it is to be stored. Nothing (null, an empty text) stays nothing: that none is set is no secret."""
        if value is None or value == "" or not self.has_key:
            return value
        return {SEALED: self._all.encrypt(_place(worker_id, field_id) + dumps(value).encode()).decode()}

    def open(self, value: Any, worker_id: str, field_id: str) -> Any:
        """The value as it was before it was sealed; one in clear as it is. StoreError where it cannot be opened here."""
        if not self.is_sealed(value):
            return value
        content = self._decrypted(self._all, value)
        if content is None:
            why = (
                "no key of settings_encryption_key opens it" if self.has_key else "there is no settings_encryption_key"
            )
            raise StoreError(
                f"setting {field_id!r} of worker {worker_id!r} is sealed, and {why}: was the old key dropped? "
                "Keep it after the new one, or set the value anew"
            )
        place = _place(worker_id, field_id)
        if not content.startswith(place):
            raise StoreError(
                f"setting {field_id!r} of worker {worker_id!r} holds what was sealed for another place: set the value anew"
            )
        return loads(content[len(place) :])

    def is_sealed(self, value: Any) -> bool:
        """Whether a stored value is sealed, by whatever key."""
        return isinstance(value, dict) and value.keys() == {SEALED} and isinstance(value[SEALED], str)

    def is_current(self, value: Any) -> bool:
        """Whether a stored value is as `seal` would leave it now: nothing, or sealed by the newest key."""
        if value is None or value == "":
            return True
        return self.is_sealed(value) and self._decrypted(self._newest, value) is not None

    def _decrypted(self, fernet: Any, sealed: dict[str, str]) -> bytes | None:
        if fernet is None:
            return None
        from cryptography.fernet import InvalidToken

        try:
            content: bytes = fernet.decrypt(sealed[SEALED].encode())
        except InvalidToken:
            return None
        return content


def _place(worker_id: str, field_id: str) -> bytes:
    """Where a value belongs, as a line before it: as JSON it has an end of its own, so no id can reach into the next."""
    return dumps([worker_id, field_id]).encode() + b"\n"
