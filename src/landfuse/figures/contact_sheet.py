"""The places of a reference sample as a page to interpret them by: what the images of a scene show around each."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from landfuse.accuracy.reference_sample import ReferenceSample
from landfuse.errors import GridError
from landfuse.figures.images import Photograph, data_uri
from landfuse.figures.overview import closeups
from landfuse.rasters.grid import pixel_areas
from landfuse.rasters.windows import Window
from landfuse.scenes.leaks import onto_crs
from landfuse.scenes.scene import Scene

MOST_POINTS = 1000
"""Points that a sheet shows, at most: the first ones."""

_AROUND = 30
"""Pixels of the map that are shown on each side of a place."""

_SIDE = 122
"""Pixels along a side of a picture, about."""

SIGN = '<meta name="generator" content="landfuse sample">'
"""By what a sheet is known to be landfuse's."""

SHEET_STYLE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">{sign}<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 15px system-ui, sans-serif; margin: 1rem }}
main {{ display: flex; flex-wrap: wrap; gap: 1rem }}
section {{ border: 1px solid #8886; padding: .6rem; break-inside: avoid }}
h2 {{ font-size: 1rem; margin: 0 }}
p {{ margin: .2rem 0 .5rem }}
section div {{ display: flex; flex-wrap: wrap; gap: .5rem }}
figure {{ margin: 0; position: relative; width: 244px }}
img {{ width: 244px; height: 244px; image-rendering: pixelated; background: #fff; display: block }}
i {{ position: absolute; box-sizing: content-box; left: 122px; top: 122px; transform: translate(-50%, -50%);
  border: 1.5px solid #f0f; outline: 1px solid #fff }}
svg {{ position: absolute; left: 0; top: 0; width: 244px; height: 244px }}
path {{ fill: none; stroke: #f0f; stroke-width: 1.5px; vector-effect: non-scaling-stroke }}
figcaption {{ font-size: .85rem; overflow-wrap: anywhere }}
</style></head><body>
"""
"""How pages of many small pictures begin, of 244 px each."""


def small_picture(image: NDArray[np.uint8], modality: str, what: str, drawn: str) -> str:
    """An element of such a page: what a modality shows around something, with what is drawn over it."""
    uri, name = data_uri(Photograph(image, np.ones(image.shape[:2], bool), exact=0)), html.escape(modality)
    return (
        f'<figure><img src="{uri}" alt="{name} around {what}" loading="lazy">{drawn}'
        f"<figcaption>{name}</figcaption></figure>"
    )


def contact_sheet(sample: ReferenceSample, scenes: Sequence[Scene]) -> str:
    """A page with each point's surroundings in the scene's images, and the pixel to be observed in a frame.

    What the map says there is left out: it would lead the eye.

    Args:
        scenes: the tiles of a scene, all of one set of modalities, with images of the same ground.

    Raises:
        GridError: if no point lies in the scene.
    """
    first, shown = scenes[0], min(len(sample), MOST_POINTS)
    areas = pixel_areas(first.grid)
    ratio = math.sqrt(sample.pixel_m2[0]) / areas.metres if areas else 1.0
    ratio = ratio if math.isfinite(ratio) else 1.0  # the side of the map's pixels, in pixels of the scene
    around = max(4, round(_AROUND * ratio))
    places: dict[int, tuple[Scene, Window]] = {}
    for scene in scenes:
        row, col = _pixels(sample, scene)
        inside = (row >= 0) & (row < scene.grid.height) & (col >= 0) & (col < scene.grid.width)
        for point in np.flatnonzero(inside[:shown]).tolist():
            places.setdefault(point, (scene, Window(int(row[point]), int(col[point]), 1, 1).padded(around)))
    if not places:
        raise GridError(
            f"no point of the sample lies in the scene `{first.name}`",
            f"a scene that covers {sample.source}",
            "name the scene of the map",
        )
    pictures = {name: closeups(list(places.values()), name, _SIDE) for name in first.modalities}
    frame = f"{max(5.0, 244 * ratio / (2 * around + 1)):.1f}px"
    drawn = f'<i style="width: {frame}; height: {frame}"></i>'
    degrees = onto_crs(sample.crs, "EPSG:4326", sample.x, sample.y) if sample.crs else None
    names = ", ".join(f"{code} {name}" for code, name in sorted(sample.names.items()))
    page = [
        SHEET_STYLE.format(sign=SIGN, title="Sample"),
        f"<h1>{shown:,} of {len(sample):,} points of {html.escape(sample.source)}</h1>",
        f"<p>Write what is in each frame into <code>reference</code>: a code or a name ({html.escape(names)}), "
        "other for none of them, or 255 where it cannot be known. What the map says is not shown, so that it does not "
        "lead the eye.</p><main>",
    ]
    order = {point: place for place, point in enumerate(places)}
    for point in range(shown):
        where = f"x {sample.x[point]:.2f}, y {sample.y[point]:.2f}" + (
            f"; {degrees[1][point]:.6f}, {degrees[0][point]:.6f} (latitude, longitude)" if degrees else ""
        )
        page.append(f'<section id="{point + 1}"><h2>{point + 1}</h2><p>{where}</p><div>')
        for name, of_points in pictures.items():
            if point not in order:
                page.append("<figure>outside the scene</figure>")
                break
            page.append(small_picture(of_points[order[point]], name, f"point {point + 1}", drawn))
        page.append("</div></section>")
    return "\n".join([*page, "</main></body></html>\n"])


def _pixels(sample: ReferenceSample, scene: Scene) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows and columns of the points in a scene's grid, each (n,)."""
    x, y = sample.x, sample.y
    if sample.crs and scene.grid.crs:
        x, y = onto_crs(sample.crs, scene.grid.crs, x, y)
    known = np.isfinite(x) & np.isfinite(y)
    row, col = scene.grid.pixels(np.where(known, x, 0), np.where(known, y, 0))
    return np.where(known, row, -1), col
