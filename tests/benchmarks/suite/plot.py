"""Pairs of bars with error marks, as SVG: readable on light and on dark pages. Not a library for plots."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from attrs import frozen

__all__ = ["Bar", "picture"]

WIDTH, LEFT, RIGHT, TOP, ROW, GAP = 760, 230, 90, 62, 15, 14
STYLE = """
    .ground { fill: #ffffff; stroke: #c9d1d9 }
    text { fill: #1f2328 }
    .ours { fill: #1f5fbf }
    .limit { fill: #b9c2cc }
    .mark { stroke: #1f2328; stroke-width: 1.2 }
    @media (prefers-color-scheme: dark) {
      .ground { fill: #161b22; stroke: #3d444d }
      text { fill: #e6edf3 }
      .ours { fill: #6ea8ff }
      .limit { fill: #57606a }
      .mark { stroke: #e6edf3 }
    }
"""


@frozen
class Bar:
    """A value with its least and its greatest."""

    value: float
    low: float
    high: float


def picture(title: str, limit: str, rows: Sequence[tuple[str, Bar, Bar]]) -> str:
    """What each row is, ours, and the limit. Every row has a scale of its own: only the pair is to be compared."""
    height = TOP + len(rows) * (2 * ROW + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<rect class="ground" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        f'<text x="16" y="24" font-size="15" font-weight="600">{escape(title)}</text>',
        '<rect class="ours" x="16" y="36" width="12" height="12"/><text x="34" y="46">dooers</text>',
        f'<rect class="limit" x="96" y="36" width="12" height="12"/><text x="114" y="46">{escape(limit)}</text>',
    ]
    for number, (name, ours, other) in enumerate(rows):
        top = TOP + number * (2 * ROW + GAP)
        parts.append(f'<text x="{LEFT - 10}" y="{top + ROW + 4}" text-anchor="end">{escape(name)}</text>')
        scale = (WIDTH - LEFT - RIGHT) / (max(ours.high, other.high) or 1)
        for kind, bar, y in (("ours", ours, top), ("limit", other, top + ROW)):
            middle, end = y + (ROW - 2) / 2, LEFT + bar.value * scale
            low, high = LEFT + bar.low * scale, LEFT + bar.high * scale
            parts.append(f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{end - LEFT:.1f}" height="{ROW - 2}"/>')
            parts.append(f'<line class="mark" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>')
            parts.append(f'<text x="{max(high, end) + 6:.1f}" y="{y + ROW - 4}">{bar.value:,.0f}</text>')
    return "\n".join((*parts, "</svg>\n"))
