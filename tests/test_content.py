"""What a message may hold: how much, and URLs that other people's browsers may open."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dooers import DocumentPart, ImagePart, TextPart, WorkerConfig
from dooers.content import check_content, check_url
from dooers.exceptions import DooersError, InvalidValueError, TooLargeError

GOOD = [
    "https://example.com",
    "http://example.com/a b?q=1#x",
    "HTTPS://EXAMPLE.COM/é",
    "https://[::1]:8000/x",
    "data:,hello",
    "data:text/plain;charset=utf-8,hello",
    "data:application/pdf;base64,JVBERi0=",
    "DATA:image/png;base64,iVBORw0=",
]
BAD = [
    "",
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "java\nscript:alert(1)",
    "\tjavascript:alert(1)",
    " https://example.com",
    "\x00https://example.com",
    "vbscript:x",
    "file:///etc/passwd",
    "ftp://example.com",
    "blob:https://example.com/1",
    "//example.com",
    "/relative",
    "example.com",
    "https:",
    "https:/example.com",
    "https://",
    "https:///path",
    "https://?q",
    "https://#x",
    "https://\\example.com",
    "https:\\\\example.com",
    "https://example.com/\nx",
    "https://example.com/\x7f",
    "data:",
    "data:text/html",
    "data:image/png;base64,a b",
    "data:image/png;base64,a\nb",
    "data :,x",
]


@pytest.mark.parametrize("url", GOOD)
def test_the_web_and_data_may_be_pointed_at(url: str) -> None:
    check_url(url, "url")


@pytest.mark.parametrize("url", BAD)
@pytest.mark.parametrize("image", [True, False])
def test_anything_else_is_refused_with_its_path(url: str, image: bool) -> None:
    with pytest.raises(InvalidValueError, match=r"^content\[3\]\.url: expected an http, https or data URL"):
        check_url(url, "content[3].url", image=image)


@pytest.mark.parametrize("url", ["data:,x", "data:text/html,<script>", "data:text/html;image/png,x", "data:;base64,x"])
def test_an_image_is_no_data_of_another_kind(url: str) -> None:
    check_url(url, "url")
    with pytest.raises(InvalidValueError, match="expected the data URL of an image"):
        check_url(url, "url", image=True)


@given(st.text(max_size=30), st.sampled_from(["javascript:", "vbscript:", "data:text/html,", "https://", ""]))
def test_what_passes_is_of_a_known_scheme_once_a_browser_has_dropped_what_it_drops(text: str, prefix: str) -> None:
    url = prefix + text
    try:
        check_url(url, "url")
    except InvalidValueError:
        return
    seen = url.strip().replace("\t", "").replace("\n", "").replace("\r", "").lower()
    assert seen.startswith(("http://", "https://", "data:"))


def test_a_long_url_is_quoted_short() -> None:
    with pytest.raises(InvalidValueError) as refused:
        check_url("x" * 100_000, "url")
    assert len(str(refused.value)) < 200


LIMITS = WorkerConfig(database_type="memory", max_content_parts=2, max_text_length=10, max_data_url_bytes=30)
PICTURE = "data:image/png;base64,"
IMAGE, DOCUMENT = ImagePart("https://e.com/a.png"), DocumentPart("https://e.com/a.pdf", "a.pdf", "application/pdf")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ([], None),
        ([TextPart("x" * 10)], None),
        ([TextPart("x" * 4), TextPart("y" * 6)], None),
        ([IMAGE, DOCUMENT], None),
        ([ImagePart("https://e.com/" + "x" * 1000)], None),
        ([ImagePart(PICTURE + "x" * 8)], None),
        ([IMAGE] * 3, TooLargeError),
        ([TextPart("x" * 11)], TooLargeError),
        ([TextPart("x" * 5), TextPart("y" * 6)], TooLargeError),
        ([ImagePart(PICTURE + "x" * 9)], TooLargeError),
        ([ImagePart(PICTURE.upper() + "x" * 9)], TooLargeError),
        ([DocumentPart("data:," + "x" * 25, "a", "b")], TooLargeError),
        ([DocumentPart("javascript:x", "a", "b")], InvalidValueError),
        ([TextPart("a"), ImagePart("data:text/html,x")], InvalidValueError),
    ],
)
def test_content_is_held_to_its_limits(content: list[Any], error: type[DooersError] | None) -> None:
    if error is None:
        check_content(content, LIMITS, "content")
    else:
        with pytest.raises(error, match=r"^content"):
            check_content(content, LIMITS, "content")


def test_a_data_url_is_measured_in_bytes() -> None:
    check_content([ImagePart(PICTURE + "x" * 8)], LIMITS, "content")
    with pytest.raises(TooLargeError):
        check_content([ImagePart(PICTURE + "é" * 8)], LIMITS, "content")


def test_data_of_no_bytes_allowed_is_no_data_at_all() -> None:
    none = WorkerConfig(database_type="memory", max_data_url_bytes=0)
    with pytest.raises(TooLargeError):
        check_content([ImagePart(PICTURE + "x")], none, "content")
