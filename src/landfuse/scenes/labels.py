"""Labels that are pictures: the colour of a pixel is that of its class, as in the ISPRS benchmarks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from landfuse.errors import SceneError, few
from landfuse.legend import UNLABELLED, Legend
from landfuse.palette import rgb
from landfuse.rasters.geotiff import GdalRaster

_ROWS = 1 << 21  # pixels compared at a time


def read_colours(
    raster: GdalRaster, legend: Legend, ignored: Sequence[str], tolerance: float, unlisted: Counter[str] | None
) -> NDArray[np.uint8]:
    """A raster's picture as classes, see `classes_of_colours`; (H, W), `UNLABELLED` where it has no data."""
    picture, outside = raster.read_numbers(raster.grid.window)
    classes = classes_of_colours(
        picture, legend, ignored=ignored, tolerance=tolerance, unlisted=unlisted, where=raster.path
    )
    return classes if outside is None else np.where(outside, UNLABELLED, classes).astype(np.uint8)


def classes_of_colours(
    picture: NDArray[np.generic],
    legend: Legend,
    *,
    ignored: Sequence[str] = (),
    tolerance: float = 0.0,
    unlisted: Counter[str] | None = None,
    where: str = "the labels",
) -> NDArray[np.uint8]:
    """Converts colours to classes.

    Args:
        picture: (3, H, W) red, green, blue, 0 to 255.
        ignored: colours, `#RRGGBB`, that mean "unlabelled".
        tolerance: largest distance of a colour from the nearest of those, in red, green and blue (0 to 441);
            above 0 for pictures that were compressed with loss.
        unlisted: counts the pixels of colours farther away, which are then unlabelled; by default they are an error.
        where: names the source in messages.

    Returns:
        (H, W) uint8: 0..K-1, or `UNLABELLED`.

    Raises:
        SceneError: where such a colour occurs and is not counted, or two classes have one colour.
    """
    palette = np.array([*(c.rgb for c in legend), *(rgb(colour) for colour in ignored)], np.int32)
    classes = np.array([*range(len(legend)), *(UNLABELLED for _ in ignored)], np.uint8)
    if len(np.unique(palette, axis=0)) < len(palette):
        raise SceneError(
            f"{where} name classes by their colour, and two have the same one",
            "a colour for each class and each ignored one",
            "correct the colours in `legend`",
        )
    flat = picture.reshape(3, -1)
    result = np.full(flat.shape[1], UNLABELLED, np.uint8)
    far = Counter[str]()
    for start in range(0, flat.shape[1], _ROWS):
        part = flat[:, start : start + _ROWS].astype(np.int32)
        found = np.full(part.shape[1], UNLABELLED, np.uint8)
        left = np.ones(part.shape[1], bool)
        for colour, number in zip(palette, classes, strict=True):
            same = (part == colour[:, None]).all(axis=0)
            found[same] = number
            left &= ~same
        rest = part[:, left]
        if rest.size:
            colours, inverse, counts = np.unique(rest.T, axis=0, return_inverse=True, return_counts=True)
            squares = ((colours[:, None] - palette[None]) ** 2).sum(axis=2)
            near = squares.min(axis=1) <= tolerance**2
            found[left] = np.where(near, classes[squares.argmin(axis=1)], UNLABELLED)[inverse.reshape(-1)]
            for colour, count in zip(colours[~near].tolist(), counts[~near].tolist(), strict=True):
                far["#{:02X}{:02X}{:02X}".format(*colour)] += count
        result[start : start + _ROWS] = found
    if unlisted is not None:
        unlisted.update(far)
    elif far:
        raise SceneError(
            f"{where} hold {sum(far.values()):,} pixels of {len(far):,} colours that the legend lacks: "
            + few([colour for colour, _ in far.most_common()]),
            f"only {', '.join(c.colour for c in legend)}, or a colour listed as ignored",
            "add the class to `legend`, list the colour under `labels: colours: ignored:`, or set a `tolerance` there",
        )
    return result.reshape(picture.shape[1:])
