"""What the content of a message may be: how much of it, and where its images and documents may point; and what a title may be.

Rules only, no storage.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dooers.config import WorkerConfig
from dooers.exceptions import InvalidValueError, TooLargeError, quoted
from dooers.models import ContentPart, ImagePart, TextPart

__all__ = ["check_content", "check_url", "one_line"]

# Other people's browsers will open these: `javascript:` must not pass, nor what a browser makes of "java\nscript:" by dropping
# the line break. So: the schemes that are known, and no control characters anywhere.
# ASCII, because Unicode folds other letters into these: to a browser "http\u017f:" is no scheme at all, and so a path of our own host.
_WEB = re.compile(r"https?://[^\x00-\x20\x7f/?#\\][^\x00-\x1f\x7f]*", re.IGNORECASE | re.ASCII)
_DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+)?[;,][^\x00-\x20\x7f]*", re.IGNORECASE | re.ASCII)


def check_url(url: str, path: str, *, image: bool = False) -> None:
    """Raise InvalidValueError unless an image or a document may point there: http, https, or data (of an image, for images)."""
    data = _DATA.fullmatch(url)
    if data is None and not _WEB.fullmatch(url):
        raise InvalidValueError(f"{path}: expected an http, https or data URL, got {quoted(url)}")
    if data is not None and image and not (data[1] or "").lower().startswith("image/"):
        raise InvalidValueError(f"{path}: expected the data URL of an image, got {quoted(url)}")


def check_content(content: Sequence[ContentPart], limits: WorkerConfig, path: str) -> None:
    """Raise InvalidValueError or TooLargeError for content that a client may not send."""
    if len(content) > limits.max_content_parts:
        raise TooLargeError(f"{path}: at most {limits.max_content_parts} parts, got {len(content)}")
    length = sum(len(part.text) for part in content if isinstance(part, TextPart))
    if length > limits.max_text_length:
        raise TooLargeError(f"{path}: at most {limits.max_text_length} characters of text, got {length}")
    for index, part in enumerate(content):
        if isinstance(part, TextPart):
            continue
        check_url(part.url, f"{path}[{index}].url", image=isinstance(part, ImagePart))
        if part.url[:5].lower() == "data:" and len(part.url.encode(errors="surrogatepass")) > limits.max_data_url_bytes:
            raise TooLargeError(f"{path}[{index}].url: a data URL of at most {limits.max_data_url_bytes} bytes")


# A line of a list, or what somebody looks for in one.
MAX_LINE = 200
_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def one_line(text: str | None, path: str) -> str | None:
    """A text of people as one line: without line breaks, control characters, and space around it. None where nothing is left.

    TooLargeError for more than a title may have.
    """
    line = "" if text is None else _BREAKS.sub(" ", text).strip()
    if len(line) > MAX_LINE:
        raise TooLargeError(f"{path}: at most {MAX_LINE} characters, got {len(line)}")
    return line or None
