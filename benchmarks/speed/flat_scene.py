"""Scenes of any side for measuring how fast landfuse maps, and untrained classifiers for them.

A scene is a mosaic (VRT) of one written file with 12 + 2 bands: 16-bit numbers in deflated tiles, as data portals give
them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from landfuse.bundles.bundle import Bundle
from landfuse.bundles.description import ModelSpec
from landfuse.legend import LandClass, Legend
from landfuse.rasters.geotiff import GdalRaster
from landfuse.rasters.geotiff_writer import GeotiffWriter
from landfuse.rasters.windows import blocks
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.simulate.scene import simulate_flat
from landfuse.views.pixel_map import PixelMap

BANDS = {"s2": 12, "s1": 2}
BASE = 2048
CLASSES = 6


def mosaic(name: str, side: int, folder: Path, base: int = BASE) -> Path:
    """A VRT of a side that repeats one written file of the side `base`."""
    written, path = folder / f"{name}-{base}.tif", folder / f"{name}-{base}-{side}.vrt"
    if not written.exists():
        scene = simulate_flat(base, base, BANDS, seed=1)
        with GeotiffWriter(written, scene.grid, bands=BANDS[name], dtype="int16", nodata=None, scale=1e-3) as file:
            for block in blocks(base, base, 512):
                file.write(block, np.rint(scene.read(name, block) * 1000).astype(np.int16))
    bands = "".join(
        f'<VRTRasterBand dataType="Int16" band="{band}"><Scale>0.001</Scale>'
        + "".join(
            f'<SimpleSource><SourceFilename relativeToVRT="1">{written.name}</SourceFilename>'
            f"<SourceBand>{band}</SourceBand>"
            f'<SourceProperties RasterXSize="{base}" RasterYSize="{base}" DataType="Int16" BlockXSize="512" '
            'BlockYSize="512"/>'
            f'<SrcRect xOff="0" yOff="0" xSize="{w.width}" ySize="{w.height}"/>'
            f'<DstRect xOff="{w.col}" yOff="{w.row}" xSize="{w.width}" ySize="{w.height}"/></SimpleSource>'
            for w in blocks(side, side, base)
        )
        + "</VRTRasterBand>"
        for band in range(1, BANDS[name] + 1)
    )
    path.write_text(
        f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}"><SRS>EPSG:32632</SRS>'
        f"<GeoTransform>500000, 10, 0, 5400000, 0, -10</GeoTransform>{bands}</VRTDataset>"
    )
    return path


def place(
    spec: ModelSpec, side: int, folder: Path, stride: int | None = None, base: int = BASE
) -> tuple[Bundle, Scene]:
    """A scene, and an untrained classifier of always the same weights for it."""
    rasters = {name: GdalRaster(str(mosaic(name, side, folder, base))) for name in BANDS}
    legend = Legend(tuple(LandClass(f"c{i}", i, "#112233") for i in range(CLASSES)))
    scene = Scene("flat", rasters["s2"].grid, {n: SceneModality(r) for n, r in rasters.items()}, legend)
    maps = {name: PixelMap(torch.ones(bands), torch.zeros(bands)) for name, bands in BANDS.items()}
    torch.manual_seed(0)
    notes = {name: scene.modalities[name].info for name in BANDS}
    return Bundle(spec, maps, notes, legend, stride).eval(), scene
