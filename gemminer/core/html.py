"""A table for a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """HTML of a table under its title; the first column is text, the others are numbers.

    >>> table("a", ["layer", "kept"], [("<x>", 1)]).count("&lt;x&gt;")
    1
    """
    cells = [[*head], *(map(str, row) for row in rows)]
    lines = []
    for number, row in enumerate(cells):
        tag = "td" if number else "th"
        aligned = ("left", *["right"] * (len(head) - 1))
        line = (f'<{tag} style="text-align:{side}">{escape(x)}</{tag}>' for side, x in zip(aligned, row, strict=True))
        lines.append(f"<tr>{''.join(line)}</tr>")
    return f'<table><caption style="text-align:left">{escape(title)}</caption>{"".join(lines)}</table>'
