"""The playground's files, and what a browser is told about them. Not the page, which is in `page/`, and no HTTP, which is `asgi.py`'s.

All of it is read into memory once: what may be asked for are the keys of a dictionary, so no path that a client sends reaches the disk.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

from attrs import frozen

from dooers.codec import dumps
from dooers.config import WorkerConfig
from dooers.protocol import VERSION

__all__ = ["HEADERS", "INDEX", "Asset", "Assets", "about", "assets"]

PAGE = Path(__file__).parent / "page"
INDEX = "index.html"

# Anything else that lies there (licences, lists) is for readers of the source.
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}

# The page shows what strangers and models have written. Should one of its own guards fail, this is what is left between such a text and
# the person in front of it: no script but the page's own files, no markup that did not go through its sanitiser, nowhere to send a form.
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "font-src": "'self'",
    # Pictures in conversations are anywhere; the page asks for a remote one only when somebody clicks on it.
    "img-src": "'self' data: blob: https: http:",
    # With the WebSocket of the same host and port.
    "connect-src": "'self'",
    "form-action": "'none'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "dompurify lit-html",
}
# Of what a browser offers the page needs none but writing to the clipboard, which is what "Copy" does.
_CLOSED = """
    camera clipboard-read display-capture fullscreen geolocation gyroscope hid microphone midi payment
    picture-in-picture publickey-credentials-get screen-wake-lock serial usb
"""

HEADERS = {
    "Cache-Control": "no-cache",  # kept, and asked for again each time: a new version of the worker is a new page
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": ", ".join(f"{feature}=()" for feature in _CLOSED.split()),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@frozen
class Asset:
    """A file as it goes out."""

    body: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, body: bytes, media_type: str) -> Asset:
        return cls(body, media_type, f'"{sha256(body).hexdigest()[:32]}"')


Assets: TypeAlias = dict[str, Asset]


def assets() -> Assets:
    """The files of the page by their path from `page/`, with slashes."""
    return {
        path.relative_to(PAGE).as_posix(): Asset.of(path.read_bytes(), _TYPES[path.suffix])
        for path in sorted(PAGE.rglob("*"))
        if path.suffix in _TYPES and path.is_file()
    }


def about(config: WorkerConfig, authenticated: bool) -> Asset:
    """What the page has to know of its worker before it connects. Anybody may read it."""
    told: dict[str, Any] = {
        "worker_id": config.worker_id,
        "assistant_name": config.assistant_name,
        "version": VERSION,
        "max_frame_bytes": config.max_frame_bytes,
        "max_data_url_bytes": config.max_data_url_bytes,
        "authenticated": authenticated,
    }
    return Asset.of(dumps(told).encode(), "application/json")
