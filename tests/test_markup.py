"""What notebooks show of landfuse's objects: HTML that needs nothing else and has no colours but those of classes."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import landfuse as lf
from landfuse.markup import table
from landfuse.training.run import read_run

OLD = Path(__file__).parent / "data" / "old"


def cells(html: str) -> list[list[str]]:
    rows = ElementTree.fromstring(html).findall("tr")
    return [["".join(cell.itertext()) for cell in row] for row in rows]


def test_cells_are_escaped() -> None:
    assert '<td style="text-align:left">&lt;b&gt; &amp; c</td>' in table("of <all>", ["a"], [["<b> & c"]])
    assert cells(table("of <all>", ["a"], [["<b> & c"]])) == [["a"], ["<b> & c"]]


@pytest.fixture(params=["scene", "legend", "confusion", "run"])
def html(request: pytest.FixtureRequest, place: Path) -> str:
    shown = {
        "scene": lambda: lf.open_scene(place),
        "legend": lambda: lf.open_scene(place).legend,
        "confusion": lambda: lf.Confusion(2, np.array([[3, 1], [0, 4]])),
        "run": lambda: read_run(OLD / "runs" / "two_branch"),
    }[request.param]()
    return str(shown._repr_html_())


def test_it_is_whole_by_itself_and_readable_on_dark_pages(html: str) -> None:
    ElementTree.fromstring(html)
    assert not re.search(r"src=|href=|<script|<style|class=", html)
    styles = [style for style in re.findall(r'style="([^"]*)"', html) if "inline-block" not in style]
    assert not any("color" in style or "background" in style for style in styles)


def test_what_it_says(place: Path) -> None:
    scene = lf.open_scene(place)
    assert cells(scene._repr_html_())[1][:5] == ["a", "3", "float32", "1", "1"]
    assert [row[2] for row in cells(scene.legend._repr_html_())[1:]] == scene.legend.names
    shown = cells(lf.Confusion(2, np.array([[3, 1], [0, 4]]))._repr_html_())
    assert shown[1] == ["0", "3", "1", "1.000", "0.750", "0.857"]
    scores = read_run(OLD / "runs" / "two_branch").scores["test"]
    assert ["OA", f"{scores['OA']:.3f}"] in cells(read_run(OLD / "runs" / "two_branch")._repr_html_())
