"""A researcher at a notebook has DataArrays and no scene file, and wants a map that is a DataArray again.

    python examples/arrays.py [FOLDER]

Reads one of the TerraMind examples (Sentinel-2, Sentinel-1 and a DEM at 10 m, with land cover), adds a vegetation index
that xarray computes, fits a classifier, maps the tile, and scores the classifier on a tile of another country. FOLDER
holds the data; by default `terramind` in `../shared/data`, or in the folder `data` of the one that LANDFUSE_SHARED
names. The map is saved beside where the script was started. Needs `pip install 'landfuse[xarray]'`.
"""
# ruff: noqa: T201

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import rioxarray
from xarray import DataArray

import landfuse as lf

HERE, ABROAD = "433D_629L_3_1", "637U_59R_1_3"
LEGEND = {1: "water", 2: "trees", 4: "crops", 5: "built", 9: "rangeland"}
OTHERS = (0, 3, 6, 7, 8)  # no data, flooded vegetation, bare ground, snow and ice, clouds: not in both tiles


def read(folder: Path, tile: str) -> tuple[dict[str, DataArray | Path], DataArray]:
    """The images of a tile by name, and its labels."""
    s2 = rioxarray.open_rasterio(folder / "S2L2A" / f"{tile}.tif")
    s1 = rioxarray.open_rasterio(folder / "S1RTC" / f"{tile}.tif")
    red, infrared = s2.isel(band=3).astype("float32"), s2.isel(band=7).astype("float32")
    ndvi = (infrared - red) / (infrared + red)
    dem = folder / "DEM" / f"{tile}.tif"  # a path does as well: it is read block by block
    return {"s2": s2, "s1": s1, "ndvi": ndvi, "dem": dem}, rioxarray.open_rasterio(folder / "LULC" / f"{tile}.tif")


def main(folder: Path, output: Path = Path(), **settings: Any) -> DataArray | None:
    """Gives the map; None where the data are missing."""
    if not (folder / "S2L2A").is_dir():
        print(f"the TerraMind examples are not in {folder}; benchmarks/terramind/scene.yaml says where to get them")
        return None
    images, labels = read(folder, HERE)
    classifier = lf.Classifier("two_branch", **{"view": 7, "epochs": 6, "windows": 8192, **settings})
    classifier.fit(images, labels, legend=LEGEND, unlabelled=OTHERS, progress=sys.stderr.isatty())
    print(f"{classifier!r}, split into blocks of {classifier.split.size} px")
    for name in ("OA", "mF1", "mIoU"):
        print(f"test pixels: {name} {classifier.run.scores['test'][name]:.3f}")

    mapped = classifier.predict(images, progress=False)
    for code, name in LEGEND.items():
        print(f"{name}: {float((mapped == code).mean()):.1%} of the tile")
    mapped.rio.to_raster(output / "arrays_map.tif")
    unsure = 1 - classifier.predict_proba(images, progress=False).max("class")
    print(f"mean doubt: {float(unsure.mean()):.3f}")

    classifier.save(output / "arrays_bundle")
    abroad, truth = read(folder, ABROAD)
    loaded = lf.load(output / "arrays_bundle")
    scores = loaded.evaluate(abroad, truth, unlabelled=OTHERS, progress=False).confusion.scores()
    print(f"in another country: OA {scores['OA']:.3f}")
    return mapped


if __name__ == "__main__":
    shared = Path(os.environ.get("LANDFUSE_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else shared / "data" / "terramind")
