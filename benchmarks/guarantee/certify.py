"""How often a certified zone breaks its promise, how large it is, and whether intervals of change hold the truth.

    python benchmarks/guarantee/certify.py [--maps 1000] [--points 500]

Each repetition has a new truth of a map of 200 x 200 px and a new sample of it; everything goes through the functions
that users call. `broken`: fraction of all repetitions in which the certified zone has more wrong pixels than allowed
(allowed: 1 - confidence). `zone`: its mean fraction of the map, 0 where there is none; `best`: that of the largest zone
that is right often enough, as one who knows the truth would draw it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import landfuse as lf
from landfuse.accuracy.change import change
from landfuse.rasters.geotiff_writer import write_raster

SIDE = 200
GRID = lf.Grid(SIDE, SIDE, (10.0, 0.0, 5e5, 0.0, -10.0, 5e6), "EPSG:32632")
ERRORS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "falls with confidence": lambda c: 0.9 * (1 - c) ** 2,
    "too large at the top": lambda c: np.where(c > 0.85, 0.2, 0.02 + 0.3 * (0.85 - c)),
    "just too large everywhere": lambda c: np.full_like(c, 0.103),
    "a step below the middle": lambda c: np.where(c > 0.5, 0.03, 0.4),
    "falls slowly": lambda c: 0.05 + 0.24 * (1 - c),
    "half of what is allowed": lambda c: np.full_like(c, 0.05),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--maps", type=int, default=1000)
    options.add_argument("--points", type=int, default=500)
    given = options.parse_args()
    rng = np.random.default_rng(0)
    codes = rng.choice([1, 2, 3, 4], (SIDE, SIDE), p=[0.5, 0.3, 0.17, 0.03]).astype(np.uint8)
    confidence = np.rint(250 * rng.beta(2, 1, (SIDE, SIDE))).astype(np.uint8)
    order = np.argsort(-confidence.ravel().astype(int), kind="stable")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.tif"
        write_raster(path, GRID, codes)
        write_raster(path.with_name("map_confidence.tif"), GRID, confidence, scale=1 / 250)
        designs: dict[str, dict[str, str]] = {
            "simple": {"design": "simple"},
            "stratified, at least 50": {},
            "stratified, equal": {"allocation": "equal"},
        }
        print(f"error at most 0.1 with confidence 0.95, {given.points} points, {given.maps} maps")
        print("| errors | design | broken | certified | zone | best |\n|---|---|---|---|---|---|")
        for design, how in designs.items():
            sums = {name: np.zeros(4) for name in ERRORS}
            for seed in range(given.maps):
                sample = lf.draw_sample(path, given.points, seed=seed, **how)  # type: ignore[arg-type]
                for name, rate in ERRORS.items():
                    wrong = np.random.default_rng(seed).random((SIDE, SIDE)) < rate(confidence / 250)
                    right = ~wrong[sample.row, sample.col]
                    texts = [str(code) if ok else "other" for code, ok in zip(sample.code.tolist(), right, strict=True)]
                    zone = lf.certify(path, replace(sample, reference=tuple(texts)), 0.1, 0.95).zone
                    running = np.cumsum(wrong.ravel()[order]) / np.arange(1, wrong.size + 1)
                    sums[name][3] += (np.flatnonzero(running <= 0.1).max(initial=-1) + 1) / wrong.size
                    if zone is not None:
                        inside = confidence >= round(zone.threshold * 250)
                        sums[name][:3] += wrong[inside].mean() > 0.1, 1, zone.fraction
            for name, total in sums.items():
                row = " | ".join(f"{one:.3f}" for one in total / given.maps)
                print(f"| {name} | {design} | {row} |", flush=True)
        _change(Path(folder), given.maps, given.points)


def _change(folder: Path, maps: int, points: int) -> None:
    """How often intervals of the area of change hold it, with 2% of change and 5% of errors in either map."""
    rng = np.random.default_rng(1)
    before = (1 + (np.add.outer(np.arange(SIDE) // 9, np.arange(SIDE) // 7) % 3 == 0)).astype(np.uint8)
    after = np.where(rng.random(before.shape) < 0.02, 3 - before, before).astype(np.uint8)
    shown = [np.where(rng.random(t.shape) < 0.05, 3 - t, t).astype(np.uint8) for t in (before, after)]
    places = folder / "before.tif", folder / "after.tif"
    for place, values in zip(places, shown, strict=True):
        write_raster(place, GRID, values)
    true, held, found = float((before != after).mean()), 0, []
    for seed in range(maps):
        sample = lf.draw_sample(places[0], points, after=places[1], seed=seed)
        texts = [tuple(str(code) for code in one[sample.row, sample.col]) for one in (before, after)]
        area = change(*places, replace(sample, reference=texts[0], reference_after=texts[1])).all.fraction
        held += area.low <= true <= area.high
        found.append(area.value)
    differ = float((shown[0] != shown[1]).mean())
    print(f"change: truth {true:.4f}, the maps differ at {differ:.4f}, estimates {np.mean(found):.4f} on average,")
    print(f"95% intervals hold the truth in {held / maps:.3f} of {maps} samples of {points} points")


if __name__ == "__main__":
    main()
