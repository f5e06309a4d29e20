"""`init`: what is proposed for folders as people have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
import yaml

from landfuse.errors import LandfuseError, MissingFileError, OutputError, SceneError
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.scenes.check import check
from landfuse.scenes.from_files import Proposal, propose

SIDE = 64


def tif(
    path: Path,
    bands: int = 1,
    *,
    pixel: float = 10.0,
    values: Any = None,
    crs: str | None = "EPSG:32632",
    east: float = 0.0,
    dtype: Any = np.float32,
) -> Path:
    """An image of the same 640 m squared, or `east` of it."""
    side = round(SIDE * 10 / pixel)
    transform = (pixel, 0.0, 500_000.0 + east, 0.0, -pixel, 5_400_000.0)
    grid = Grid(side, side, transform, crs) if crs else Grid(side, side)
    if values is None:
        values = np.random.default_rng(bands).uniform(100, 200, (bands, side, side)).astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_raster(path, grid, values)
    return path


def codes(path: Path, *, present: tuple[int, ...] = (1, 2, 3), east: float = 0.0, pixel: float = 10.0) -> Path:
    """Labels in patches of 4 px, drawn at random."""
    side = round(SIDE * 10 / pixel)
    patches = np.random.default_rng(0).choice(present, (1, side // 4, side // 4)).astype(np.uint8)
    return tif(path, values=patches.repeat(4, 1).repeat(4, 2), east=east, pixel=pixel)


def fields(path: Path, crs: str = "EPSG:32632", **columns: Any) -> Path:
    """64 square fields of 60 m; by default `crop` names three kinds of them."""
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(8) * 80.0 + 500_010, 5_399_930 - np.arange(8) * 80.0))
    kinds = columns or {"fid_1": range(64), "crop": np.array(["wheat", "maize", "beet"])[np.arange(64) % 3]}
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = geopandas.GeoDataFrame(kinds, geometry=shapely.box(x, y, x + 60, y + 60), crs="EPSG:32632")
    frame.to_crs(crs).to_file(path)
    return path


def _one_of_each(home: Path) -> None:
    tif(home / "s2.tif", 4), tif(home / "s1.tif", 2), tif(home / "dem.tif", pixel=20)
    fields(home / "fields.gpkg")


def _tile_folders(home: Path) -> None:
    for n, tile in enumerate("abc"):
        tif(home / "S2L2A" / f"{tile}.tif", 3, east=1000.0 * n)
        tif(home / "S1RTC" / f"{tile}.tif", 2, values=np.full((2, SIDE, SIDE), -12, np.float32), east=1000.0 * n)
        codes(home / "LULC" / f"{tile}.tif", east=1000.0 * n)


def _folder_per_tile(home: Path) -> None:
    for n in (1, 2):
        tif(home / f"area_{n}" / f"s2_area_{n}.tif", 3, east=1000.0 * n)
        codes(home / f"area_{n}" / "labels.tif", east=1000.0 * n)


def _tile_first(home: Path) -> None:
    for n in range(3):
        tif(home / f"north_{n}_S2.tif", 3, east=1000.0 * n)
        tif(home / f"north_{n}_CHM.tif", east=1000.0 * n)
        codes(home / f"north_{n}_labels.tif", east=1000.0 * n)


def _a_tile_without_radar(home: Path) -> None:
    _tile_folders(home)
    (home / "S1RTC" / "c.tif").unlink()


def _linear_radar(home: Path) -> None:
    tif(home / "GRD_VV_VH.tif", 2, values=np.full((2, SIDE, SIDE), 0.1, np.float32))
    codes(home / "gt.tif")


def _two_dates(home: Path) -> None:
    tif(home / "s2_20230115.tif", 3), tif(home / "s2_20230715.tif", 3), codes(home / "labels.tif")


def _dates_of_tiles(home: Path) -> None:
    for n, tile in enumerate(("T1", "T2")):
        for day in ("20230701T101559", "20230711T101559"):
            for band in ("B04", "B08"):
                tif(home / f"{tile}_{day}_{band}.tif", east=1000.0 * n)
        tif(home / f"{tile}_S1_12345678.tif", 2, east=1000.0 * n), codes(home / f"{tile}_labels.tif", east=1000.0 * n)


def _a_file_per_band(home: Path) -> None:
    for band, pixel in (("B01", 20.0), ("B02", 10.0), ("B8A", 20.0), ("B11", 20.0)):
        tif(home / "T32UQD" / f"T32UQD_20230701_{band}.tif", pixel=pixel, values=None)
    tif(home / "VV.tif"), tif(home / "VH.tif"), codes(home / "labels.tif")


def _copernicus(home: Path) -> None:
    """Tiles in folders of their own, dates in the names of files, and what a delivery holds beside the images."""
    for n, (tile, day) in enumerate((("T32UQD", "20240612T101559"), ("T33UUT", "20240701T101601"))):
        folder = home / f"Kachel {tile} (geprüft)"
        for band, pixel in (("B02", 10), ("B08", 10), ("B8A", 20)):
            tif(folder / f"R{pixel}m" / f"{tile}_{day}_{band}_{pixel}m.tif", pixel=pixel, east=1000.0 * n)
        tif(folder / "R20m" / f"{tile}_{day}_B02_20m.tif", pixel=20, east=1000.0 * n)
        tif(folder / f"S1A_{day}_{tile}_vv.tif", values=np.full((1, SIDE, SIDE), -12, np.float32), east=1000.0 * n)
        tif(folder / f"{tile}_{day}_TCI_10m.tif", 3, east=1000.0 * n), codes(folder / "alt.tif", east=1000.0 * n)
    fields(home / "Flächen.gpkg")


def _safe_folders(home: Path) -> None:
    """As Copernicus delivers: the tile is one of several things that differ, in folders too."""
    for n, (tile, day, orbit) in enumerate(
        (("T32UQD", "20240612T101559", "R022"), ("T33UUT", "20240701T101601", "R122"))
    ):
        folder = (
            home / f"S2A_MSIL2A_{day}_N0510_{orbit}_{tile}.SAFE" / "GRANULE" / f"L2A_{tile}_A01{n}_{day}" / "IMG_DATA"
        )
        for band in ("B02", "B08"):
            tif(folder / "R10m" / f"{tile}_{day}_{band}_10m.tif", east=1000.0 * n)
    fields(home / "fields.gpkg")


def _bands_without_a_sensor(home: Path) -> None:
    tif(home / "flight_red.tif"), tif(home / "flight_nir.tif"), codes(home / "labels.tif")


def _bands_of_tiles(home: Path) -> None:
    for n, tile in enumerate(("a", "b")):
        for band in ("B04", "B08"):
            tif(home / "s2" / f"{tile}_{band}.tif", east=1000.0 * n)
        codes(home / "labels" / f"{tile}.tif", east=1000.0 * n)


def _unnamed_cube(home: Path) -> None:
    tif(home / "flight 7.tif", 40), codes(home / "ground truth.tif")


def _finer_height(home: Path) -> None:
    tif(home / "sentinel-2.tif", 3), tif(home / "lidar_height.tif", pixel=5), codes(home / "labels.tif")


def _labels_on_their_own_grid(home: Path) -> None:
    tif(home / "naip.tif", 3, pixel=5), codes(home / "landcover.tif")


def _tiles_of_labels_in_one_image(home: Path) -> None:
    for n, tile in enumerate("ab"):
        codes(home / "labels" / f"{tile}.tif", east=1000.0 * n)
    wide = Grid(SIDE, 200, (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_400_000.0), "EPSG:32632")
    write_raster(home / "naip.tif", wide, np.random.default_rng(0).uniform(1, 2, (3, SIDE, 200)).astype(np.float32))


def _other_signs_between_words(home: Path) -> None:
    tif(home / "a" / "s2_1.tif", 3), tif(home / "b" / "s2-2.tif", 3, east=1000.0)


def _a_word_of_yaml(home: Path) -> None:
    tif(home / "no.tif", 3), codes(home / "labels.tif")


def _other_language(home: Path) -> None:
    tif(home / "Höhe über Grund.tif"), tif(home / "2023 Luftbild.tif", 3), codes(home / "labels.tif")


def _unplaced(home: Path) -> None:
    tif(home / "rgb.tif", 3, crs=None), tif(home / "labels.tif", values=_patches(), crs=None)


def _patches() -> Any:
    return np.random.default_rng(0).choice([1, 2], (1, 16, 16)).astype(np.uint8).repeat(4, 1).repeat(4, 2)


def _unlabelled_zero(home: Path) -> None:
    tif(home / "s2.tif", 3), codes(home / "labels.tif", present=(0, 1, 2))


def _litter(home: Path) -> None:
    _one_of_each(home)
    (home / "s2.tif.ovr").write_bytes(b"x"), (home / ".hidden.tif").write_bytes(b"x")
    (home / "s2.tif.aux.xml").write_text("<PAMDataset/>"), (home / "readme.txt").write_text("hello")
    (home / "broken.tif").write_bytes(b"II*\0 not a raster"), (home / "cube.mat").write_bytes(b"x")
    (home / "cube.zarr" / "s2").mkdir(parents=True)
    (home / "cube.zarr" / "zarr.json").write_text("{}"), (home / "cube.zarr" / "s2" / "a.tif").write_bytes(b"x")


def _no_labels(home: Path) -> None:
    tif(home / "s2.tif", 3)


def _empty_border(home: Path) -> None:
    values = np.full((3, SIDE, SIDE), 900, np.uint16)
    values[:, :, :20] = 0
    tif(home / "s2.tif", values=values), codes(home / "labels.tif")


def _polygons_elsewhere_in_degrees(home: Path) -> None:
    tif(home / "images" / "s2.tif", 3)
    fields(home / "field work" / "crops.geojson", "EPSG:4326")


def _parts(home: Path) -> None:
    """Vector files of one kind, e.g. a file per site."""
    tif(home / "s2.tif", 3)
    fields(home / "train_1.gpkg"), fields(home / "train_2.gpkg")


def _a_larger_survey(home: Path) -> None:
    """Fields of a whole site, of which the image shows the western part."""
    tif(home / "s2.tif", 3, east=-160)
    place = np.arange(64)
    fields(home / "site.gpkg", crop=np.where(place % 8 < 6, np.array(["wheat", "maize"])[place % 2], "beet"))


def _keys_of_a_table(home: Path) -> None:
    """Crowns with a number only, their species in a table; spectra of larger pixels than the photograph."""
    tif(home / "hsi.tif", 40), tif(home / "rgb.tif", 3, pixel=2.5)
    fields(home / "crowns.shp", id=[1] * 64, tree=[f"t{n}" for n in range(64)])
    species = ["oak", "pine"] * 31 + ["rare", "rare"]
    (home / "sheet.csv").write_text("id,note\n9,x\n")  # of something else
    lines = [f"t{n},{kind},{n % 9}" for n, kind in enumerate(species)]
    (home / "trees.csv").write_text("\n".join(["tree,species,height", *lines, "t99,elm,3"]))


FOLDERS: dict[Callable[[Path], None], dict[str, Any]] = {
    _one_of_each: {
        "modalities": {"dem": "dem.tif", "s1": "s1.tif", "s2": "s2.tif"},
        "reference": "s2",
        "polygons": ("fields.gpkg",),
        "attribute": "crop",
        "kind": "polygons",
        "legend": ["beet", "maize", "wheat"],
    },
    _tile_folders: {
        "modalities": {"s1": "S1RTC/{tile}.tif", "s2": "S2L2A/{tile}.tif"},
        "labels": "LULC/{tile}.tif",
        "tiles": ["a", "b", "c"],
        "text": ["units: dB  # by its values"],
    },
    _folder_per_tile: {
        "modalities": {"s2": "area_{tile}/s2_area_{tile}.tif"},
        "labels": "area_{tile}/labels.tif",
        "tiles": ["1", "2"],
    },
    _tile_first: {
        "modalities": {"height": "north_{tile}_CHM.tif", "s2": "north_{tile}_S2.tif"},
        "labels": "north_{tile}_labels.tif",
        "tiles": ["0", "1", "2"],
    },
    _a_tile_without_radar: {
        "modalities": {"s1": "S1RTC/{tile}.tif", "s2": "S2L2A/{tile}.tif"},
        "tiles": ["a", "b"],
        "notes": ["tiles that lack a modality are left out: c (1 in all)"],
    },
    _linear_radar: {"modalities": {"s1": "GRD_VV_VH.tif"}, "labels": "gt.tif", "text": ["decibel: true"]},
    _two_dates: {
        "modalities": {"s2": "s2_{date}.tif"},
        "text": ["dates: {every: 1 month, fill: linear}  # 2 dates, 2023-01-15 to 2023-07-15"],
    },
    _dates_of_tiles: {
        "modalities": {"s1": "{tile}_S1_12345678.tif", "s2": ("{tile}_{date}_B04.tif", "{tile}_{date}_B08.tif")},
        "tiles": ["T1", "T2"],
        "text": ["dates: {fill: linear}  # 2 dates, 2023-07-01 to 2023-07-11; a `mask` hides", "names: [B04, B08]"],
    },
    _a_file_per_band: {
        "modalities": {
            "s1": ("VH.tif", "VV.tif"),
            "s2": tuple(f"T32UQD/T32UQD_20230701_{band}.tif" for band in ("B01", "B02", "B8A", "B11")),
        },
        "reference": "s2",
    },
    _copernicus: {
        "modalities": {
            "s1": "Kachel {tile} (geprüft)/S1A_*_{tile}_vv.tif",
            "s2": (
                "Kachel {tile} (geprüft)/R10m/{tile}_*_B02_10m.tif",
                "Kachel {tile} (geprüft)/R10m/{tile}_*_B08_10m.tif",
                "Kachel {tile} (geprüft)/R20m/{tile}_*_B8A_20m.tif",
            ),
        },
        "tiles": ["T32UQD", "T33UUT"],
        "text": ["names: [B02, B08, B8A]", "# 3 x float32, pixels of 10 m, 2 tiles; by the names of its bands"],
        "notes": [
            "TCI_10m.tif and 1 more are left out: by its name",
            "alt.tif and 1 more are left out: it",
            "B02_20m.tif and 1 more",
        ],
    },
    _safe_folders: {
        "modalities": {
            "s2": tuple(
                f"S2A_MSIL2A_*_N0510_*_{{tile}}.SAFE/GRANULE/L2A_{{tile}}_*_*/IMG_DATA/R10m/{{tile}}_*_{band}_10m.tif"
                for band in ("B02", "B08")
            )
        },
        "tiles": ["T32UQD", "T33UUT"],
    },
    _bands_without_a_sensor: {"modalities": {"flight": ("flight_nir.tif", "flight_red.tif")}},
    _bands_of_tiles: {"modalities": {"s2": ("s2/{tile}_B04.tif", "s2/{tile}_B08.tif")}, "tiles": ["a", "b"]},
    _unnamed_cube: {
        "modalities": {"hsi": "flight 7.tif"},
        "labels": "ground truth.tif",
        "recipe": ["hsi: {kind: pca, components: 30}", "name: two_branch"],
    },
    _finer_height: {
        "modalities": {"height": "lidar_height.tif", "s2": "sentinel-2.tif"},
        "reference": "s2",
        "text": ["resampling: average  # its pixels are smaller"],
    },
    _labels_on_their_own_grid: {"modalities": {"rgb": "naip.tif"}, "reference": "labels"},
    _tiles_of_labels_in_one_image: {
        "modalities": {"rgb": "naip.tif"},
        "reference": "labels",
        "labels": "labels/{tile}.tif",
        "tiles": ["a", "b"],
    },
    _other_signs_between_words: {
        "modalities": {"s2": "{tile}/s2*.tif"},
        "tiles": ["a", "b"],
        "kind": None,
        "notes": ["no labels were found"],
    },
    _a_word_of_yaml: {"modalities": {"no_image": "no.tif"}},
    _other_language: {"modalities": {"h_he_ber_grund": "Höhe über Grund.tif", "m_2023_luftbild": "2023 Luftbild.tif"}},
    _unplaced: {"modalities": {"rgb": "rgb.tif"}, "text": ["georeferenced: false"]},
    _unlabelled_zero: {"legend": ["class 1", "class 2"], "text": ["ignored: [0]  # taken as unlabelled"]},
    _litter: {
        "modalities": {"dem": "dem.tif", "s1": "s1.tif", "s2": "s2.tif"},
        "notes": [
            "broken.tif cannot be opened",
            "cube.mat is left out: its variable",
            "cube.zarr is left out: name it",
        ],
    },
    _no_labels: {"modalities": {"s2": "s2.tif"}, "notes": ["no labels were found"], "kind": None},
    _empty_border: {"text": ["nodata: 0  # no value is declared, and 0 is in every band of 31.2%"]},
    _polygons_elsewhere_in_degrees: {
        "modalities": {"s2": "images/s2.tif"},
        "polygons": ("field work/crops.geojson",),
        "legend": ["beet", "maize", "wheat"],
    },
    _keys_of_a_table: {
        "reference": "hsi",
        "attribute": "species",
        "legend": ["oak", "pine"],
        "text": [
            "join: {path: trees.csv, key: tree}  # it has the attribute of 64 shapes",
            "unlisted: unlabelled  # classes of one or two shapes, too few to train, validate and test: rare",
            "resampling: average",
        ],
        "notes": ["left out are classes of one or two shapes"],
    },
    _a_larger_survey: {
        "legend": ["maize", "wheat"],
        "text": ["unlisted: unlabelled  # classes without a shape in the images: beet"],
        "notes": ["left out are classes without a shape in the images: beet"],
    },
    _parts: {"polygons": ("train_1.gpkg", "train_2.gpkg"), "legend": ["beet", "maize", "wheat"]},
}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.__name__.strip("_"))
def test_a_folder_becomes_a_scene_that_check_passes(folder: Callable[[Path], None], tmp_path: Path) -> None:
    folder(tmp_path / "data")
    found = propose([tmp_path / "data"], tmp_path / "out")
    expected = FOLDERS[folder]
    settings = found.file.settings
    if "modalities" in expected:
        assert {name: m.path for name, m in settings.modalities.items()} == expected["modalities"]
    assert settings.reference_name == expected.get("reference", settings.reference_name)
    assert found.file.tiles == expected.get("tiles", found.file.tiles)
    if settings.labels is not None:
        assert settings.labels.path == expected.get("labels", settings.labels.path)
        assert settings.labels.polygons == expected.get("polygons", settings.labels.polygons)
        assert settings.labels.attribute == expected.get("attribute", settings.labels.attribute)
    assert (settings.split and settings.split.kind) == expected.get("kind", settings.split and settings.split.kind)
    assert [c.name for c in settings.legend] == expected.get("legend", [c.name for c in settings.legend])
    assert all(text in found.scene for text in expected.get("text", []))
    assert all(text in found.recipe for text in expected.get("recipe", []))
    assert len(found.notes) == len(expected.get("notes", []))
    assert all(any(text in note for note in found.notes) for text in expected.get("notes", []))
    scene, recipe = found.write()
    assert yaml.safe_load(recipe.read_text())["scene"] == "scene.yaml"
    assert check(scene).faults == []


def _nothing(home: Path) -> None:
    home.mkdir()
    (home / "notes.txt").write_text("x")


def _measurements_as_labels(home: Path) -> None:
    tif(home / "s2.tif", 3)
    tif(home / "mask.tif", values=np.arange(SIDE * SIDE, dtype=np.int32).reshape(1, SIDE, SIDE))


def _nothing_labelled(home: Path) -> None:
    tif(home / "s2.tif", 3), codes(home / "labels.tif", present=(255,))


def _tiles_of_other_names(home: Path) -> None:
    for n in range(2):
        tif(home / "s2" / f"a{n}.tif", 3, east=1000.0 * n), tif(home / "s1" / f"b{n}.tif", 2, east=1000.0 * n)


def _one_file_of_labels_for_tiles(home: Path) -> None:
    for n in range(2):
        tif(home / "s2" / f"a{n}.tif", 3, east=1000.0 * n)
    codes(home / "labels.tif")


def _unlike_vectors(home: Path) -> None:
    tif(home / "s2.tif", 3)
    fields(home / "fields.gpkg"), fields(home / "roads.gpkg", kind=["a", "b"] * 32)


def _raster_and_vector(home: Path) -> None:
    tif(home / "s2.tif", 3), codes(home / "lulc.tif"), fields(home / "fields.gpkg")


def _two_columns(home: Path) -> None:
    tif(home / "s2.tif", 3)
    fields(home / "fields.gpkg", crop=["a", "b"] * 32, land_cover=["c", "d"] * 32)


def _only_matlab(home: Path) -> None:
    home.mkdir()
    (home / "cube.mat").write_bytes(b"x")


def _only_numbers_of_fields(home: Path) -> None:
    tif(home / "s2.tif", 3)
    fields(home / "fields.gpkg", number=range(64))


@pytest.mark.parametrize(
    ("folder", "kind", "words"),
    [
        (_nothing, MissingFileError, "no raster is in"),
        (_only_matlab, MissingFileError, "docs/how-to/matlab.md"),
        (_measurements_as_labels, SceneError, "4095 different numbers"),
        (_nothing_labelled, SceneError, "hold 0 different numbers besides 255"),
        (_tiles_of_other_names, SceneError, "the same names of tiles"),
        (_one_file_of_labels_for_tiles, SceneError, "`s2` comes as 2 files (a0, a1, ...) and `labels` as one"),
        (_unlike_vectors, SceneError, "--labels"),
        (_raster_and_vector, SceneError, "lulc.tif or"),
        (_two_columns, SceneError, "crop (a, b, ...); land_cover (c, d, ...)"),
        (_only_numbers_of_fields, SceneError, "no column of"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_not_clear_is_said(
    folder: Callable[[Path], None], kind: type[LandfuseError], words: str, tmp_path: Path
) -> None:
    folder(tmp_path / "data")
    with pytest.raises(kind) as error:
        propose([tmp_path / "data"], tmp_path)
    assert words in str(error.value)


def test_the_column_is_named_or_asked_for(tmp_path: Path) -> None:
    _two_columns(tmp_path / "data")
    named = propose([tmp_path / "data"], tmp_path, column="land_cover")
    asked = propose([tmp_path / "data"], tmp_path, choose=lambda question, columns: columns[1])
    assert [c.name for c in named.file.settings.legend] == [c.name for c in asked.file.settings.legend] == ["c", "d"]
    with pytest.raises(SceneError, match=r"no column `Crop`[^?]*did you mean `crop`\?"):
        propose([tmp_path / "data"], tmp_path, column="Crop")


def test_nothing_is_written_over(tmp_path: Path) -> None:
    _one_of_each(tmp_path)

    def proposed() -> Proposal:
        return propose(
            [tmp_path / f"{name}.tif" for name in ("s2", "s1", "dem")], tmp_path, labels=tmp_path / "fields.gpkg"
        )

    (tmp_path / "recipe.yaml").write_text("mine")
    with pytest.raises(OutputError, match=r"recipe\.yaml is there already"):
        proposed().write()
    assert not (tmp_path / "scene.yaml").exists()
    (tmp_path / "recipe.yaml").unlink()
    proposed().write()
    proposed().write()  # the same once more is no harm: a command that goes on
