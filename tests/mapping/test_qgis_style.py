"""A legend as QGIS reads it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from landfuse.legend import LandClass, Legend
from landfuse.mapping.map_extras import style_of


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
