"""Checking a scene before anything is trained: what is there, how the labels are split, what leaks."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landfuse.errors import FaultsError, LandfuseError, SceneError, few, nearest
from landfuse.legend import UNLABELLED
from landfuse.markup import percent
from landfuse.palette import TOO_CLOSE, ClosePair, close_pairs
from landfuse.rasters.decoding import Decoding
from landfuse.rasters.geotiff import GdalRaster
from landfuse.rasters.grid import Grid
from landfuse.rasters.polygons import Polygons
from landfuse.rasters.windows import Window, blocks
from landfuse.scenes.leaks import (
    calibration_leak_words,
    leak_fraction,
    leaks_by_buffer,
    learnt_ground,
    polygon_leak_fraction,
    polygon_leak_words,
)
from landfuse.scenes.scene import ModalityInfo, Scene, known_pixels
from landfuse.scenes.scene_file import SceneFile, read_scene_file
from landfuse.scenes.scene_keys import CountSettings, LabelSettings
from landfuse.scenes.split_rules import CALIBRATION, UNUSED, Roles
from landfuse.scenes.split_search import search, searchable
from landfuse.scenes.splits import counts_per_class, groups_per_class, wanted_roles
from landfuse.series.series_raster import SeriesRaster

VIEWS = ((1, 1), (7, 1), (11, 1), (15, 1), (32, 32), (64, 64), (128, 128), (256, 256))
"""(view, core) that models use: single pixels, patches around a pixel, dense windows; px."""

_BLOCK = 512
_AT_ONCE = 2**25
"""Values, pixels of all bands, that are read at once; windows are smaller than `_BLOCK` where there are more."""
_MOST, _SAMPLE = 2**32, 2**30
"""Values that are all read; and how many are, about, where there are more."""
_MOST_LABELS = 2**30
"""Pixels beyond which labels are not read, which are held in memory; about 30 GB with their roles."""
_NAN = "NaN or infinity"
_NAMED = 3
"""Numbers that are no values, and are named of a block."""
_FILLS = (-32768.0, -32767.0, -9999.0, -99999.0, -999.0, 65535.0)
"""Numbers that many files hold where they have no data."""
_FEW_GROUPS = 5
"""Polygons, blocks or tiles of a class in a role; fewer are noted."""
_MOST_PAIRS = 5
"""Pairs of close colours that are named; a legend of many classes has dozens."""

Step = Callable[[], None]


@dataclass
class ModalityCheck:
    """What the rasters of one modality hold, over all tiles.

    Args:
        pixel: pixel size in the file, in units of its CRS.
        crs: the CRSs of the files.
        warped: number of tiles whose raster is brought to the reference grid.
        missing: pixels without data in at least one band.
        lows: smallest value of each band, (C,); infinite where it has no data.
        highs: largest value of each band.
        covered: the tiles that have a pixel with data in all bands.
        undeclared: pixels with a number that is no value and not declared as nodata.
        named: some of these numbers.
        steps: of a series: tile -> which of its periods have a pixel with data, (T,).
    """

    bands: int
    dtype: str
    units: str
    pixel: float
    crs: list[str] = field(default_factory=list)
    warped: int = 0
    pixels: int = 0
    missing: int = 0
    total: float = 0.0
    values: int = 0
    undeclared: int = 0
    named: set[str] = field(default_factory=set)
    covered: set[str] = field(default_factory=set)
    steps: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lows, self.highs = np.full(self.bands, math.inf), np.full(self.bands, -math.inf)

    def add_undeclared(self, numbers: NDArray[np.floating]) -> None:
        """Adds numbers that are no values and not declared, one per pixel."""
        self.undeclared += len(numbers)
        for number in np.unique(np.where(np.isfinite(numbers), numbers, np.nan))[-_NAMED:]:
            self.named.add(f"{number:.9g}" if np.isfinite(number) else _NAN)

    @property
    def low(self) -> float:
        """Smallest value."""
        return float(self.lows.min())

    @property
    def high(self) -> float:
        """Largest value."""
        return float(self.highs.max())

    @property
    def mean(self) -> float:
        """Mean of all values; NaN if there is none."""
        return self.total / self.values if self.values else math.nan

    def add(self, values: NDArray[np.float32], tile: str, info: ModalityInfo) -> int:
        """Adds the values of one window, (C, height, width); returns its number of pixels without data."""
        known = np.isfinite(values)
        self.pixels += values[0].size
        missing = int((~known_pixels(values, info)).sum())
        self.missing += missing
        if missing < values[0].size:
            self.covered.add(tile)
        if info.per_step:
            series: Any = known[: info.per_step * len(info.steps)].reshape(len(info.steps), info.per_step, -1)
            seen = series.all(axis=1).any(axis=1)
            self.steps[tile] = seen | self.steps[tile] if tile in self.steps else seen
        self.lows = np.minimum(self.lows, values.min(axis=(1, 2), initial=math.inf, where=known))
        self.highs = np.maximum(self.highs, values.max(axis=(1, 2), initial=-math.inf, where=known))
        self.total += float(values.sum(dtype=np.float64, where=known))
        self.values += int(known.sum())
        return missing


@dataclass
class Report:
    """What `check` found.

    Args:
        file: the scene file; None if it could not be read.
        tiles: number of tiles whose reference could be opened.
        scenes: the tiles that could be opened; after the labels were read, those whose labels could be.
        roles: of the pixels of each of these tiles, (H, W); empty where labels were not read.
        counts: role -> pixels of each class, (K,); role `unused` for labelled pixels without a role.
        grouped: what labels lie in: `polygons`, `blocks` or `tiles`; empty where they are single pixels.
        groups: role -> how many of these hold a class, (K,).
        leaks: (view, core) -> fraction of test pixels whose view holds a training or validation pixel.
        by_buffer: rows of `leaks_by_buffer`.
        polygon_leak: fraction of test pixels in polygons that also train or validate; None for other labels.
        proposed: a line of the scene file by which every class has each role, where the split leaves one without.
        notes: what is no fault, but has to be known.
        confirmed: which of the scene file's `counts` are those of the files.
        faults: everything that has to be corrected.
    """

    file: SceneFile | None = None
    tiles: int = 0
    modalities: dict[str, ModalityCheck] = field(default_factory=dict)
    scenes: list[Scene] = field(default_factory=list, repr=False)
    roles: list[Roles] = field(default_factory=list, repr=False)
    counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    grouped: str = ""
    groups: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    leaks: dict[tuple[int, int], float] = field(default_factory=dict)
    by_buffer: list[dict[str, float]] = field(default_factory=list)
    polygon_leak: float | None = None
    proposed: str = ""
    notes: list[str] = field(default_factory=list)
    confirmed: list[str] = field(default_factory=list)
    faults: list[LandfuseError] = field(default_factory=list)

    def add(self, found: str, expected: str, do: str) -> None:
        """Adds a fault of the files."""
        self.faults.append(SceneError(found, expected, do))

    @property
    def close_colours(self) -> list[ClosePair]:
        """Pairs of classes whose colours are hard to distinguish, with full colour vision or without."""
        if self.file is None or not self.counts or not self.file.settings.split:
            return []  # a scene that is only mapped has the colours of the bundle
        return close_pairs([c.rgb for c in self.file.legend])

    def pixel(self, modality: str) -> float:
        """Side of its pixels, in metres where the scene file says so, else in units of the CRS."""
        stated = self.file.settings.modalities[modality].metres if self.file else None
        return stated or self.modalities[modality].pixel

    def to_dict(self) -> dict[str, Any]:
        """Everything that was found, as `landfuse check --json` writes it."""
        legend = self.file.legend if self.file and self.counts else ()
        return {
            "scene": str(self.file.path) if self.file else None,
            "name": self.file.settings.name if self.file else None,
            "tiles": self.tiles,
            "modalities": {
                name: {
                    "bands": m.bands,
                    "dtype": m.dtype,
                    "units": m.units,
                    "pixel": self.pixel(name),
                    "crs": m.crs,
                    "warped_tiles": m.warped,
                    "pixels": m.pixels,
                    "pixels_without_data": m.missing,
                    "min": m.lows,
                    "mean": m.mean,
                    "max": m.highs,
                }
                for name, m in self.modalities.items()
            },
            "classes": [
                {
                    "code": kind.code,
                    "name": kind.name,
                    "colour": kind.colour,
                    "pixels": {role: count[index] for role, count in self.counts.items()},
                    **({self.grouped: {role: n[index] for role, n in self.groups.items()}} if self.grouped else {}),
                }
                for index, kind in enumerate(legend)
            ],
            "leaks": [{"view": view, "core": core, "fraction": leak} for (view, core), leak in self.leaks.items()],
            "leaks_by_buffer": self.by_buffer,
            "polygon_leak": self.polygon_leak,
            "proposed_split": self.proposed or None,
            "as_published": self.confirmed,
            "notes": self.notes,
            "faults": [{"found": fault.found, "expected": fault.expected, "do": fault.do} for fault in self.faults],
        }


def check(
    path: str | Path,
    views: Sequence[tuple[int, int]] = VIEWS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Checks everything that a scene file names, and lists all faults in one go.

    Args:
        path: the scene file.
        views: (view, core) for the leak report, px.
        progress: called with (windows and tiles' labels read, of how many).

    Examples:
        >>> lf.check("scene.yaml").faults
        []
    """
    report = Report()
    try:
        file = report.file = read_scene_file(path, report.faults)
    except LandfuseError as error:
        report.faults += error.faults if isinstance(error, FaultsError) else [error]
        return report
    scenes, faults = file.try_scenes()
    report.faults += faults
    report.scenes, report.tiles = scenes, len(scenes)
    windows, sampled = _windows(scenes)
    total = len(windows) + (len(scenes) if file.settings.labels else 0)
    steps = iter(range(1, total + 1))

    def step() -> None:
        progress(next(steps), total)

    if sampled:
        report.notes.append(
            f"the rasters hold {sampled:,} values, more than {_MOST:,}: what the table says of them, and what is "
            f"wrong with single pixels, comes from {len(windows):,} windows drawn at random"
        )
    _check_modalities(report, scenes, windows, not sampled, step)
    if file.settings.labels is not None:
        complete = bool(scenes) and len(scenes) == len(file.tiles)
        _check_labels(report, file, file.settings.labels, scenes, views, complete, step)
    if file.settings.counts is not None and scenes:
        _compare_sizes(report, file.settings.counts, scenes)
        _compare_classes(report, file.settings.counts, file.legend.names)
    if close := report.close_colours:
        names = file.legend.names
        pairs = [f"{names[p.first]} and {names[p.second]} ({p.distance:.1f} with {p.vision})" for p in close]
        report.notes.append(
            f"colours that are hard to distinguish, nearer than {TOO_CLOSE:g} in CIELAB: {few(pairs, _MOST_PAIRS)}. "
            "Other ones can be named by `colour` in the legend"
        )
    return report


def _windows(scenes: Sequence[Scene]) -> tuple[list[tuple[Scene, Window]], int]:
    """The windows that are read: all of them, or a sample; and how many values there are where it is a sample."""
    cut, values, count = [], 0, 0
    for scene in scenes:
        depth = max(1, sum(m.raster.bands * m.zoom**2 for m in scene.modalities.values()))
        side = max(1, min(_BLOCK, math.isqrt(_AT_ONCE // depth)))
        cut.append((scene, side))
        values += scene.grid.window.pixels * depth
        count += -(-scene.grid.height // side) * -(-scene.grid.width // side)
    every = ((scene, block) for scene, side in cut for block in blocks(scene.grid.height, scene.grid.width, side))
    if values <= _MOST:
        return list(every), 0
    size = max(1, count * _SAMPLE // values)
    taken = set(np.random.default_rng(0).choice(count, size, replace=False, shuffle=False).tolist())
    return [pair for number, pair in enumerate(every) if number in taken], values


def _check_modalities(
    report: Report, scenes: Sequence[Scene], windows: Sequence[tuple[Scene, Window]], whole: bool, step: Step
) -> None:
    broken: set[tuple[str, str]] = set()
    for scene in scenes:
        for name, part in scene.modalities.items():
            own: Grid = getattr(part.raster, "own_grid", part.raster.grid)
            row = report.modalities.setdefault(
                name, ModalityCheck(part.raster.bands, part.raster.dtype, part.units, own.pixel_size[0])
            )
            crs = own.crs or "none"
            row.crs += [] if crs in row.crs else [crs]
            row.warped += bool(getattr(part.raster, "warped", False))
            notes = [f"`{name}`: {note}" for note in getattr(part.raster, "notes", ())]
            report.notes += [note for note in notes if note not in report.notes]
            if part.raster.bands != row.bands:
                report.add(
                    f"{part.raster.path} has {part.raster.bands} bands",
                    f"{row.bands} bands of `{name}`, as in the tile `{scenes[0].name}`",
                    "choose common bands by `bands`",
                )
                broken.add((scene.name, name))
    infos = {(scene.name, name): part.info for scene in scenes for name, part in scene.modalities.items()}
    unfilled = {scene.name: _unfilled(scene) for scene in scenes}
    for scene, block in windows:
        for name, part in scene.modalities.items():
            if (scene.name, name) in broken:
                continue
            raster: Any = part.raster
            row = report.modalities[name]
            try:
                values = unfilled[scene.name].read(name, block)
                if row.add(values, scene.name, infos[scene.name, name]):
                    row.add_undeclared(raster.undeclared(block.scaled(part.zoom)))
            except LandfuseError as error:
                report.faults.append(error)
                broken.add((scene.name, name))
        step()
    for name, row in report.modalities.items():
        if row.undeclared:
            report.add(
                f"`{name}` holds {few(sorted(row.named))} in {row.undeclared} pixels, not declared as nodata",
                "values, or a declared nodata",
                f"set `nodata: {'.nan' if _NAN in row.named else min(row.named)}` for `{name}` if these pixels have no "
                "data, else correct the raster",
            )
        raster = next(scene.modalities[name].raster for scene in scenes if name in scene.modalities)
        numbers = np.array(raster.numbers if isinstance(raster, GdalRaster) else range(1, row.bands + 1))
        if isinstance(raster, SeriesRaster):
            numbers = np.array(raster.names)
        decode = getattr(raster, "_decoding", getattr(raster, "decoding", Decoding()))
        for fill in _FILLS:
            value = decode(np.full((row.bands, 1, 1), fill))[:, 0, 0]
            holds = (row.lows == value) | (row.highs == value)
            if holds.any():
                report.notes.append(
                    f"`{name}` holds {fill:g} as an extreme of {_band(numbers[holds])}, a number that often stands for "
                    f"no data: if it does here, set `nodata: {fill:g}` for `{name}`"
                )
        if not whole or not row.pixels or (name in {n for _, n in broken}):
            continue
        for tile, seen in row.steps.items():
            bare = np.array(infos[tile, name].steps)[~seen].tolist()
            if bare and seen.any() and isinstance(raster, SeriesRaster) and raster.how.every is not None:
                report.notes.append(f"`{name}` is nowhere clear in {few(bare, 12)}, in all of the tile `{tile}`")
        if row.missing == row.pixels:
            dead = numbers[row.lows > row.highs]
            if not row.values:
                found = "has no data anywhere"
            elif dead.size:
                found = f"has no data in {_band(dead)}, so that no pixel has data in all bands"
            else:
                found = "has no pixel with data in all bands"
            report.add(
                f"`{name}` {found}",
                "values",
                "check its `nodata`, `scale` and `decibel`" + (", or leave that out by `bands`" if row.values else ""),
            )
            continue
        flat = row.lows == row.highs
        if flat.any():
            report.notes.append(
                f"`{name}` has one value in all pixels of {_band(numbers[flat])}, from which no model can learn: check "
                "the file, or leave that out by `bands`"
            )
        bare = [scene.name for scene in scenes if name in scene.modalities and scene.name not in row.covered]
        if bare:
            report.notes.append(f"`{name}` has no data in {len(bare)} of {len(scenes)} tiles: {few(bare)}")


def _unfilled(scene: Scene) -> Scene:
    """Without what fills the gaps of series, which says nothing of the files."""
    parts = scene.modalities.items()
    series = {name: replace(m, raster=m.raster.unfilled) for name, m in parts if isinstance(m.raster, SeriesRaster)}
    return scene.with_modalities(series)


def _band(numbers: NDArray[Any]) -> str:
    return f"band{'s' * (len(numbers) > 1)} {few([str(number) for number in numbers])}"


def _check_labels(
    report: Report,
    file: SceneFile,
    settings: LabelSettings,
    scenes: Sequence[Scene],
    views: Sequence[tuple[int, int]],
    complete: bool,
    step: Step,
) -> None:
    pixels = sum(scene.grid.window.pixels for scene in scenes)
    if pixels > _MOST_LABELS:
        report.notes.append(
            f"the labels have {pixels:,} pixels, more than {_MOST_LABELS:,}, and are not read: classes, split and "
            "leaks are not checked. Training holds all of them in memory, so cut the scene into fewer or smaller tiles"
        )
        return
    read, odd, unlisted = [], [], Counter[str]()
    for scene in scenes:
        step()
        if scene.read_labels is None:
            continue  # that they cannot be opened is among the faults already
        found = Counter[str]()
        try:
            classes = scene.read_labels(found)
        except LandfuseError as error:
            report.faults.append(error)
            continue
        unlisted += found
        odd += [scene.name] if found else []
        read.append(replace(scene, read_labels=partial(np.asarray, classes)))
    groups = range(bool(settings.polygons) + len(settings.later) if read else 0)
    of_shapes = [_check_shapes(report, file, settings, read, group) for group in groups]
    if settings.polygons:
        unlisted = sum(of_shapes, Counter())
    _check_unlisted(report, file, settings, unlisted, odd)
    labelled = read if settings.unlisted == "unlabelled" else [scene for scene in read if scene.name not in odd]
    if not labelled:
        return
    complete = complete and len(labelled) == len(scenes)
    truth = [scene.labels for scene in labelled]
    roles: list[Roles] = [np.zeros(label.shape, dtype=np.uint8) for label in truth]
    everything = np.sum(
        [np.bincount(label[label != UNLABELLED], minlength=len(file.legend)) for label in truth], axis=0
    )
    split = file.settings.split
    if complete and not everything.any():
        report.add("no pixel is labelled", "labels of every class", "check that the labels show the same place")
        return
    if complete and split is not None:
        try:
            roles = file.roles(labelled)
        except LandfuseError as error:
            report.faults.append(error)
    counts = counts_per_class(roles, truth, len(file.legend))
    report.counts = {role: found for role, found in counts.items() if found.any() or role != "calibration"}
    report.counts["unused"] = everything - np.sum(list(report.counts.values()), axis=0)
    report.scenes, report.roles = labelled, roles
    if any(role.any() for role in roles):
        report.grouped, held = groups_per_class(labelled, roles, split)
        report.groups = {role: found for role, found in held.items() if role in report.counts}
    idle = sum(
        int(((one.first_labels == UNLABELLED) & (one.labels != UNLABELLED) & (role == UNUSED)).sum())
        for one, role in zip(labelled, roles, strict=True)
        if one.read_first is not None
    )
    if idle and any(role.any() for role in roles):
        report.notes.append(
            f"{idle:,} px of the labels that came later lie where the split tests, validates or calibrates, or in its "
            "buffer: they have no role"
        )
    for index, name in enumerate(file.legend.names):
        if complete and split is not None and not everything[index]:
            report.add(
                f"the class `{name}` has no labelled pixel",
                "labels of every class",
                "check the labels, or take it out of the legend",
            )
        elif report.counts["train"].any() and not report.counts["train"][index]:
            report.add(
                f"the class `{name}` has no training pixel, but {everything[index]} labelled ones",
                "training pixels of every class",
                "change the split or its seed (see the note on splits), or take the class out of the legend",
            )
    if complete and split is not None and searchable(split):
        report.proposed = _check_split(report, labelled, split)
    names = np.array(file.legend.names)
    if split is None and complete and not everything.all():
        report.notes.append(f"no pixel is labelled {few(names[everything == 0])}; only training needs every class")
    for role in _UNKNOWN:
        lacking = names[(everything > 0) & (report.counts.get(role, everything) == 0)]
        if lacking.size and report.counts[role].any():
            report.notes.append(f"no {role} pixel is labelled {few(lacking)}, so {_UNKNOWN[role]}")
    scarce = []
    for role in ("train", "test"):
        found = report.groups.get(role, everything)
        scanty = [f"{name} ({number})" for name, number in zip(names, found, strict=True) if 0 < number < _FEW_GROUPS]
        if report.grouped and scanty:
            scarce.append(f"{role}: {few(scanty, 10)}")
    if scarce:
        report.notes.append(
            f"classes in fewer than {_FEW_GROUPS} {report.grouped} of a role, so that a few places decide on them: "
            + "; ".join(scarce)
        )
    if report.counts["test"].any():
        _check_leaks(report, labelled, roles, views)


def _check_split(report: Report, scenes: Sequence[Scene], split: Any) -> str:
    """Where classes lack a role, the line of a split by which none does; or a note on why there is none."""
    present = np.unique(np.concatenate([np.unique(scene.first_labels) for scene in scenes]))
    present = present[present != UNLABELLED]
    if all(role in report.counts and report.counts[role][present].all() for role in wanted_roles(split)):
        return ""
    found = search(scenes, split)
    if found.why:
        report.notes.append(f"no split into {split.kind} gives every class each role: {found.why}")
        return ""
    largest = "the largest blocks" if split.kind == "blocks" else "another seed"
    report.notes.append(f"a split that gives every class each role, {largest} found: `{found.line}`")
    return found.line


_UNKNOWN = {
    "validation": "the epoch is chosen without regard to these classes",
    "test": "how well these classes are mapped is not measured",
    "calibration": "how often class sets hold these classes is not known",
}


def _check_shapes(
    report: Report, file: SceneFile, labels: LabelSettings, scenes: Sequence[Scene], group: int
) -> Counter[str]:
    """Counts the shapes of some files that label nothing; returns how many have each value that the legend lacks."""
    sources: dict[bytes, tuple[Polygons, set[int], set[int]]] = {}
    for scene in scenes:
        shapes = file.shapes(scene.name, labels)[group]
        polygons = shapes.read()
        _, met, burnt = sources.setdefault(polygons.ids.tobytes(), (polygons, set(), set()))
        met.update(polygons.meeting(scene.grid).tolist())
        burnt.update(np.unique(shapes.ids(labels, scene.grid)).tolist())
    numbers, kinds, total = Counter[str](), defaultdict[str, Counter[str]](Counter), 0
    unlisted = Counter[str]()
    for polygons, met, burnt in sources.values():
        every = np.arange(len(polygons))
        inside, burns = np.isin(every, list(met)), np.isin(polygons.ids, list(burnt))
        named = polygons.values_of(every)
        unlisted.update({value: count for value, count in named.items() if value not in shapes.codes})
        for what, places in (
            (f"lie outside {'every tile' if len(scenes) > 1 else 'the raster'}", every[~inside]),
            ("label no pixel: they are smaller than one, or others lie on them", every[inside & ~burns]),
        ):
            numbers[what] += len(places)
            kinds[what].update(polygons.values_of(places))
        numbers[f"have no value in `{shapes.attribute}`"] += every.size - sum(named.values())
        numbers["have no outline"] += polygons.empty
        numbers["are of a reference sample: they judge maps, and do not train"] += polygons.left_out
        total += every.size + polygons.empty + polygons.left_out
    for what, count in numbers.items():
        if count:
            listed = few([f"{value} ({number:,})" for value, number in kinds[what].items()])
            report.notes.append(
                f"{count:,} of {total:,} shapes of {', '.join(shapes.paths)} {what}" + (f": {listed}" if listed else "")
            )
    return unlisted


def _check_unlisted(
    report: Report, file: SceneFile, labels: LabelSettings, unlisted: Counter[str], tiles: Sequence[str]
) -> None:
    """What the labels hold that the legend lacks: one fault or note for all tiles."""
    if not unlisted:
        return
    unit = "shapes" if labels.polygons else "pixels or shapes" if labels.later else "pixels"
    known = list(file.values) if labels.polygons or labels.later else []
    words = [
        f"{value} ({count:,}{nearest(value, known, '', before='; ', cutoff=0.7)})"
        for value, count in unlisted.most_common()
    ]
    where = ", ".join(labels.paths)
    in_tiles = f" in {len(tiles)} of {len(file.tiles)} tiles ({few(tiles)})" if tiles and len(file.tiles) > 1 else ""
    if labels.polygons:
        kind, do = "values", "add them to `legend` (as `name` or `value`)"
    elif labels.colours:
        kind, do = "colours", "list the colours under `labels: colours: ignored:`, or set a `tolerance` there"
    else:
        kind, do = "codes", "add the classes to `legend`, or list the codes under `labels: ignored:`"
    found = f"the labels {where} hold {kind} that the legend lacks{in_tiles}; {unit} of each: {few(words, 10)}"
    if tiles and labels.unlisted == "error":
        report.add(
            found,
            f"only {', '.join(known or map(str, file.legend.codes))}"
            + ("" if labels.polygons else ", or a code listed as ignored"),
            f"{do}; `unlisted: unlabelled` under `labels` leaves all of them out",
        )
    else:
        report.notes.append(f"{found}. They are unlabelled")


def _check_leaks(
    report: Report, scenes: Sequence[Scene], roles: Sequence[Roles], views: Sequence[tuple[int, int]]
) -> None:
    learnt, pairs = learnt_ground([scene.grid for scene in scenes], roles)
    report.leaks = {(view, core): leak_fraction(roles, view, core, learnt=learnt) for view, core in views}
    report.by_buffer = leaks_by_buffer(roles, learnt)
    report.polygon_leak = polygon_leak_fraction(scenes, roles)
    if pairs:
        named = [f"`{scenes[test].name}` on `{scenes[other].name}`" for test, other in pairs]
        report.notes.append(
            f"tiles overlap: {percent(leak_fraction(roles, 1, learnt=learnt))} of the test pixels lie on ground that "
            f"trains or validates in another tile ({few(named)}). Such tiles belong to one role"
        )
    report.notes += polygon_leak_words(report.polygon_leak)
    calibration = {view: leak_fraction(roles, view, core, learnt=learnt, of=CALIBRATION) for view, core in views}
    report.notes += calibration_leak_words(calibration)


_OTHER_DATA = "check that these are the files that the scene file means; other versions of the data may circulate"


def _compare_sizes(report: Report, counts: CountSettings, scenes: Sequence[Scene]) -> None:
    """Compares what is there once, not per class, with the published numbers."""
    grids = {f"{scene.grid.height} x {scene.grid.width} px" for scene in scenes}
    bands = {name: f"{row.bands} bands" for name, row in report.modalities.items()}
    pairs = [
        ("tiles", None if counts.tiles is None else str(counts.tiles), {str(len(scenes))}),
        ("size", None if counts.size is None else f"{counts.size[0]} x {counts.size[1]} px", grids),
        *(
            (f"bands.{name}", f"{number} bands", {bands[name]})
            for name, number in counts.bands.items()
            if name in bands
        ),
    ]
    for name, published, found in pairs:
        if published is None:
            continue
        if found == {published}:
            report.confirmed.append(name)
        else:
            report.add(f"`counts.{name}`: the files have {', '.join(sorted(found)[:4])}", published, _OTHER_DATA)


def _compare_classes(report: Report, counts: CountSettings, names: Sequence[str]) -> None:
    """Compares the labelled pixels with the published numbers, and names each class that differs."""
    if not report.counts:
        return
    roles = report.counts
    aside = ("calibration",) if counts.validation is not None else ("calibration", "validation")
    found = {
        "labelled": np.sum(list(roles.values()), axis=0),
        "train": sum(roles[name] for name in ("train", *aside) if name in roles),
        "validation": roles["validation"],
        "test": roles["test"],
    }
    for name, published in counts.per_class.items():
        differing = [
            f"{kind} {there:,} instead of {wanted:,}"
            for kind, there, wanted in zip(names, found[name].tolist(), published, strict=True)
            if there != wanted
        ]
        if differing:
            report.add(
                f"the pixels of `{name}` are not the published ones in {len(differing)} of {len(names)} classes: "
                + "; ".join(differing),
                f"{sum(published):,} pixels, as `counts` of the scene file says",
                _OTHER_DATA,
            )
        else:
            report.confirmed.append(name)
