"""A service account of Google's, made here. Not a test."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from wires import Vendor

__all__ = ["account"]


@cache
def _pem() -> str:
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def account(vendor: Vendor, path: Path) -> Path:
    """The file of an account whose tokens are this vendor's."""
    whose = {"type": "service_account", "client_email": "worker@acme.example", "project_id": "acme"}
    file = path / "account.json"
    file.write_text(json.dumps({**whose, "private_key": _pem(), "token_uri": f"{vendor.url}/token"}))
    return file
