"""An engineer maps a region of many tiles: trains once, maps tile by tile, and resumes after a crash.

    python examples/engineer.py [FOLDER]

Trains on the labelled tiles of a simulated region, maps all of them, crashes on purpose half way through a tile, and
resumes: the map has the same bytes as one that was made without a crash. From the command line, several processes and a
cluster: `landfuse predict --help` and docs/cluster.md.
"""
# ruff: noqa: T201

from __future__ import annotations

import sys
import time
from pathlib import Path

import landfuse as lf
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.simulate.scene import simulate

SCENE = """
name: region
modalities:
  hsi: {path: "hsi/{tile}.tif", units: reflectance}
  sar: {path: "sar/{tile}.tif", units: dB}
labels: {path: "labels/{tile}.tif"}
split: {kind: tiles, test_tiles: [n1], validation: 0.3}
legend:
"""
RECIPE = """
scene: scene.yaml
model: {name: two_branch, view: 9, width: 24}
pixel_maps: {hsi: {kind: pca, components: 12}}
samples: {balanced: true, windows: 4000}
training: {epochs: 6, rate: 2.0e-3, patience: null}
"""
TILES = ("n0", "n1", "n2", "n3")


class CrashError(Exception):
    """What ends the process at three in the morning."""


def make_up_region(folder: Path, side: int) -> None:
    """Writes adjacent tiles as GeoTIFFs, with scene file and recipe."""
    classes = ""
    for number, tile in enumerate(TILES):
        scene = simulate(side, side, seed=number, nodata_fraction=0)
        a, b, c, d, e, f = scene.grid.transform
        grid = Grid(side, side, (a, b, c + number * side * a, d, e, f), scene.grid.crs)
        for name in ("hsi", "sar"):
            write_raster(folder / name / f"{tile}.tif", grid, scene.read(name, scene.grid.window))
        write_raster(folder / "labels" / f"{tile}.tif", grid, scene.legend.to_codes(scene.labels), legend=scene.legend)
        classes = "".join(f'  - {{name: {k.name}, code: {k.code}, colour: "{k.colour}"}}\n' for k in scene.legend)
    (folder / "scene.yaml").write_text(SCENE + classes, encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")


def main(folder: Path, *, side: int = 256, block: int = 64, settings: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Returns the maps' bytes: of the tile that crashed, and of the same tile mapped without a crash."""
    if not (folder / "scene.yaml").exists():
        make_up_region(folder, side)
    classifier = lf.train(folder / "recipe.yaml", *settings, f"run={folder / 'run'}", progress=False)
    scenes = lf.open_scenes(folder / "scene.yaml")

    def crash(done: int, total: int) -> None:
        if done > total / 2:
            raise CrashError

    first, path = scenes[0], folder / "maps" / f"{scenes[0].name}.tif"
    try:
        lf.predict(classifier, first, path, block=block, progress=crash)
    except CrashError:
        print(f"crashed while mapping {first.name}; there is no {path.name}: {not path.exists()}")
    start, pixels = time.perf_counter(), 0
    for scene in scenes:  # the same calls as if nothing had happened
        lf.predict(classifier, scene, folder / "maps" / f"{scene.name}.tif", block=block)
        pixels += scene.grid.window.pixels
    print(f"{len(scenes)} tiles, {pixels / (time.perf_counter() - start) / 1e6:.2f} megapixels per second")
    lf.predict(classifier, first, folder / "again.tif", block=block)
    scores = lf.evaluate(folder / "maps", folder / "scene.yaml").confusion.scores()
    print(f"test tile: OA {scores['OA']:.3f}, mIoU {scores['mIoU']:.3f}")
    return {"crashed": path.read_bytes(), "without a crash": (folder / "again.tif").read_bytes()}


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "landfuse-engineer"))
