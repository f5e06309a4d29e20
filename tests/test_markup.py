"""Numbers for people keep the digits that matter."""

from __future__ import annotations

import math

import pytest

from landfuse.markup import decimals, percent


@pytest.mark.parametrize(
    ("fraction", "one", "none"),
    [
        *((0, "0%", "0%"), (1, "100%", "100%"), (0.5, "50.0%", "50%"), (0.003, "0.3%", "0.3%")),
        *((0.0004, "< 0.1%", "< 0.1%"), (0.9996, "99.96%", "99.96%"), (0.99999, "> 99.99%", "> 99.99%")),
        *((0.996, "99.6%", "99.6%"), (0.9994, "99.9%", "99.9%"), (math.nan, "–", "–"), (0.123, "12.3%", "12%")),
    ],
)
def test_only_none_is_0_percent_and_only_all_is_100(fraction: float, one: str, none: str) -> None:
    assert (percent(fraction), percent(fraction, 0)) == (one, none)


def test_a_score_is_0_or_1_only_where_it_is() -> None:
    values = (0, 1, 0.0004, 0.0006, 0.9994, 0.9996, 0.99999, None, math.nan)
    wanted = ["0.000", "1.000", "< 0.001", "0.001", "0.999", "0.9996", "> 0.9999", "–", "–"]
    assert [decimals(value) for value in values] == wanted
