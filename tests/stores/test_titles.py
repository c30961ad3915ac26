"""A pattern finds a text in whatever case, and nothing else: in Python, as in the databases that are given it."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dooers.stores.titles import is_in, pattern_of

LETTERS = [chr(code) for code in range(0x20000) if unicodedata.category(chr(code)) in ("Lu", "Ll")]


def test_every_letter_finds_its_other_case_where_that_is_one_letter() -> None:
    missing = [
        (letter, other)
        for letter in LETTERS
        for other in (letter.lower(), letter.upper())
        if len(other) == 1 and not is_in(pattern_of(letter), other)
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("asked", "there"), [("\u03c3", "\u03c2"), ("\u03c2", "\u03a3"), ("ß", "\u1e9e"), ("\u1e9e", "ß")]
)
def test_letters_of_three_forms_find_one_another(asked: str, there: str) -> None:
    assert is_in(pattern_of(asked), there)


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_a_text_is_found_wherever_it_stands_and_whatever_it_is_made_of(before: str, text: str, after: str) -> None:
    assert is_in(pattern_of(text), before + text + after)


@given(st.text(max_size=6), st.text(max_size=20))
def test_what_is_found_is_there_letter_by_letter(text: str, title: str) -> None:
    def same(a: str, b: str) -> bool:
        return a == b or bool({a.lower(), a.upper(), a.casefold()} & {b.lower(), b.upper(), b.casefold()})

    spots = range(len(title) - len(text) + 1)
    there = any(all(same(a, b) for a, b in zip(text, title[at:], strict=False)) for at in spots)
    assert is_in(pattern_of(text), title) <= there


@given(st.text(max_size=50))
def test_a_pattern_has_nothing_in_it_but_characters_and_sets_of_them(text: str) -> None:
    one = r"(\\[^0-9A-Za-z]|\[[^\]\[^\\-]{2,}\]|[^\\\[\]^$.|?*+(){}])"
    assert re.fullmatch(f"{one}*", pattern_of(text), re.DOTALL)


def test_no_title_holds_anything() -> None:
    assert not is_in(pattern_of(""), None)
    assert is_in(pattern_of(""), "")
