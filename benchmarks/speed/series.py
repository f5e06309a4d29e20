"""How fast a series of dates is read as composites, beside reading its dates alone, and what memory that takes.

    python benchmarks/speed/series.py [--side 2048] [--repeats 2]

24 dates of 10 bands, 16-bit numbers in deflated tiles, each with a cloud mask that hides 40%; six periods of four.
Each measurement is a process of its own, in turns, that reads all blocks of 1,024 squared but the first, in which it
gets its memory; medians of seconds of the processor, which a busy machine changes less than those of the clock.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import yaml

from landfuse.rasters.geotiff_writer import GeotiffWriter
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import blocks
from landfuse.scenes.scene_file import open_scene

DATES, BANDS, BLOCK = 24, 10, 1024
KINDS = {
    "dates alone": None,
    "mean": {"composite": "mean"},
    "first clear": {"composite": "first clear"},
    "median": {"composite": "median"},
    "median, linear": {"composite": "median", "fill": "linear"},
    "mean, percentiles": {"composite": "mean", "features": {"percentiles": [10, 50, 90]}},
    "mean, harmonics": {"composite": "mean", "features": {"harmonics": 1}},
}


def write_dates(folder: Path, side: int) -> None:
    """The files: smooth noise, as deflate meets it in reflectances, and masks in patches."""
    grid = Grid(side, side, (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_400_000.0), "EPSG:32632")
    for number in range(DATES):
        day = f"{date(2023, 1, 8) + timedelta(15 * number):%Y%m%d}"
        kinds = (("s2", BANDS, "int16", -9999), ("scl", 1, "uint8", 0))
        for name, bands, dtype, nodata in kinds:
            path = folder / name / f"{day}.tif"
            with GeotiffWriter(path, grid, bands=bands, dtype=dtype, nodata=nodata) as file:
                for block in blocks(side, side, 512):
                    rng = np.random.default_rng([number, block.row, block.col])
                    if name == "scl":
                        patches = rng.choice([4, 9], (block.height // 32, block.width // 32), p=[0.6, 0.4])
                        values = patches.repeat(32, axis=0).repeat(32, axis=1)[None]
                    else:
                        coarse = rng.uniform(200, 4000, (bands, block.height // 16, block.width // 16))
                        values = coarse.repeat(16, axis=1).repeat(16, axis=2)
                        values = values + rng.normal(0, 30, (bands, block.height, block.width))
                    file.write(block, values.astype(dtype))


def measure(folder: Path, kind: str) -> None:
    """Reads everything once, block by block, and prints seconds, MiB and channels."""
    dates = {"mask": {"path": "scl/{date}.tif", "clear": [4]}, **(KINDS[kind] or {})}
    if KINDS[kind] is not None:
        dates |= {"every": "60 days", "between": "2023-01-08/2024-01-02"}
    text = {"name": "x", "root": str(folder), "modalities": {"s2": {"path": "s2/{date}.tif", "dates": dates}}}
    path = folder / f"{kind.replace(' ', '-')}.yaml"
    path.write_text(yaml.safe_dump(text))
    scene = open_scene(path)
    raster = scene.modalities["s2"].raster
    start = 0.0
    for number, block in enumerate(blocks(scene.grid.height, scene.grid.width, BLOCK)):
        start = time.process_time() if number == 1 else start
        if KINDS[kind] is None:
            for one in raster.dates:
                one.raster.read(block)
                one.mask.raster.read(block)
        else:
            raster.read(block)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps([time.process_time() - start, memory, raster.bands]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=2048, help="of the scene, px, by 1024, from 2048")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.one:
        return measure(Path(wanted.one[0]), wanted.one[1])
    with tempfile.TemporaryDirectory() as name:
        write_dates(Path(name), wanted.side)
        found: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
        for _ in range(wanted.repeats):
            for kind, rows in found.items():
                command = [sys.executable, __file__, "--one", name, kind]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                rows.append(json.loads(done.stdout))
    alone = statistics.median(row[0] for row in found["dates alone"])
    for kind, rows in found.items():
        seconds, memory, bands = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{kind:22} {seconds:7.2f} s  x {seconds / alone:.2f}  {memory:6.0f} MiB  {bands:.0f} channels")
    return None


if __name__ == "__main__":
    main()
