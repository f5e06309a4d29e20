"""A practitioner has rasters of two sensors on two grids and polygons of the field, and needs a map with its accuracy.

    python examples/practitioner.py [FOLDER]

Checks the data, trains on the polygons, maps, draws a reference sample from the map, and prints accuracy and hectares
with their uncertainty. With a FOLDER that holds `scene.yaml` and `recipe.yaml` (see docs/add-a-scene.md) it uses your
data; otherwise it simulates some, and fills in the reference sample from the simulated truth.
"""
# ruff: noqa: T201

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import shapely
from numpy.typing import NDArray

import landfuse as lf
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.simulate.scene import simulate

SCENE = """
name: valley
modalities:
  hsi: {path: hsi.tif, units: reflectance}
  height: {path: height_2m.tif, units: m, resampling: bilinear}   # another grid: aligned on reading
labels:
  polygons: field.gpkg
  attribute: cover
legend:
"""
RECIPE = """
scene: scene.yaml
model: {name: two_branch, view: 7, width: 32}
pixel_maps: {hsi: {kind: pca, components: 12}}
samples: {balanced: true, windows: 4000}
training: {epochs: 10, rate: 2.0e-3, patience: null}
split: {kind: blocks, size: 32, buffer: 3, test: 0.3}
"""


def make_up_data(folder: Path, side: int) -> NDArray[np.uint8]:
    """Writes two rasters, polygons in degrees, scene file and recipe; returns the true codes, (H, W)."""
    scene = simulate(side, side, seed=3, nodata_fraction=0, labelled_fraction=1)
    folder.mkdir(parents=True, exist_ok=True)
    write_raster(folder / "hsi.tif", scene.grid, scene.read("hsi", scene.grid.window))
    height = scene.read("height", scene.grid.window).reshape(1, side // 2, 2, side // 2, 2).mean(axis=(2, 4))
    a, b, c, d, e, f = scene.grid.transform
    write_raster(
        folder / "height_2m.tif", Grid(side // 2, side // 2, (2 * a, b, c, d, 2 * e, f), scene.grid.crs), height
    )
    labels = scene.labels
    squares, covers = [], []
    for row in range(0, side - 4, 7):  # what was seen in the field: squares of 4 m
        for col in range(0, side - 4, 7):
            inside = labels[row : row + 4, col : col + 4]
            if inside[0, 0] != lf.UNLABELLED and (inside == inside[0, 0]).all():
                x, y = scene.grid.at(np.array([col, col + 4]), np.array([row, row + 4]))
                squares.append(shapely.box(x[0], y[1], x[1], y[0]))
                covers.append(scene.legend.names[inside[0, 0]])
    fields = geopandas.GeoDataFrame({"cover": covers}, geometry=squares, crs=scene.grid.crs)
    fields.to_crs("EPSG:4326").to_file(folder / "field.gpkg")
    classes = "".join(f'  - {{name: {c.name}, code: {c.code}, colour: "{c.colour}"}}\n' for c in scene.legend)
    (folder / "scene.yaml").write_text(SCENE + classes, encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return scene.legend.to_codes(labels)


def main(folder: Path, *, side: int = 192, points: int = 400, settings: tuple[str, ...] = ()) -> float | None:
    """Returns the estimated overall accuracy; None for your own data, whose reference sample you have to fill in."""
    truth = None if (folder / "scene.yaml").exists() else make_up_data(folder, side)
    found = lf.check(folder)
    for fault in found.faults:
        print(fault)
    for name, one in found.modalities.items():
        print(f"{name}: {one.bands} bands, {one.pixel:g} m, {one.missing / one.pixels:.0%} without data")

    classifier = lf.train(folder / "recipe.yaml", *settings, f"run={folder / 'run'}", progress=False)
    scene = lf.open_scene(folder)
    path = lf.predict(classifier, scene, folder / "map.tif", confidence=True)
    print(f"map: {path}")

    sample = lf.draw_sample(path, points, legend=classifier.legend)
    table = folder / "reference.gpkg"
    sample.save(table)
    if truth is None:
        print(
            f"look at each place of {table} and fill in its column `reference`; then: landfuse evaluate {path} {table}"
        )
        return None
    seen = tuple(str(code) for code in truth[sample.row, sample.col])  # 255: unknown
    estimate = lf.evaluate_sample(path, replace(sample, reference=seen))
    overall = estimate.overall
    print(f"overall accuracy {overall.value:.3f} (95% interval {overall.low:.3f} to {overall.high:.3f})")
    for one in estimate.classes:
        if one.hectares:
            print(f"  {one.name}: {one.hectares.value:.2f} ha ({one.hectares.low:.2f} to {one.hectares.high:.2f})")
    return float(overall.value)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "landfuse-practitioner"))
