"""What people attach to a message in a channel, as content; and what is in the data URLs of what they are sent.

It comes with its bytes: a vendor's own URL is good for minutes, for who has the token, or has the token in it.
"""

from __future__ import annotations

import asyncio
import re
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Mapping
from urllib.parse import unquote_to_bytes

import httpx

from dooers import ContentPart, DocumentPart, ImagePart, TextPart
from dooers_contrib.channel import Lost

__all__ = ["attachment", "bytes_of", "download"]

IMAGES = frozenset({"image/jpeg", "image/png", "image/webp", "image/gif"})
_MIME = re.compile(r"[a-z0-9][\w.+-]*/[\w.+-]+", re.ASCII)


async def download(client: httpx.AsyncClient, url: str, limit: int, headers: Mapping[str, str] | None = None) -> bytes:
    """What is at a URL, within bounds. Lost else."""
    try:
        async with client.stream("GET", url, headers=headers) as response:
            status = response.status_code
            if status == 429 or status >= 500:
                raise Lost(f"status {status}", again=True)
            if status != 200:
                raise Lost(f"status {status}")
            data = bytearray()
            async for chunk in response.aiter_bytes():
                data += chunk
                if len(data) > limit:
                    raise Lost(f"it has more than {limit} bytes")
            return bytes(data)
    except httpx.InvalidURL:
        raise Lost("it has no address") from None


async def attachment(kind: str, filename: str, timeout: float, fetch: Awaitable[tuple[str, bytes]]) -> ContentPart:
    """What somebody attached, with its bytes, or a text in its place where it is not to be had at all.

    Lost when it may be had later: the message is not acknowledged then, and the vendor brings it again.
    """
    try:
        async with asyncio.timeout(timeout):
            told, data = await fetch
    except Lost as error:
        if error.again:
            raise
        return TextPart(f"[{kind} that could not be read: {error}]")
    except (httpx.HTTPError, TimeoutError) as error:
        raise Lost(type(error).__name__, again=True) from None
    mime = told.partition(";")[0].strip().lower()
    mime = mime if _MIME.fullmatch(mime) else "application/octet-stream"
    url = f"data:{mime};base64,{b64encode(data).decode()}"
    if mime in IMAGES:
        return ImagePart(url, mime)
    name = filename or f"{kind}.{re.sub(r'[^a-z0-9]', '', mime.partition('/')[2]) or 'bin'}"
    return DocumentPart(url, name[:200], mime, len(data))


def bytes_of(url: str) -> tuple[str, bytes] | None:
    """The type and the bytes that are in a data URL; None for a URL that is a link. Lost when it is neither."""
    if url[:5].lower() != "data:":
        return None
    head, _, text = url[5:].partition(",")
    data = unquote_to_bytes(text)
    try:
        data = b64decode(data) if head.endswith(";base64") else data
    except ValueError:
        raise Lost("its data URL is no base64") from None
    return head.partition(";")[0].lower() or "text/plain", data
