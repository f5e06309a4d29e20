"""The page to interpret a sample by: the right ground around each point, and not what the map says."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import landfuse as lf
from landfuse.accuracy.draw_sample import draw_sample
from landfuse.accuracy.reference_sample import ReferenceSample
from landfuse.errors import GridError
from landfuse.figures import contact_sheet as sheets
from landfuse.figures.overview import closeups, overview
from landfuse.rasters.arrays import ArrayRaster
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene, SceneModality

GRID = Grid(90, 120, (10.0, 0.0, 5e5, 0.0, -10.0, 5e6), "EPSG:32632")
LEGEND = lf.Legend.of([(1, "oak & <ash>"), (2, "water")])


def ramp(grid: Grid, zoom: int = 1) -> Scene:
    """A band that grows to the east, and one, as fine as `zoom` says, that grows to the south."""
    fine = grid.zoomed(zoom)
    east = np.broadcast_to(np.arange(grid.width, dtype=np.float32), (1, grid.height, grid.width))
    south = np.broadcast_to(np.arange(fine.height, dtype=np.float32)[:, None], (1, fine.height, fine.width))
    parts = {
        "east": SceneModality(ArrayRaster(east, "CHW", grid, "east")),
        "<south>": SceneModality(ArrayRaster(south, "CHW", fine, "south"), zoom),
    }
    return Scene("ramp", grid, parts, LEGEND)


@pytest.fixture
def sample(tmp_path: Path) -> ReferenceSample:
    write_raster(
        tmp_path / "map.tif", GRID, np.random.default_rng(0).integers(1, 3, (90, 120), np.uint8), legend=LEGEND
    )
    return draw_sample(tmp_path / "map.tif", 40)


def pictures(page: str) -> list[np.ndarray]:
    found = re.findall(r"data:image/webp;base64,([^\"]+)", page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]


def test_closeups_are_the_ground_around_places_and_white_beyond_the_tile() -> None:
    scene = ramp(GRID, 4)
    windows = [Window(40, 50, 21, 21), Window(-5, 109, 21, 21)]
    whole = {name: overview(scene, name).image for name in scene.modalities}
    for name, pixels, side in (("east", 21, 21), ("<south>", 84, 84), ("<south>", 42, 42)):
        inner, corner = closeups([(scene, window) for window in windows], name, pixels)
        assert inner.shape == corner.shape == (side, side, 3)
        shades = inner[:, side // 2, 0] if name == "<south>" else inner[side // 2, :, 0]
        ordered = whole[name][:, 0, 0] if name == "<south>" else whole[name][0, :, 0]
        assert (np.diff(shades.astype(int)) >= 0).all()
        assert shades[-1] > shades[0]
        assert (np.diff(ordered.astype(int)) >= 0).all()
        edge = side * 5 // 21
        assert (corner[:edge] == 255).all()
        assert (corner[:, -side * 10 // 21 :] == 255).all()
        assert not (corner[edge:, : side * 11 // 21] == 255).all()


def test_a_place_is_in_the_middle_of_its_picture(sample: ReferenceSample) -> None:
    spots = np.zeros((1, 90, 120), np.float32)
    spots[0, sample.row, sample.col] = 1
    scene = Scene("spots", GRID, {"a": SceneModality(ArrayRaster(spots, "CHW", GRID, "a"))}, LEGEND)
    windows = [Window(r, c, 1, 1).padded(3) for r, c in zip(sample.row.tolist(), sample.col.tolist(), strict=True)]
    for one in closeups([(scene, window) for window in windows], "a", 7):
        assert (one[3, 3] == 255).all()
        assert not one[3, [2, 4]].all()


def test_heights_are_lit_the_same_up_to_the_edge_of_a_picture() -> None:
    slope = np.broadcast_to(np.arange(120, dtype=np.float32), (1, 90, 120))
    scene = Scene("slope", GRID, {"h": SceneModality(ArrayRaster(slope, "CHW", GRID, "h"), units="m")}, LEGEND)
    for one in closeups([(scene, Window(20, 30, 9, 9)), (scene, Window(60, 90, 9, 9))], "h", 9):
        assert (one == one[:1]).all(), "all rows of an even slope are alike"


def test_each_point_has_its_pictures_and_no_class(sample: ReferenceSample) -> None:
    page = sheets.contact_sheet(sample, [ramp(GRID, 2)])
    assert page.count("<section") == len(sample) == 40
    assert len(pictures(page)) == 80
    first = page[page.index('<section id="1"') : page.index('<section id="2"')]
    assert f"x {sample.x[0]:.2f}, y {sample.y[0]:.2f}; 45." in first
    assert "water" not in first
    assert "1 oak &amp; &lt;ash&gt;, 2 water" in page, "the classes to choose from"
    assert "<figcaption>&lt;south&gt;</figcaption>" in page
    assert sheets.SIGN in page
    assert "http" not in page, "no network"


def test_tiles_other_crs_and_points_beyond(sample: ReferenceSample, monkeypatch: pytest.MonkeyPatch) -> None:
    west = GRID.part(Window(0, 0, 90, 60))
    page = sheets.contact_sheet(sample, [ramp(west)])
    inside = int((sample.col < 60).sum())
    assert 0 < inside < 40
    assert len(pictures(page)) == 2 * inside
    assert page.count("outside the scene") == 40 - inside
    east = replace(ramp(GRID.part(Window(0, 60, 90, 60))), name="east")
    assert len(pictures(sheets.contact_sheet(sample, [ramp(west), east]))) == 80
    turned = Grid(2000, 2000, (0.00002, 0.0, 8.99, 0.0, -0.00002, 45.16), "EPSG:4326")
    assert len(pictures(sheets.contact_sheet(sample, [ramp(turned)]))) == 80
    beyond = Grid(90, 120, (0.001, 0.0, 179.95, 0.0, -0.001, 10.0), "EPSG:4326")
    before = replace(sample, x=np.where(sample.col < 60, 179.96, -179.96), y=np.full(40, 9.95), crs="EPSG:4326")
    assert len(pictures(sheets.contact_sheet(before, [ramp(beyond)]))) == 80, "180 degrees are no edge"
    monkeypatch.setattr(sheets, "MOST_POINTS", 7)
    assert sheets.contact_sheet(sample, [ramp(GRID)]).count("<section") == 7
    far = replace(GRID, transform=(10.0, 0.0, 7e5, 0.0, -10.0, 5e6))
    with pytest.raises(GridError, match="no point of the sample"):
        sheets.contact_sheet(sample, [ramp(far)])
