"""HTML for notebooks: tables without colours of their own, readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


class Markup(str):
    """Text that is HTML already."""


def swatch(colour: str) -> Markup:
    """A small square of a colour, `#RRGGBB`."""
    style = "display:inline-block;width:1em;height:1em;border:1px solid;vertical-align:middle"
    return Markup(f'<span style="{style};background:{escape(colour)}"></span>')


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a caption; cells are escaped unless they are `Markup`."""

    def line(cells: Sequence[object], kind: str) -> str:
        found = (cell if isinstance(cell, Markup) else escape(str(cell)) for cell in cells)
        return "<tr>" + "".join(f'<{kind} style="text-align:left">{cell}</{kind}>' for cell in found) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><caption>{escape(caption)}</caption>{line(head, 'th')}{body}</table>"
