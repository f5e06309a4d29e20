"""A legend as a style of QGIS, which it finds beside a map under the map's name: `map.qml`."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from landfuse.legend import Legend


def style_of(legend: Legend) -> str:
    """The style of a map with one band of codes: each class in its colour, named in the list of layers.

    Args:
        legend: of the map; other codes are not drawn.

    Returns:
        XML, with the elements that QGIS 3 reads; what is left out it fills in itself.
    """
    root = ElementTree.Element("qgis", version="3.0.0", styleCategories="Symbology")
    pipe = ElementTree.SubElement(root, "pipe")
    renderer = ElementTree.SubElement(pipe, "rasterrenderer", type="paletted", band="1", alphaBand="-1", opacity="1")
    palette = ElementTree.SubElement(renderer, "colorPalette")
    for one in legend:
        ElementTree.SubElement(
            palette, "paletteEntry", value=str(one.code), color=one.colour.lower(), alpha="255", label=one.name
        )
    ElementTree.SubElement(pipe, "rasterresampler", zoomedInResampler="nearest", zoomedOutResampler="nearest")
    ElementTree.SubElement(root, "blendMode").text = "0"
    ElementTree.indent(root)
    return f"<!DOCTYPE qgis>\n{ElementTree.tostring(root, encoding='unicode')}\n"
