"""Writes the scene of this folder's recipes: many spectral bands beside one of height, which alone reports two classes.

    python benchmarks/simulated/scene.py [--side 256] [--seed 0]

`simulate` draws it. Grassland and crop are one class here, and so are shrub and trees: of what is left, only road and
building share their spectra and need the height. The files lie where `landfuse fetch` puts data.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from landfuse.rasters.geotiff_writer import write_raster
from landfuse.scenes.scene_keys import data_folder
from landfuse.simulate.scene import simulate

CODES = np.array([1, 2, 3, 3, 4, 4, 5, 6, *[0] * 248], np.uint8)  # of scene.yaml, by class of `simulate`; 0: none


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=256, help="of the scene, px")
    parser.add_argument("--seed", type=int, default=0, help="of the scene")
    parser.add_argument("--out", type=Path, default=data_folder() / "simulated")
    options = parser.parse_args()
    scene = simulate(options.side, options.side, options.seed)
    for name in ("hsi", "height"):
        values = scene.read(name, scene.grid.window)
        write_raster(options.out / f"{name}.tif", scene.grid, values, nodata=float("nan"))
    write_raster(options.out / "labels.tif", scene.grid, CODES[scene.labels])


if __name__ == "__main__":
    main()
