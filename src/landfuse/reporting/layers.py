"""The layers of a report's map: each as a picture with its description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from landfuse.figures.figures import ramp
from landfuse.figures.images import Coded, Colour, Photograph, Picture, unlike
from landfuse.figures.overview import overview, thinned, thinned_classes, thinning
from landfuse.legend import UNLABELLED, Legend
from landfuse.rasters.geotiff import GdalRaster
from landfuse.scenes.land_cover_map import beside
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.scenes.split_rules import ROLES, TEST, Roles

RIGHT_WRONG: tuple[Colour, Colour] = ((187, 215, 234), (179, 56, 10))
"""Right and wrong differ in lightness, so that red and green play no part."""

GREY: Colour = (222, 222, 219)
"""Of ground that is not certified."""

ROLE_COLOURS: dict[str, Colour] = {
    "train": (0, 114, 178), "validation": (240, 228, 66), "test": (213, 94, 0), "calibration": (86, 36, 36),
}  # fmt: skip

_LEVELS = 41

CONFIDENCE = unlike(ramp(_LEVELS))
"""From dark for 0 to pale for 1."""


@dataclass(frozen=True)
class Layer:
    """One layer of a tile.

    Args:
        key: short name, the same in all tiles.
        title: for the choice of layers.
        how: what is to be seen, in words.
        names: of the picture's values, where it is one of few colours.
        sparse: most of it may be empty, so that it needs something beneath it.
        classes: whether its values are the legend's classes.
    """

    key: str
    title: str
    how: str
    picture: Picture
    names: tuple[str, ...] = ()
    sparse: bool = False
    classes: bool = False


def tile_layers(
    scene: Scene,
    legend: Legend,
    mapped: NDArray[np.uint8],
    roles: Roles,
    map_path: Path,
    used: Sequence[str],
    side: int,
    bands: Mapping[str, Sequence[int]],
    zone: NDArray[np.uint8] | None = None,
) -> list[Layer]:
    """The layers of one tile: map, labels, errors, confidence where it was written, split, and every modality.

    Args:
        mapped: (H, W) uint8 classes of the map.
        map_path: of the map; its confidence is a file beside it.
        used: the modalities that the run used.
        side: pixels along the longer side of a picture, at most.
        bands: modality -> the bands to show, from 0; for those not named, as people know them.
        zone: (H, W) 1 in the certified zone, 0 outside; None where none is known.
    """
    step = thinning(scene.grid.height, scene.grid.width, side)
    mapped, labels, roles = (thinned_classes(values, step) for values in (mapped, scene.labels, roles))
    colours = unlike([c.rgb for c in legend])
    names = tuple(legend.names)
    scored = (roles == TEST) & (labels != UNLABELLED) & (mapped != UNLABELLED)
    verdict = np.where(scored, mapped != labels, UNLABELLED).astype(np.uint8)
    places = np.where(roles > 0, roles - 1, UNLABELLED).astype(np.uint8)
    every = "" if step == 1 else f"; every {_ordinal(step)} pixel of every {_ordinal(step)} row"

    layers = [
        Layer("map", "Map", f"the class of each pixel{every}", Coded(mapped, colours), names, classes=True),
        Layer("labels", "Labels", f"all labels, of every role{every}", Coded(labels, colours), names, True, True),
        Layer(
            "errors",
            "Errors",
            f"the map against the test labels{every}",
            Coded(verdict, RIGHT_WRONG),
            ("right", "wrong"),
            sparse=True,
        ),
    ]
    if zone is not None:
        shown, words = Coded(thinned_classes(zone, step), (GREY, ROLE_COLOURS["train"])), "what the sample certifies"
        layers.append(Layer("certified", "Certified zone", f"{words}{every}", shown, ("outside", "inside")))
    margin = beside(map_path, "confidence")
    if margin.is_file():
        layers.append(_confidence(scene, margin, step))
    layers.append(
        Layer(
            "split",
            "Split",
            f"what each labelled pixel was for{every}",
            Coded(places, tuple(ROLE_COLOURS.values())),
            tuple(ROLES),
            sparse=True,
        )
    )
    for name, part in scene.modalities.items():
        seen = overview(scene, name, side * min(part.zoom, 2), bands.get(name))
        unused = "" if name in used else "; not used by this run"
        layers.append(
            Layer(f"modality-{name}", name, f"{seen.how}{unused}", Photograph(seen.image, seen.known), sparse=False)
        )
    return layers


def _confidence(scene: Scene, path: Path, step: int) -> Layer:
    raster = GdalRaster(str(path))
    values = thinned(Scene(scene.name, scene.grid, {"it": SceneModality(raster)}, scene.legend), "it", step, (0,))[0]
    known = np.isfinite(values)
    level = np.rint(np.clip(np.where(known, values, 0), 0, 1) * (_LEVELS - 1)).astype(np.uint8)
    return Layer(
        "confidence",
        "Confidence",
        "the lead of the most probable class over the second: dark is 0, pale is 1",
        Coded(np.where(known, level, UNLABELLED).astype(np.uint8), CONFIDENCE),
        tuple(f"{level / (_LEVELS - 1):.2f}" for level in range(_LEVELS)),
    )


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
