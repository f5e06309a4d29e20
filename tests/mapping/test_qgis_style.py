"""A legend as QGIS reads it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from landfuse.legend import LandClass, Legend
from landfuse.mapping.map_extras import sizes_legend, style_of


def test_each_class_has_its_code_colour_and_name() -> None:
    legend = Legend(
        (
            LandClass("water", 0, "#0000FF"),
            LandClass('wood & <"scrub">', 3, "#00fF00"),
            LandClass("Äcker", 254, "#123456"),
        )
    )
    root = ElementTree.fromstring(style_of(legend))
    assert root.tag == "qgis"
    [renderer] = root.findall("pipe/rasterrenderer")
    assert (renderer.get("type"), renderer.get("band")) == ("paletted", "1")
    found = [
        (e.get("value"), e.get("color"), e.get("label"), e.get("alpha")) for e in renderer.find("colorPalette") or ()
    ]
    assert found == [
        ("0", "#0000ff", "water", "255"),
        ("3", "#00ff00", 'wood & <"scrub">', "255"),
        ("254", "#123456", "Äcker", "255"),
    ]


def test_sets_of_more_classes_are_darker_up_to_five() -> None:
    found = [(one.code, one.name, one.colour) for one in sizes_legend(6)]
    assert found[:2] == [(1, "1 class", "#FFFFCC"), (2, "2 classes", "#FECC5C")]
    assert found[4:] == [(5, "5 classes", "#800026"), (6, "6 classes", "#800026")]
