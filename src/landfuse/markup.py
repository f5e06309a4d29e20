"""Numbers and tables for people: fractions that keep the digits that matter, and HTML for notebooks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as a percentage; only 0 is 0% and only 1 is 100%: `0.3%`, `< 0.1%`, `99.96%`; a dash for NaN.

    Args:
        fraction: 0..1.
        digits: after the point; more where the percentage would read 0 or 100.
    """
    if math.isnan(fraction):
        return "–"
    if 0 < fraction < 0.001:
        return "< 0.1%"
    texts = [f"{fraction:.{places}%}" for places in range(digits, 3)]
    return next(
        (text for text in texts if 0 < float(text[:-1]) < 100), f"{fraction:.0%}" if fraction in (0, 1) else "> 99.99%"
    )


def decimals(value: float | None) -> str:
    """A score with three digits; only 0 is 0.000 and only 1 is 1.000: `< 0.001`, `0.9996`; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return "–"
    if 0 < value < 0.0005 or 0.99995 <= value < 1:
        return "< 0.001" if value < 0.5 else "> 0.9999"
    return f"{value:.{4 if 0.9995 <= value < 1 else 3}f}"


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
