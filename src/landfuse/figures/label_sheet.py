"""Labels in doubt as a page: what the images show at each, its outline, and which class it has and may have."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landfuse.figures.contact_sheet import SHEET_STYLE, small_picture
from landfuse.figures.overview import closeups
from landfuse.markup import percent, swatch
from landfuse.rasters.grid import Grid
from landfuse.rasters.vector_map import outlines
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene

_SIDE = 122
"""Pixels along a side of a picture, about."""
_LEAST, _MOST = 24, 256
"""Pixels of the scene along a side of a picture: enough to see what is around, and to see pixels."""


def label_sheet(
    labels: Sequence[Any], total: int, scenes: Sequence[Scene], numbers: Sequence[NDArray[np.int32]]
) -> str:
    """A page with the surroundings of labels in the scene's images, and their outlines.

    Args:
        labels: with `rank`, `tile`, `label`, `given`, `suggested`, `score`, `pixels` and `disagree`, the first one on
            top.
        numbers: of each tile, which label each pixel is of, (H, W).
    """
    tiles = {scene.name: place for place, scene in enumerate(scenes)}
    masks = [numbers[tiles[one.tile]] == one.label for one in labels]
    boxes = [[(int(side.min()), int(side.max()) + 1) for side in np.nonzero(mask)] for mask in masks]
    extents = [max(last - first for first, last in box) for box in boxes]
    side = int(np.clip(2 * np.percentile(extents, 75), _LEAST, _MOST)) if labels else _LEAST
    corners = [[(first + last - side) // 2 for first, last in box] for box in boxes]
    windows = [Window(row, col, side, side) for row, col in corners]
    places = [(scenes[tiles[one.tile]], window) for one, window in zip(labels, windows, strict=True)]
    pictures = {name: closeups(places, name, _SIDE) for name in scenes[0].modalities} if labels else {}
    colours = {one.name: one.colour for one in scenes[0].legend}
    page = [
        SHEET_STYLE.format(sign="", title="Labels in doubt"),
        f"<h1>The {len(labels):,} most doubtful of {total:,} labels</h1>",
        "<p>Models that learnt from other places doubt the class of the label. That is a reason to look, not a proof: "
        "the label may be right, and the model wrong.</p><main>",
    ]
    for place, (one, mask, window) in enumerate(zip(labels, masks, windows, strict=True)):
        inside = window.intersection(places[place][0].grid.window)
        part = mask[inside.within(places[place][0].grid.window)].astype(np.int32)
        shape = outlines([part], [Grid(*part.shape)])[1]
        polygons = list(getattr(shape, "geoms", [shape]))
        path = " ".join(
            "M"
            + "L".join(f"{x + inside.col - window.col:g},{y + inside.row - window.row:g}" for x, y in ring.coords)
            + "Z"
            for polygon in polygons
            for ring in (polygon.exterior, *polygon.interiors)
        )
        drawn = f'<svg viewBox="0 0 {side} {side}"><path d="{path}"/></svg>'
        given, suggested = (f"{swatch(colours[name])} {html.escape(name)}" for name in (one.given, one.suggested))
        page.append(
            f'<section id="{one.label}"><h2>{one.rank}: {given} &rarr; {suggested}</h2><p>label {one.label} in '
            f"{html.escape(one.tile)}, {one.pixels:,} px, {percent(one.disagree)} of which disagree; probability of "
            f"the given class {one.score:.3f}</p><div>"
        )
        for name, of_labels in pictures.items():
            page.append(small_picture(of_labels[place], name, f"label {one.label}", drawn))
        page.append("</div></section>")
    return "\n".join([*page, "</main></body></html>\n"])
