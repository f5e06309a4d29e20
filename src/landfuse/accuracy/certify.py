"""The certified zone of a map: its largest part whose error is at most a stated rate, with a stated confidence.

The pixels are ordered by a layer of the map, from the surest on, into nested zones of about 5%, 10%, ..., 100% of it.
The zones follow from the map and the number of points alone, never from what the points show. Whether the error of a
zone is at most the stated rate is a hypothesis test; the tests are made in a fixed order, so that the risk that *any*
certified zone has a larger error is at most 1 - confidence.

- The order (Learn then Test, section 5.2, with several starts): from the first zone that is expected to hold twice as
  many points as would do without an error, on to the whole map. The risk is divided among `_STARTS` of these zones; a
  zone that passes leaves its risk to the next one, and one that fails loses it (the fallback procedure).
- Simple random samples: the zone's points are a simple random sample of it, so that Clopper and Pearson's bound of k
  errors among them holds.
- Stratified samples: denser strata are thinned out, at random, to the density r of the sparsest, points per pixel. Of
  all n points that are left, k are wrong and in the zone; that number is a sum of independent trials whose expectation
  is at least r times the wrong pixels of the zone. Its lower tail is no heavier than that of a binomial of n trials, so
  Clopper and Pearson's bound of k / n holds, over the fraction of the points that is expected in the zone.

Source:
    Angelopoulos et al. 2021, arXiv:2110.01052; Wiens 2003, doi:10.1002/pst.64 (fallback); Clopper and Pearson 1934,
    doi:10.1093/biomet/26.4.404; Hoeffding 1956, doi:10.1214/aoms/1177728178 (unequal trials, for risks up to 1/4).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from landfuse.accuracy.from_sample import codes_at, filled, truth_of
from landfuse.accuracy.reference_sample import ReferenceSample
from landfuse.errors import OutputError, SceneError, SettingsError
from landfuse.files import check_replaceable, log_replaced, to_json, write_text
from landfuse.legend import UNLABELLED, LandClass, Legend
from landfuse.rasters.geotiff_writer import TILE, GeotiffWriter, write_category_names, write_cloud_geotiff
from landfuse.rasters.grid import pixel_areas
from landfuse.rasters.windows import Window
from landfuse.scenes.land_cover_map import LandCoverMap, beside, layer_of, open_map

_ZONES, _STARTS = 20, 3
_BLOCK = 4 * TILE
_APART = 0.01  # what a zone's fraction of the area may differ from that of the pixels without a word
REVERSED = ("entropy", "applicability")
"""Layers whose smallest values are the surest."""

_TAG = "landfuse_certified"
_LEGEND = Legend((LandClass("not certified", 0, "#D9D9D9"), LandClass("certified", 1, "#0072B2")))


@dataclass(frozen=True)
class Zone:
    """The pixels of a map whose layer is at least (of `REVERSED` layers: at most) a threshold.

    Args:
        threshold: of the layer.
        fraction: of the map's pixels, 0..1.
        hectares: None where the map has no CRS.
        points: sampled pixels inside, after thinning out.
        errors: those of them that are mapped wrong.
        risk: at which it was tested; 0 where it was not, since the zone before failed.
        bound: the error rate is at most this, but for that risk; NaN where it was not tested.
    """

    threshold: float
    fraction: float
    hectares: float | None
    points: int
    errors: int
    risk: float
    bound: float


@dataclass(frozen=True, eq=False)
class Certificate:
    """What a reference sample certifies of a map; made by `certify`.

    Args:
        error: the fraction of wrong pixels that is allowed.
        confidence: that the error of the certified zone is no larger.
        by: the layer that orders the pixels.
        zones: those that were tried, in order.
        more: points that would do in addition, if they show errors as these do; None where a zone is certified, or no
            number would do.
        design: of the sample.
        points: sampled pixels.
        notes: what has to be said beside the figures.
    """

    error: float
    confidence: float
    by: str
    zones: tuple[Zone, ...]
    more: int | None
    design: str
    points: int
    notes: tuple[str, ...]
    _map: LandCoverMap
    _layer: LandCoverMap
    _least: int | None

    @property
    def zone(self) -> Zone | None:
        """The certified zone; None where there is none."""
        return next((zone for zone in reversed(self.zones) if zone.bound <= self.error), None)

    def to_json(self) -> str:
        """All of it as JSON; `landfuse_certified` is null where there is no zone."""
        named = ("error", "confidence", "by", "design", "points", "more", "notes")
        return to_json(
            {
                **{name: getattr(self, name) for name in named},
                _TAG: self.zone and asdict(self.zone),
                "zones": [asdict(zone) for zone in self.zones],
            }
        )

    def blocks(self, tile: LandCoverMap | None = None) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
        """The certified zone block by block: 1 inside, 0 outside, 255 where the map has no class.

        Args:
            tile: one of the maps whose mosaic was certified, by default all.

        Raises:
            SceneError: if no zone is certified.
        """
        if self._least is None:
            raise SceneError(*self.refusal)
        opened, layer = (self._map, self._layer) if tile is None else (tile, layer_of(tile, self.by))
        for window, codes, levels in _blocks(opened, layer, self.by):
            inside = (levels >= self._least) & (levels != UNLABELLED)
            yield window, np.where(codes == UNLABELLED, UNLABELLED, inside).astype(np.uint8)

    def of(self, tile: LandCoverMap) -> NDArray[np.uint8]:
        """The certified zone of one of the maps whose mosaic was certified: (H, W); see `blocks`."""
        zone = np.empty((tile.grid.height, tile.grid.width), np.uint8)
        for window, values in self.blocks(tile):
            zone[window.within(tile.grid.window)] = values
        return zone

    @property
    def refusal(self) -> tuple[str, str, str]:
        """Why nothing is certified: found, expected, do."""
        sure = f"an error of at most {self.error:g} with confidence {self.confidence:g}"
        points = f"of {self.zones[-1].points} points in the largest zone {self.zones[-1].errors} are wrong"
        do = (
            "no number of points would: too many are wrong even where the map is surest. Allow a larger --error, or "
            "improve the map"
            if self.more is None
            else f"if more points show errors as these do, about {self.more:,} more would: draw a new sample of "
            f"{self.points + self.more:,} by the same design. Or allow a larger --error"
        )
        return f"the sample cannot certify any part of {self._map.path} to have {sure}: {points}", "", do

    def save(
        self,
        path: str | Path | None = None,
        *,
        overwrite: bool = False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Path:
        """Writes the zone as a cloud-optimised GeoTIFF on the map's grid, see `blocks`, and its numbers (.json).

        Args:
            path: by default beside the map, `map_certified.tif`.
            overwrite: replace a file that is no certified zone.
            progress: called with (blocks done, blocks in all).

        Raises:
            SceneError: if no zone is certified.
            OutputError: if the file is in the way, or cannot be written.
        """
        path = certified_path(self._map.path, self.by, path, overwrite)
        log_replaced([path, path.with_suffix(".json")])
        grid = self._map.grid
        total = len(self._map.occupied(_BLOCK))
        tags = {_TAG: f"error {self.error:g}, confidence {self.confidence:g}, {self.points} points"}
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".certified-") as scratch:
            whole = Path(scratch) / "whole.tif"
            with GeotiffWriter(whole, grid, legend=_LEGEND, names=["certified"], tags=tags, lasting=False) as file:
                for done, (window, values) in enumerate(self.blocks(), start=1):
                    file.write(window, values)
                    progress(done, total)
            write_cloud_geotiff(path, whole, "mode")
        write_category_names(path.with_name(path.name + ".aux.xml"), _LEGEND)
        write_text(path.with_suffix(".json"), self.to_json())
        return path


def certified_path(map_path: Path, by: str, path: str | Path | None = None, overwrite: bool = False) -> Path:
    """Where the certified zone of a map goes, by default beside it.

    Raises:
        OutputError: if another file is in the way, or the name is none of a GeoTIFF.
    """
    path = beside(map_path, "certified").with_suffix(".tif") if path is None else Path(path)
    own = [one.resolve() for one in (map_path, beside(map_path, by))]
    if path.suffix.lower() not in (".tif", ".tiff") or path.resolve() in own:
        raise OutputError(f"the certified zone cannot be written as {path}", "the name of a GeoTIFF of its own", "")
    check_replaceable(path, _TAG, overwrite)
    check_replaceable(path.with_suffix(".json"), _TAG, overwrite)
    return path


def certify(
    map_path: str | Path,
    sample: ReferenceSample | str | Path,
    error: float = 0.1,
    confidence: float = 0.95,
    *,
    by: str = "confidence",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Certificate:
    """Finds the largest part of a map whose error is at most a stated rate, with a stated confidence.

    The error is the fraction of the zone's pixels that are mapped wrong. Points whose truth is not known count as
    wrong.

    Args:
        map_path: the map, or a folder of maps with a mosaic.
        sample: from `draw_sample`, or its file, with its reference filled in; drawn from this map, or a simple one from
            a map of the same pixels.
        error: the fraction of wrong pixels that is allowed, above 0 and below 1.
        confidence: that it is no larger, above 0 and below 1.
        by: the layer beside the map that orders its pixels: "confidence", "entropy" or "applicability".
        progress: called with (blocks done, blocks in all).

    Raises:
        SettingsError: if the error or the confidence is not possible, or the sample is one of clusters.
        SceneError: if the sample is none, is not filled in, or is one of another map.
        MissingFileError: if the layer is not there.

    Examples:
        >>> from dataclasses import replace
        >>> sample = lf.draw_sample("map.tif", 200)
        >>> filled = replace(sample, reference=[str(code) for code in sample.code])  # as if the map were right
        >>> lf.certify("map.tif", filled, error=0.05).zone.fraction
        1.0
    """
    for name, value in (("error", error), ("confidence", confidence)):
        if not 0 < value < 1:
            raise SettingsError(
                f"the {name} {value:g}", "a fraction above 0 and below 1, e.g. 0.1 and 0.95", "correct it"
            )
    sample, where = filled(sample)
    if sample.design == "cluster":
        raise SettingsError(
            f"{where} was drawn in clusters",
            "pixels that were drawn one by one: those of a cluster are right or wrong together, and count as fewer",
            "draw a sample with --design simple or stratified",
        )
    opened = open_map(map_path)
    layer = layer_of(opened, by)
    mapped, truth, _ = truth_of(opened, sample, where)
    levels = codes_at(layer, sample, where)
    levels = np.where(levels == UNLABELLED, -1, UNLABELLED - 1 - levels if by in REVERSED else levels)

    counts, hectares = _counted(opened, layer, by, sample.design == "stratified", progress)
    sizes = counts.sum(axis=0)
    found = {int(stratum): int(sizes[stratum]) for stratum in np.flatnonzero(sizes)}
    if found != {s: size for s, size in sample.sizes.items() if size} or (
        sample.design == "stratified" and (mapped != sample.code).any()
    ):
        raise SceneError(
            f"{where} was drawn from {sample.source}, whose classes have other numbers of pixels than {opened.path}",
            "a sample of this map: the bound needs the probability of each of its pixels to be in the sample",
            f"name that map; or draw a sample by `landfuse sample {map_path} -n 500 -o sample.gpkg`",
        )

    inside = counts[UNLABELLED - 1 :: -1].sum(axis=1).cumsum()[::-1]  # pixels of level >= l
    whole = int(counts.sum())
    least = _levels(inside, whole)
    kept = _thinned(sample)
    used, density = int(kept.sum()), min(sample.drawn[s] / sample.sizes[s] for s in found)
    within = (levels >= least[:, None]) & kept
    points, errors = within.sum(axis=1), (within & (mapped != truth)).sum(axis=1)
    expected = density * inside[least]
    trials, scale = (points, points) if len(found) == 1 else (np.full(len(least), used), expected)
    tested = _tested(errors, trials, scale, expected, error, 1 - confidence)

    unit = layer.raster.stored[0][3] or 1.0
    shown = (UNLABELLED - 1 - least if by in REVERSED else least) * unit
    in_zone = np.zeros(0) if hectares is None else hectares[UNLABELLED - 1 :: -1].cumsum()[::-1]
    zones = tuple(
        Zone(
            float(shown[z]),
            float(inside[least[z]] / whole),
            None if hectares is None else float(in_zone[least[z]]),
            int(points[z]),
            int(errors[z]),
            risk,
            bound,
        )
        for z, risk, bound in tested
    )
    passed = [least[z] for z, _, bound in tested if bound <= error]
    notes = []
    if used < len(sample):
        notes.append(
            f"{used} of {len(sample)} points are used: classes drawn more densely are thinned out, at random, "
            "to the density of the sparsest; a sample of the design simple uses all"
        )
    unknown = int((truth == UNLABELLED).sum())
    if unknown:
        notes.append(f"the truth of {unknown} of {len(sample)} points is not known; they count as wrong")
    if hectares is not None and (np.abs(in_zone[least] / in_zone[0] - inside[least] / whole) > _APART).any():
        notes.append("the pixels of this map differ in area: the error is a fraction of pixels, not of area")

    def enough(times: float) -> bool:
        tested = _tested(errors * times, trials * times, scale * times, expected * times, error, 1 - confidence)
        return any(bound <= error for _, _, bound in tested)

    factor = None if passed else _times(enough)
    more = None if factor is None else math.ceil((factor - 1) * len(sample))
    return Certificate(
        error, confidence, by, zones, more, sample.design, len(sample), tuple(notes), opened, layer,
        int(passed[-1]) if passed else None,
    )  # fmt: skip


def _counted(
    opened: LandCoverMap, layer: LandCoverMap, by: str, stratified: bool, progress: Callable[[int, int], None]
) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
    """(256, 256) pixels by level, 255 for none, and by stratum; (256,) hectares by level, None where not known."""
    areas, total = pixel_areas(opened.grid), len(opened.occupied(_BLOCK))
    counts, hectares = np.zeros((256, 256), np.int64), np.zeros(256)
    for done, (window, codes, levels) in enumerate(_blocks(opened, layer, by), start=1):
        there = codes != UNLABELLED
        strata = codes[there].astype(np.int64) * stratified
        counts += np.bincount(levels[there] * 256 + strata, minlength=65536).reshape(256, 256)
        if areas is not None:
            hectares += np.bincount(levels[there], areas(window)[there], minlength=256) / 10_000
        progress(done, total)
    return counts, None if areas is None else hectares


def _blocks(
    opened: LandCoverMap, layer: LandCoverMap, by: str
) -> Iterator[tuple[Window, NDArray[np.uint8], NDArray[np.int64]]]:
    """The codes of a map and the levels of a layer, block by block; the surest level is 254, 255 is none."""
    for window in opened.occupied(_BLOCK):
        levels = layer.codes(window).astype(np.int64)
        if by in REVERSED:
            levels = np.where(levels == UNLABELLED, levels, UNLABELLED - 1 - levels)
        yield window, opened.codes(window), levels


def _levels(inside: NDArray[np.int64], whole: int) -> NDArray[np.int64]:
    """The least level of each zone, the surest first: of those with pixels, the first to reach 5%, 10%, ... of the map.

    Args:
        inside: (255,) pixels of each level and all surer ones.
    """
    wanted = np.minimum(np.arange(1, _ZONES + 1) / _ZONES * whole, inside[0])
    return np.unique((inside[:, None] >= wanted).sum(axis=0) - 1)[::-1]


def _thinned(sample: ReferenceSample) -> NDArray[np.bool_]:
    """Which points of a sample are left if all strata are thinned out to the density of the sparsest: (n,)."""
    density = min(sample.drawn[s] / size for s, size in sample.sizes.items() if size)
    # By the places alone, not by the order of the file, which may be by reference; of each sample in its own way.
    ordered = np.lexsort((sample.col, sample.row))
    places = np.stack([sample.row, sample.col])[:, ordered]
    order = ordered[np.random.default_rng(places.ravel()).permutation(len(sample))]
    kept = np.zeros(len(sample), bool)
    for stratum, size in sample.sizes.items():
        kept[order[sample.stratum[order] == stratum][: math.ceil(density * size - 1e-9)]] = True
    return kept


Numbers = NDArray[np.floating] | NDArray[np.integer]


def _tested(
    errors: Numbers, trials: Numbers, scale: Numbers, expected: Numbers, error: float, risk: float
) -> list[tuple[int, float, float]]:
    """(zone, risk at which it was tested, bound) of the zones that are tried, in order.

    Args:
        errors: (Z,) points of each zone that are wrong.
        trials: (Z,) points among which they were found.
        scale: (Z,) those of the trials that are in the zone, or are expected to be.
        expected: (Z,) points that are expected in each zone.
        error: that is allowed.
        risk: of certifying any zone that has more.
    """
    needed = 2 * math.log(risk) / math.log1p(-error)
    first = min(int((expected < needed).sum()), len(expected) - 1)
    tried = len(expected) - first
    starts = np.unique(np.arange(_STARTS) * tried // _STARTS)
    found, held = [], 0.0
    for z in range(first, len(expected)):
        held += risk / starts.size * float(z - first in starts)
        rate = upper_bound(float(errors[z]), float(trials[z]), held) if held else math.nan
        bound = min(1.0, rate * float(trials[z] / scale[z])) if scale[z] and held else rate
        found.append((z, held, bound))
        held = held if bound <= error else 0.0
    return found


def upper_bound(errors: float, trials: float, risk: float) -> float:
    """Clopper and Pearson's: a rate that is exceeded with at most this risk, if so many of the trials are errors."""
    return float(stats.beta.ppf(1 - risk, errors + 1, trials - errors)) if errors < trials else 1.0


def _times(enough: Callable[[float], bool]) -> float | None:
    """How many times as many points do, within 2%; None where not even 1,000 times as many do."""
    high = 1.0
    while not enough(high):
        high *= 2
        if high > 1000:
            return None
    low = high / 2
    while high > 1.02 * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
