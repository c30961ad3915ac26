"""What it means that a title contains a text, in whatever case: a pattern that means the same to every database. No statements.

Databases differ in what they take for the same letter in another case: SQLite knows ASCII only, PostgreSQL what the locale of the database
knows, which may be ASCII only. So the letters are looked up here, and the databases compare nothing but characters.
"""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["is_in", "pattern_of"]

# Letters with a third form that no other form leads to, by what they are when case is folded: the sigma at the end of a word, the large ß.
_THIRD = {"\u03c3": "\u03c2", "ss": "\u1e9e"}


def pattern_of(text: str) -> str:
    """A regular expression that finds a text in whatever case. As Python reads it, and PostgreSQL, and Cosmos DB: it has nothing in it
    but characters, sets of them, and backslashes before ASCII that is neither letter nor digit."""
    return "".join(map(_any_case, text))


def _any_case(char: str) -> str:
    small = char.casefold()
    forms = {char, small, small.upper(), char.lower(), char.upper(), char.title(), _THIRD.get(small, char)}
    # Letter by letter: what is several letters in another case, as the German ß is, is left out.
    letters = sorted(one for one in forms if len(one) == 1)
    return f"[{''.join(letters)}]" if len(letters) > 1 else re.escape(char)


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def is_in(pattern: str, title: str | None) -> bool:
    """Whether a title holds what a pattern of `pattern_of` finds."""
    return title is not None and _compiled(pattern).search(title) is not None
