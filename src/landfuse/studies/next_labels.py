"""What to label next: places where labels help a run's model most, and places drawn at random, to judge its maps by.

A place to train is drawn in proportion to the product of how uncertain its class is (1 less the margin of the best
class over the second), how rare that class is in the map (1 / the root of its fraction), and how unlike the place is to
those chosen before it (its squared distance to the nearest of them): k-means++ with weights. Compared are the values of
all bands and the probabilities of the classes.

Every pixel is scored once, block by block, and a bounded number of them become candidates: a random sample weighted by
uncertainty and rarity. Its random numbers follow from a pixel's place, so that the blocks make no difference.

Source:
    Arthur & Vassilvitskii 2007, k-means++; Efraimidis & Spirakis 2006, doi:10.1016/j.ipl.2005.11.003 (weighted samples
    in one pass); Ash et al. 2020, arXiv 1906.03671 (uncertainty and diversity by k-means++).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landfuse.accuracy.conformal import ClassSets, sets_of
from landfuse.accuracy.draw_sample import draw_sample
from landfuse.accuracy.from_sample import by_block
from landfuse.accuracy.reference_sample import ReferenceSample, check_unfilled, write_places
from landfuse.bundles.description import Description
from landfuse.bundles.predictor import Model
from landfuse.bundles.table_bundle import load_model
from landfuse.errors import SceneError, SettingsError
from landfuse.legend import UNLABELLED, Legend
from landfuse.mapping.engine import map_blocks
from landfuse.mapping.map_extras import write_mosaics
from landfuse.mapping.map_layers import confidence_of
from landfuse.rasters.geotiff_writer import TILE
from landfuse.rasters.grid import pixel_areas
from landfuse.rasters.place_noise import uniform
from landfuse.rasters.windows import blocks
from landfuse.scenes.land_cover_map import open_map
from landfuse.scenes.leaks import onto_crs
from landfuse.scenes.scene import Scene
from landfuse.scenes.split_rules import TRAIN
from landfuse.studies.tables import stacked
from landfuse.training.recipe import merged_split
from landfuse.training.run import read_run
from landfuse.training.run_tiles import Progress, find_maps, mapping_options, scene_file_of

_CANDIDATES = 10_000
"""Candidates that are kept; and five more for each place that is wanted."""

_STRIP = 64
"""Rows that are scored at once."""

_SURE = 0.05
"""Probability of the second class below which a place is not chosen because it is uncertain."""

_RAREST = 1e-3
"""Fraction of the map below which a class counts as no rarer."""

_LEVEL = 0.9
"""Of class sets, see `landfuse predict --sets`."""

_PER_BLOCK = 10
"""Places in a walking block, about."""

_SPREAD = 0.5
"""The least distance between places, as a fraction of that of as many places on a square lattice."""

_OF_PROBABILITIES = 2.0
"""How much probabilities count beside values, whose squared distances are 2 on average."""


def score(probabilities: NDArray[np.float32], fractions: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much pixels are worth a label, > 0: how uncertain each is, by how rare its class is in the map.

    Args:
        probabilities: (K, m) of the classes.
        fractions: (K,) of the classes in the map.
    """
    rarity = 1 / np.sqrt(fractions.clip(_RAREST))
    return np.asarray((1 - confidence_of(probabilities)) * rarity[probabilities.argmax(axis=0)]).clip(1e-6)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Pixels that may be labelled, in no order that means anything.

    Args:
        place: (M, 3) tile, row and column.
        weight: (M,) see `score`.
        probabilities: (M, K) of the classes.
        values: (M, D) of all bands, NaN where there are none.
    """

    place: NDArray[np.int64]
    weight: NDArray[np.float64]
    probabilities: NDArray[np.float32]
    values: NDArray[np.float32]

    def choose(self, n: int, apart: float, seed: int = 0) -> NDArray[np.intp]:
        """Chooses places, one after the other; fewer than n where there are no more candidates.

        Args:
            apart: the least distance between two places of a tile, px; halved where no more are so far apart.
        """
        rng = np.random.default_rng(seed)
        features, place = self._features(), self.place.astype(float)
        squares = np.square(features).sum(axis=1)
        near, free = np.ones(len(place)), np.ones(len(place), bool)
        chosen: list[int] = []

        def far(other: int) -> NDArray[np.bool_]:
            steps = place - place[other]
            return np.asarray((steps[:, 0] != 0) | (np.square(steps[:, 1:]).sum(axis=1) >= max(apart, 0.5) ** 2))

        while len(chosen) < min(n, len(place)):
            chance = self.weight * near * free
            if not chance.any():  # none is far enough away, or all that are left are like one that was chosen
                if apart < 1:
                    near = np.ones(len(place))
                apart /= 2
                free = np.logical_and.reduce([far(other) for other in chosen])
                continue
            first = int(rng.choice(len(place), p=chance / chance.sum()))
            distance = (squares + squares[first] - 2 * features @ features[first]).clip(0)
            near = distance if not chosen else np.minimum(near, distance)
            chosen.append(first)
            free &= far(first)
        return np.array(chosen, np.intp)

    def _features(self) -> NDArray[np.float32]:
        """What candidates are compared by: standardised values and probabilities."""
        values = self.values.astype(float)
        known = np.isfinite(values)
        count = np.maximum(known.sum(axis=0), 1)
        values = np.where(known, values - np.where(known, values, 0).sum(axis=0) / count, 0)  # the mean where missing
        values /= np.maximum(np.sqrt(np.square(values).sum(axis=0) / count), 1e-12)
        found = np.concatenate([values / math.sqrt(values.shape[1]), _OF_PROBABILITIES * self.probabilities], axis=1)
        return found.astype(np.float32)

    def part(self, kept: NDArray[Any]) -> Candidates:
        """Some of them."""
        return Candidates(self.place[kept], self.weight[kept], self.probabilities[kept], self.values[kept])

    def in_blocks(self, side: float, n: int) -> Candidates:
        """Those in the squares of a side, px, whose scores add up to most: as few as n places need."""
        square = np.floor_divide(self.place, [1, max(1, side), max(1, side)])
        number, count = (np.unique(square, axis=0, return_inverse=True, return_counts=True)[part] for part in (1, 2))
        best = np.argsort(-np.bincount(number.ravel(), self.weight), kind="stable")
        enough = int(np.searchsorted(np.cumsum(count[best]), min(4 * n, len(number)))) + 1
        return self.part(np.isin(number.ravel(), best[: max(enough, -(-n // _PER_BLOCK))]))


@dataclass(frozen=True, eq=False)
class NextLabels:
    """Places to be labelled next.

    Args:
        judge: places drawn at random, by which maps are judged; None for none.
        train: columns of the places to train by, (m,) each, as in the file.
        crs: of the first tile.
        map_path: the map that the places are drawn from; None where there is a map per tile, and no place judges.
    """

    judge: ReferenceSample | None
    train: Mapping[str, NDArray[Any]]
    crs: str | None
    map_path: Path | None

    def __len__(self) -> int:
        return (len(self.judge) if self.judge else 0) + len(self.train["x"])

    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns of its file, first those that judge; `reference` is to be filled in with names or codes."""
        judge: Mapping[str, Any] = self.judge.columns() if self.judge else {"x": ()}
        both: dict[str, dict[str, Any]] = {
            "judge": {"why": "drawn at random", **judge},
            "train": {"reference": None, **self.train},
        }
        found = stacked([{"part": name, **part} for name, part in both.items() if len(part["x"])])
        found["id"] = np.arange(1, len(self) + 1)
        return {name: found[name] for name in dict.fromkeys([*(one for one in _FIRST if one in found), *found])}

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Writes it as GeoPackage (.gpkg) or CSV (.csv).

        Raises:
            OutputError: if the name ends otherwise, the file cannot be written, or one is there that holds something
                else or references, and `overwrite` is not set.
        """
        check_unfilled(path, overwrite)
        write_places(path, self.columns(), self.crs)


_FIRST = ("id", "part", "reference", "map_code", "map_class", "confidence", "set", "why", "x", "y", "row", "col")
"""The first columns of its file."""


def next_labels(
    run: str | Path,
    scene: str | Path,
    n: int = 50,
    *,
    judge: float = 0.5,
    walk: float | None = None,
    maps: str | Path | None = None,
    tile: str | None = None,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> NextLabels:
    """Draws places to be labelled next: some where a label helps the run's model most, and some at random.

    Places to train have no label yet, and lie where a new label trains: not where the split's blocks or tiles test,
    validate or calibrate, nor within its buffer. Those that judge are a simple random sample of the map, independent of
    the others: they stay valid for every later map, as long as they are kept out of training.

    Args:
        run: the folder of a finished run.
        scene: the scene file.
        n: places.
        judge: fraction of the places that is drawn at random.
        walk: side of walking blocks, metres (pixels where the scene has no CRS): places to train lie in few of them.
        maps: the run's map, or the folder of the tiles' maps with its mosaic; by default `maps` in the run folder,
            where missing ones are made.
        tile: take this tile only.
        seed: the same seed draws the same places.
        progress: called with (what is done, done, total).

    Raises:
        MissingFileError: if the folder is no run, or the run has not ended.
        SceneError: if the scene has other classes than the run, or its tiles are no single map that judges could be
            drawn from.
        SettingsError: if there are fewer pixels than places, or an argument is out of range.

    Examples:
        >>> places = lf.next_labels("runs/first", "scene.yaml", 20)
        >>> len(places), len(places.judge)
        (20, 10)
    """
    drawn = round(n * judge) if math.isfinite(judge) else 0
    chosen = n - drawn
    if n < 2 or not 0 <= judge <= 1 or drawn == 1 or (walk is not None and not walk > 0) or seed < 0:
        raise SettingsError(
            f"{n} places, of which {drawn} judge" + ("" if walk is None else f", walking blocks of {walk:g} m"),
            "2 or more places, a fraction from 0 to 1 that judge (none, or 2 at least), and blocks of more than 0 m",
            "correct -n, --judge or --walk",
        )
    known = read_run(run)
    file = scene_file_of(known, scene)
    scenes = file.scenes(known.modalities)
    shown = [one for one in scenes if tile in (None, one.name)]
    if not shown:
        listed = ", ".join(one.name for one in scenes[:8])
        raise SceneError(f"{file.path} has no tile {tile}", f"one of {listed}", "correct --tile")
    paths = find_maps(known, shown, maps, progress)
    whole = _whole(paths, shown, file.legend, maps) if drawn or len(shown) == 1 else None
    roles = (
        [np.full(one.labels.shape, TRAIN) for one in scenes]
        if known.cross_validated
        else file.ground_roles(scenes, merged_split(file.settings.split, known.recipe.get("split")))
    )
    ready = [
        (one.labels == UNLABELLED) & (role == TRAIN)
        for one, role in zip(scenes, roles, strict=True)
        if any(one is other for other in shown)
    ]
    sample = None
    if drawn:

        def count(done: int, total: int) -> None:
            progress("drawing, blocks", done, total)

        sample = draw_sample(whole or "", drawn, design="simple", seed=seed, legend=file.legend, progress=count)
    train: dict[str, NDArray[Any]] = {"x": np.zeros(0), "y": np.zeros(0)}
    if chosen:
        model = load_model(known.folder / "bundle")
        fractions = _fractions(paths, shown, file.legend)
        most = _CANDIDATES + 5 * chosen
        found, pixels = _candidates(model, shown, ready, fractions, most, seed, mapping_options(known), progress)
        if pixels < chosen:
            raise SettingsError(
                f"{chosen} places to train, of {pixels:,} pixels that could be chosen",
                "unlabelled pixels that have a class in the map and lie where the split leaves ground to training",
                "choose a smaller -n or a larger --judge; or a split that leaves unlabelled ground to training",
            )
        if walk is not None:
            areas = pixel_areas(shown[0].grid)
            side = walk / (areas.metres if areas else 1.0)
            found = found.in_blocks(side, chosen)
            pixels = min(pixels, math.ceil(chosen / _PER_BLOCK * side**2))
        other = seed + 2**32  # the two parts share no random numbers
        picked = found.part(found.choose(chosen, _SPREAD * math.sqrt(pixels / chosen), other))
        train = _columns(picked, shown, model.description, fractions, whole)
    return NextLabels(sample, train, shown[0].grid.crs, whole)


def _whole(paths: Sequence[Path], scenes: Sequence[Scene], legend: Legend, maps: str | Path | None) -> Path:
    """The map of a tile, or the mosaic of several."""
    if len(paths) == 1 or maps is not None:
        return open_map(paths[0] if len(paths) == 1 else paths[0].parent).path
    mosaics = write_mosaics(
        paths[0].parent, {one.name: (one.grid, path) for one, path in zip(scenes, paths, strict=True)}, legend
    )
    if len(mosaics) != 1:
        raise SceneError(
            f"the maps of the {len(paths)} tiles make {len(mosaics)} mosaics: they differ in CRS or lattice",
            "one map, from which the places that judge are drawn",
            "name one tile by --tile; or draw places to train by alone: --judge 0",
        )
    return mosaics[0]


def _fractions(paths: Sequence[Path], scenes: Sequence[Scene], legend: Legend) -> NDArray[np.float64]:
    """The fraction of each class in the maps: (K,)."""
    counts = np.zeros(256, np.int64)
    for path, scene in zip(paths, scenes, strict=True):
        opened = open_map(path, scene)
        for window in blocks(scene.grid.height, scene.grid.width, TILE):
            classes = legend.to_classes(opened.codes(window), where=f"the map {path}")
            counts += np.bincount(classes.ravel(), minlength=256)
    known = counts[: len(legend)]
    return np.asarray(known / max(1, known.sum()))


def _candidates(
    model: Model,
    scenes: Sequence[Scene],
    ready: Sequence[NDArray[np.bool_]],
    fractions: NDArray[np.float64],
    most: int,
    seed: int,
    options: Mapping[str, Any],
    progress: Progress,
) -> tuple[Candidates, int]:
    """Scores every pixel that is ready to be labelled; returns the candidates, and how many pixels there are."""
    total, done, pixels = sum(one.grid.window.pixels for one in scenes), 0, 0
    held: list[NDArray[Any]] = [
        np.zeros((0, 3), np.int64),
        np.zeros(0),
        np.zeros(0),
        np.zeros((0, len(fractions)), "f4"),
    ]

    def add(more: int) -> None:
        nonlocal done
        done += more
        progress("scoring, px", done, total)

    for tile, (scene, own) in enumerate(zip(scenes, ready, strict=True)):
        for part in map_blocks(model, scene, wanted=own, progress=add, **options) if own.any() else ():
            for first in range(0, part.window.height, _STRIP):
                rows = slice(first, min(first + _STRIP, part.window.height))
                taken = own[part.window.within(scene.grid.window)][rows] & (part.classes[rows] != UNLABELLED)
                found = part.probabilities_in(rows)[:, taken]
                row = part.window.row + np.arange(rows.start, rows.stop)
                col = part.window.col + np.arange(part.window.width)
                weight = score(found, fractions)
                key = np.log(uniform(seed, tile, row, col)[taken] + 2.0**-25) / weight
                at = np.argwhere(taken) + np.array([row[0], col[0]])
                fresh = [np.insert(at, 0, tile, axis=1), key, weight, found.T]
                pixels += len(key)
                held = [np.concatenate(both) for both in zip(held, fresh, strict=True)]
                best = np.lexsort((*held[0].T, -held[1]))[:most]
                held = [one[best] for one in held]
    place, _, weight, found = held
    return Candidates(place, weight, found, _values(scenes, list(model.description.modalities), place)), pixels


def _values(scenes: Sequence[Scene], names: Sequence[str], place: NDArray[np.int64]) -> NDArray[np.float32]:
    """The values of all bands at some places, (M, D); of finer modalities those in a pixel's middle."""
    zooms = {name: scenes[0].modalities[name].zoom for name in names}
    values = np.empty((len(place), sum(scenes[0].modalities[name].info.bands for name in names)), np.float32)
    for tile, scene in enumerate(scenes):
        mine = np.flatnonzero(place[:, 0] == tile)
        row, col = place[mine, 1], place[mine, 2]
        for window, inside in by_block(row, col, scene.grid, max(1, TILE // max(zooms.values()))):
            own = [
                scene.read(name, window)[
                    :, (row[inside] - window.row) * zoom + zoom // 2, (col[inside] - window.col) * zoom + zoom // 2
                ]
                for name, zoom in zooms.items()
            ]
            values[mine[inside]] = np.concatenate(own).T
    return values


def _columns(
    picked: Candidates,
    scenes: Sequence[Scene],
    known: Description,
    fractions: NDArray[np.float64],
    whole: Path | None,
) -> dict[str, NDArray[Any]]:
    """The columns of places to train by."""
    legend = known.legend
    at = []
    for tile, row, col in picked.place.tolist():
        grid = scenes[tile].grid
        at.append(onto_crs(grid.crs, scenes[0].grid.crs, *grid.at(col + 0.5, row + 0.5)))
    x, y = np.array(at).T
    pixels = {} if whole is None else dict(zip(("row", "col"), open_map(whole).grid.pixels(x, y), strict=True))
    classes = picked.probabilities.argmax(axis=1)
    names = np.array(legend.names, dtype=object)
    return {
        "map_code": legend.codes[classes],
        "map_class": names[classes],
        "confidence": confidence_of(picked.probabilities.T).astype(float).round(3),
        **_sets(picked.probabilities.T, known),
        "why": np.array([_why(found, legend, fractions) for found in picked.probabilities], dtype=object),
        "x": x,
        "y": y,
        **pixels,
    }


def _sets(probabilities: NDArray[np.float32], known: Description) -> dict[str, NDArray[Any]]:
    """The column of class sets of `_LEVEL`, or the highest level that is carried; none where there are no sets."""
    sets = ClassSets.of(known) if "sets" in known.notes else None
    if sets is None or not sets.highest:
        return {}
    held = sets_of(probabilities, sets.thresholds(min(_LEVEL, sets.highest))[:, None], "lac")
    return {"set": np.array([", ".join(np.array(known.legend.names)[one]) for one in held.T], dtype=object)}


def _why(found: NDArray[np.float32], legend: Legend, fractions: NDArray[np.float64]) -> str:
    """Why a place was chosen, in words."""
    best = np.argsort(-found, kind="stable")[:2].tolist()
    sure = len(best) < 2 or found[best[1]] < _SURE
    words = " or ".join(f"{legend.names[k]} ({found[k]:.2f})" for k in best[: 1 if sure else 2])
    words += ", unlike the other places" if sure else ""
    return words + (f"; rare, {fractions[best[0]]:.1%} of the map" if fractions[best[0]] < 0.5 / len(fractions) else "")
