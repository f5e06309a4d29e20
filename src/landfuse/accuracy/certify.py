"""The certified zone of a map: its largest part whose error is at most a stated rate, with a stated confidence.

The pixels are ordered by a layer of the map, from the surest on, into nested zones of about 5%, 10%, ..., 100% of it.
The zones follow from the map and the number of points alone, never from what the points show. Whether the error of a
zone is at most the stated rate is a hypothesis test; the tests are made in a fixed order, so that the risk that *any*
certified zone has a larger error is at most 1 - confidence.

- The order (Learn then Test, section 5.2, with several starts): from the first zone that is expected to hold twice as
  many points as would do without an error, on to the whole map. The risk is divided among `_STARTS` of these zones; a
  zone that passes leaves its risk to the next one, and one that fails loses it (the fallback procedure).
- Simple random samples: Clopper and Pearson's exact bound. Of a zone's points it is only known how many fell into it,
  and given that they are a simple random sample of the zone.
- Stratified samples: with weights W (pixels of the stratum within the zone), n points and k errors of a stratum, the
  sum of W k / n has the moment generating function of independent binomials. Chernoff's bound of its lower tail, at
  the worst division of the errors among the strata, holds for any weights and any number of points.

Source:
    Angelopoulos et al. 2021, arXiv:2110.01052; Wiens 2003, doi:10.1002/pst.64 (fallback); Clopper and Pearson 1934,
    doi:10.1093/biomet/26.4.404; Hoeffding 1963, doi:10.1080/01621459.1963.10500830 (also without replacement).
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
from landfuse.files import check_replaceable, to_json, write_text
from landfuse.legend import UNLABELLED, LandClass, Legend
from landfuse.rasters.geotiff_writer import TILE, GeotiffWriter, write_category_names, write_cloud_geotiff
from landfuse.rasters.grid import pixel_areas
from landfuse.rasters.windows import Window, blocks
from landfuse.scenes.land_cover_map import LandCoverMap, beside, layer_of, open_map

_ZONES, _STARTS = 20, 3
_BLOCK = 4 * TILE
_REVERSED = ("entropy",)
"""Layers whose smallest values are the surest."""

_TAG = "landfuse_certified"
_LEGEND = Legend((LandClass("not certified", 0, "#D9D9D9"), LandClass("certified", 1, "#0072B2")))


@dataclass(frozen=True)
class Zone:
    """The pixels of a map whose layer is at least (entropy: at most) a threshold.

    Args:
        threshold: of the layer.
        fraction: of the map's pixels, 0..1.
        hectares: None where the map has no CRS.
        points: sampled pixels inside.
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

    def blocks(self) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
        """The certified zone block by block: 1 inside, 0 outside, 255 where the map has no class.

        Raises:
            SceneError: if no zone is certified.
        """
        if self._least is None:
            raise SceneError(*self.refusal)
        for window, codes, levels in _blocks(self._map, self._layer, self.by):
            inside = (levels >= self._least) & (levels != UNLABELLED)
            yield window, np.where(codes == UNLABELLED, UNLABELLED, inside).astype(np.uint8)

    @property
    def refusal(self) -> tuple[str, str, str]:
        """Why nothing is certified: found, expected, do."""
        sure = f"an error of at most {self.error:g} with confidence {self.confidence:g}"
        points = f"{self.zones[-1].errors} of all {self.points} points are wrong"
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
        grid = self._map.grid
        total = -(-grid.height // _BLOCK) * -(-grid.width // _BLOCK)
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
        by: the layer beside the map that orders its pixels: "confidence", or "entropy".
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
            raise SettingsError(f"{name} {value:g}", "a fraction above 0 and below 1, e.g. 0.1 and 0.95", "correct it")
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
    levels = np.where(levels == UNLABELLED, -1, UNLABELLED - 1 - levels if by in _REVERSED else levels)

    counts, hectares = np.zeros((256, 256), np.int64), np.zeros(256)  # by level, and by stratum
    areas, grid = pixel_areas(opened.grid), opened.grid
    total = -(-grid.height // _BLOCK) * -(-grid.width // _BLOCK)
    for done, (window, codes, of_block) in enumerate(_blocks(opened, layer, by), start=1):
        there = codes != UNLABELLED
        strata = codes[there].astype(np.int64) * (sample.design == "stratified")
        counts += np.bincount(of_block[there] * 256 + strata, minlength=65536).reshape(256, 256)
        if areas is not None:
            hectares += np.bincount(of_block[there], areas(window)[there], minlength=256) / 10_000
        progress(done, total)
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

    strata = np.array(list(found))
    inside = counts[UNLABELLED - 1 :: -1, strata].cumsum(axis=0)[::-1]  # pixels of level >= l, by stratum
    whole = int(counts.sum())
    least = _levels(inside.sum(axis=1), whole)
    wrong = mapped != truth
    of_stratum = sample.stratum[:, None] == strata
    within = levels[:, None] >= least
    points = (within[:, :, None] & of_stratum[:, None]).sum(axis=0)  # (zones, strata)
    errors = (within[:, :, None] & of_stratum[:, None] & wrong[:, None, None]).sum(axis=0)
    drawn = np.array([sample.drawn[stratum] for stratum in strata.tolist()])
    expected = (inside[least] / inside[0].clip(min=1) * drawn).sum(axis=1) if whole else np.zeros(len(least))
    tested = _tested(errors, points, inside[least], expected, error, 1 - confidence)

    _, _, _, scale, offset, _ = layer.raster.stored[0]
    shown = (UNLABELLED - 1 - least if by in _REVERSED else least) * (scale or 1.0) + (offset or 0.0)
    in_zone = hectares[UNLABELLED - 1 :: -1].cumsum()[::-1]
    zones = tuple(
        Zone(
            float(shown[z]),
            float(inside[least[z]].sum() / whole),
            None if areas is None else float(in_zone[least[z]]),
            int(points[z].sum()),
            int(errors[z].sum()),
            risk,
            bound,
        )
        for z, risk, bound in tested
    )
    passed = [least[z] for z, _, bound in tested if bound <= error]
    notes = []
    unknown = int((truth == UNLABELLED).sum())
    if unknown:
        notes.append(f"the truth of {unknown} of {len(sample)} points is not known; they count as wrong")
    if areas is not None and areas.same is None:
        notes.append("the pixels of this map differ in area: the error is a fraction of pixels, not of area")

    def enough(times: float) -> bool:
        found = _tested(errors * times, points * times, inside[least], expected * times, error, 1 - confidence)
        return any(bound <= error for _, _, bound in found)

    times = None if passed else _times(enough)
    more = None if times is None else math.ceil((times - 1) * len(sample))
    return Certificate(
        error, confidence, by, zones, more, sample.design, len(sample), tuple(notes), opened, layer,
        int(passed[-1]) if passed else None,
    )  # fmt: skip


def _blocks(
    opened: LandCoverMap, layer: LandCoverMap, by: str
) -> Iterator[tuple[Window, NDArray[np.uint8], NDArray[np.int64]]]:
    """The codes of a map and the levels of a layer, block by block; the surest level is 254, 255 is none."""
    for window in blocks(opened.grid.height, opened.grid.width, _BLOCK):
        levels = layer.codes(window).astype(np.int64)
        if by in _REVERSED:
            levels = np.where(levels == UNLABELLED, levels, UNLABELLED - 1 - levels)
        yield window, opened.codes(window), levels


def _levels(inside: NDArray[np.int64], whole: int) -> NDArray[np.int64]:
    """The least level of each zone, the surest first: of those with pixels, the first to reach 5%, 10%, ... of the map.

    Args:
        inside: (255,) pixels of each level and all surer ones.
        whole: pixels of the map.
    """
    wanted = np.minimum(np.arange(1, _ZONES + 1) / _ZONES * whole, inside[0])
    return np.unique((inside[:, None] >= wanted).sum(axis=0) - 1)[::-1]


def _tested(
    errors: NDArray[np.floating] | NDArray[np.integer],
    points: NDArray[np.floating] | NDArray[np.integer],
    pixels: NDArray[np.integer],
    expected: NDArray[np.floating],
    error: float,
    risk: float,
) -> list[tuple[int, float, float]]:
    """(zone, risk at which it was tested, bound) of the zones that are tried, in order; all arrays (zones, strata)."""
    needed = 2 * math.log(risk) / math.log1p(-error)
    first = min(int((expected < needed).sum()), len(expected) - 1)
    tried = len(expected) - first
    starts = np.unique(np.arange(_STARTS) * tried // _STARTS)
    found, held = [], 0.0
    for z in range(first, len(expected)):
        held += risk / starts.size * float(z - first in starts)
        bound = upper_bound(errors[z], points[z], pixels[z], held) if held else math.nan
        found.append((z, held, bound))
        held = held if bound <= error else 0.0
    return found


def upper_bound(
    errors: NDArray[np.floating] | NDArray[np.integer],
    points: NDArray[np.floating] | NDArray[np.integer],
    pixels: NDArray[np.integer],
    risk: float,
) -> float:
    """A rate that the error of a zone exceeds with at most this risk; the source is at the top.

    Args:
        errors: (S,) sampled pixels of each stratum inside that are wrong.
        points: (S,) sampled pixels of each stratum inside.
        pixels: (S,) pixels of each stratum inside.
        risk: above 0, below 1.
    """
    there = pixels > 0
    k, n, W = errors[there], points[there], pixels[there] / max(1, pixels.sum())
    if there.sum() < 2:
        return float(stats.beta.ppf(1 - risk, k[0] + 1, n[0] - k[0])) if there.any() and k[0] < n[0] else 1.0
    unseen, seen = float(W[n == 0].sum()), n > 0  # where there is no point, all may be wrong
    k, n, W = k[seen], n[seen], W[seen]
    if not seen.any():
        return 1.0
    # The rates r that are not refuted at a slope s: -sum n log(1 - r c) <= s sum(W k / n) - log(risk), where
    # c = 1 - exp(-s W / n). The largest sum(W r) among them has r = 1 / c - m n / W, cut to 0..1, for some m >= 0.
    slopes = np.geomspace(0.02, 50, 60)[:, None] * n.sum() / W.sum()
    c = -np.expm1(-slopes * W / n)
    most = slopes[:, 0] * (W * k / n).sum() - math.log(risk)
    low, high = np.zeros(len(slopes)), (W / (n * c)).max(axis=1)
    for _ in range(50):
        middle = (low + high) / 2
        r = np.clip(1 / c - middle[:, None] * n / W, 0, 1)
        over = -(n * np.log1p(-np.minimum(r * c, 1 - 1e-15))).sum(axis=1) >= most
        low, high = np.where(over, middle, low), np.where(over, high, middle)
    rates = np.clip(1 / c - low[:, None] * n / W, 0, 1)
    return min(1.0, unseen + float((rates * W).sum(axis=1).min()))


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
