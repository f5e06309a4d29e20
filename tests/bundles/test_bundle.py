"""A bundle is self-describing (P5): it reloads bit for bit, runs no pickled code, and knows its kind of scene."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from landfuse.bundles.bundle import Bundle
from landfuse.bundles.bundle_files import load_bundle
from landfuse.bundles.description import FORMAT, Description, ModelSpec
from landfuse.bundles.settings import PredictorOptions
from landfuse.errors import BundleError, FaultsError, LandfuseError, OutputError
from landfuse.legend import LandClass, Legend
from landfuse.rasters.arrays import ArrayRaster
from landfuse.rasters.grid import Grid
from landfuse.scenes.scene import QUANTILES, Scene, SceneModality
from landfuse.simulate.scene import SimulatedRaster, simulate_flat
from landfuse.views.pixel_map import PixelMap, PixelStatistics


@pytest.fixture
def scene() -> Scene:
    return simulate_flat(20, 30, {"a": 3, "b": 2})


@pytest.fixture
def bundle(scene: Scene) -> Bundle:
    torch.manual_seed(1)
    maps = {
        "a": PixelMap(torch.rand(2, 3), torch.rand(2)),
        "b": PixelMap(torch.rand(2), torch.rand(2), clip=3),
    }
    notes = {name: scene.modalities[name].info for name in maps}
    return Bundle(ModelSpec("two_branch", {"view": 5, "width": 8}), maps, notes, scene.legend).eval()


def test_a_later_version_finds_the_same_digest(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, packed = bundle.digest, Description.packed

    def later(self: Description, shapes: Any) -> dict[str, Any]:
        words = {**packed(self, shapes), "landfuse": "99.0", "calibrated": None}
        words["modalities"] = {name: {**info, "orbit": ""} for name, info in words["modalities"].items()}
        return words

    monkeypatch.setattr(Description, "packed", later)
    assert bundle.digest == digest
    bundle.temperature = 1.4
    assert bundle.digest != digest


def logits(bundle: Bundle) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    images = {name: torch.randn(6, n.bands, 5, 5, generator=random) for name, n in bundle.inputs.items()}
    images["b"][2, 0] = float("nan")
    with torch.no_grad():
        return bundle(images)


def test_a_bundle_gives_the_same_logits_and_words(bundle: Bundle, tmp_path: Path) -> None:
    bundle.temperature = 1.7
    bundle.save(tmp_path / "bundle")
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "plain", *(tmp_path / "bundle").iterdir())}
    assert len(modes) == 1, "those of any new file"
    assert sorted(p.name for p in (tmp_path / "bundle").iterdir()) == ["model.json", "model.safetensors"]
    for path in (tmp_path / "bundle", tmp_path):
        loaded = load_bundle(path)
        assert torch.equal(logits(loaded), logits(bundle))
        assert loaded.legend == bundle.legend
        assert loaded.inputs == bundle.inputs
        assert list(loaded.maps) == ["a", "b"]
        assert loaded.spec == bundle.spec
        assert loaded.stride == 1
        assert loaded.temperature == 1.7
        assert not loaded.training
    words = json.loads((tmp_path / "bundle" / "model.json").read_text())
    assert words["tiling"] == {"view": 5, "core": 1, "stride": 1, "weights": "uniform"}
    known = {"bands": 2, "dtype": "float32", "units": "1", "zoom": 1, "pixel": "10 x 10 in WGS 84 / UTM zone 32N"}
    assert known.items() <= words["modalities"]["b"].items()
    assert words["modalities"]["b"]["metres"] == 10.0
    assert words["legend"][0]["name"] == "field 1"


def test_a_bundle_from_before_temperatures_is_read(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path)
    words = json.loads((tmp_path / "model.json").read_text())
    del words["temperature"]
    (tmp_path / "model.json").write_text(json.dumps(words))
    assert load_bundle(tmp_path).temperature == 1


def test_the_maps_come_before_the_model(bundle: Bundle) -> None:
    raw = torch.randn(1, 3, 5, 5)
    mapped = bundle.maps["a"](raw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    images = {"a": raw, "b": torch.full((1, 2, 5, 5), float("nan"))}
    with torch.no_grad():
        expected = bundle.model({"a": mapped, "b": torch.zeros(1, 2, 5, 5)})
        assert torch.equal(bundle(images), expected)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.98])
def test_a_truncated_bundle_is_reported(bundle: Bundle, tmp_path: Path, name: str, fraction: float) -> None:
    bundle.save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(fraction * len(whole))])
    with pytest.raises(BundleError, match=r"broken(.|\n)*copy it again"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_part_is_reported(bundle: Bundle, tmp_path: Path, name: str) -> None:
    bundle.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(BundleError, match=rf"holds no bundle: there is no {name}"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("place", ["nowhere", "/dev/null", "/dev/null/x"])
def test_what_is_no_bundle_is_reported(tmp_path: Path, place: str) -> None:
    with pytest.raises(BundleError):
        load_bundle(tmp_path / place)


def test_a_newer_bundle_is_reported(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path)
    words = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**words, "format": FORMAT + 1, "landfuse": "9.9"}))
    with pytest.raises(BundleError, match=rf"format {FORMAT + 1}, of landfuse 9\.9(.|\n)*update landfuse"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", {"name": "hal9000", "settings": {}}),
        ("model", {"name": "two_branch", "settings": {"view": 5, "depht": 3}}),
        ("model", {"name": "two_branch", "settings": {"view": 5, "width": 16}}),
        ("pixel_maps", {"a": [2, 3]}),
        ("pixel_maps", [1, 2]),
        ("legend", []),
        ("tiling", {}),
        ("tiling", {"stride": 7}),
        ("format", "one"),
        ("modalities", None),
    ],
)
def test_a_bundle_that_was_tampered_with_is_reported(bundle: Bundle, tmp_path: Path, key: str, value: object) -> None:
    bundle.save(tmp_path)
    words = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**words, key: value}))
    with pytest.raises(LandfuseError):
        load_bundle(tmp_path)


def test_saving_that_fails_leaves_the_old_bundle(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle.save(tmp_path)
    before = logits(load_bundle(tmp_path))
    with torch.no_grad():
        bundle.model.get_parameter("head.0.weight").add_(1)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        bundle.save(tmp_path)
    assert torch.equal(logits(load_bundle(tmp_path)), before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    with pytest.raises(OutputError, match="cannot be written"):
        bundle.save("/dev/null/x")


def test_a_scene_of_another_kind_is_reported_in_words(bundle: Bundle, scene: Scene) -> None:
    def changed(**parts: SceneModality | None) -> Scene:
        merged = {**scene.modalities, **parts}
        return replace(scene, modalities={name: part for name, part in merged.items() if part is not None})

    a = scene.modalities["a"]
    assert isinstance(a.raster, SimulatedRaster)
    bundle.description.check(scene, PredictorOptions())
    bundle.description.check(changed(c=a), PredictorOptions())
    with pytest.raises(FaultsError, match=r"trained on 3 bands of `a`, this scene has 4"):
        bundle.description.check(changed(a=replace(a, raster=replace(a.raster, bands=4))), PredictorOptions())
    with pytest.raises(FaultsError, match=r"trained on '1' as units of `a`, this scene has 'dB'"):
        bundle.description.check(changed(a=replace(a, units="dB")), PredictorOptions())
    with pytest.raises(FaultsError, match=r"trained on 1 as zoom of `a`, this scene has 2"):
        bundle.description.check(changed(a=replace(a, zoom=2)), PredictorOptions())
    with pytest.raises(FaultsError, match=r"no modality `b`(.|\n)*name it so in the scene file"):
        bundle.description.check(changed(b=None), PredictorOptions())

    class Whole(SimulatedRaster):
        @property
        def dtype(self) -> str:
            return "int16"

    raster = Whole(a.raster.grid, 3, a.raster.source, "a")
    with pytest.raises(FaultsError, match=r"trained on 'float32' as data type of `a`, this scene has 'int16'"):
        bundle.description.check(changed(a=replace(a, raster=raster)), PredictorOptions())
    with pytest.raises(FaultsError) as both:
        bundle.description.check(changed(a=replace(a, raster=raster, units="dB"), b=None), PredictorOptions())
    assert len(both.value.faults) == 3, "all in one go"


def test_a_stride_beyond_the_core_is_reported(scene: Scene) -> None:
    maps = {"a": PixelMap(torch.ones(3), torch.zeros(3))}
    notes = {"a": scene.modalities["a"].info}
    for stride in (-1, 9):
        with pytest.raises(BundleError, match="1 to 8, the model's core"):
            Bundle(ModelSpec("stacked", {"view": 8, "encoder": "tu-test_resnet"}), maps, notes, scene.legend, stride)


NAMES = ("B02", "B03", "B08")
PLACE = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_500_000.0)


def named_scene(names: tuple[str, ...], grid: Grid, metres: float = 0.0, bands: int = 3) -> Scene:
    """Band i holds i."""
    values = np.ones((bands, grid.height, grid.width), np.float32) * np.arange(bands, dtype=np.float32)[:, None, None]
    part = SceneModality(ArrayRaster(values, "CHW", grid, "s2"), names=names, metres=metres)
    return Scene("new", grid, {"s2": part}, Legend((LandClass("a", 1, "#000000"),)))


def description_of(scene: Scene) -> Description:
    inputs = {name: part.info for name, part in scene.modalities.items()}
    return Description(ModelSpec("forest"), inputs, (), scene.legend, 1, 1, 1)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (("B8", "b 3", "B_2"), [2, 1, 0]),
        (("x", "B03", "B02", "B08"), [2, 1, 3]),
        (NAMES, [0, 1, 2]),
        ((), [0, 1, 2]),
        (("s", "s", "s"), [0, 1, 2]),
    ],
)
def test_bands_are_taken_by_their_names(names: tuple[str, ...], order: list[int]) -> None:
    grid = Grid(2, 3, PLACE, "EPSG:32632")
    known = description_of(named_scene(NAMES, grid))
    scene, notes = known.check(named_scene(names, grid, bands=len(names) or 3), PredictorOptions())
    assert scene.read("s2", grid.window)[:, 1, 1].tolist() == order
    changed = order != [0, 1, 2]
    assert len(notes) == changed
    assert not changed or "in the order of the model: " in notes[0]
    again, silent = known.check(scene, PredictorOptions())
    assert not silent, "it is said once"
    assert again.read("s2", grid.window)[:, 0, 0].tolist() == order


@pytest.mark.parametrize("names", [("B02", "B03", "B04"), ("red", "green", "blue")])
def test_bands_of_other_names_are_refused(names: tuple[str, ...]) -> None:
    grid = Grid(2, 3, PLACE, "EPSG:32632")
    with pytest.raises(FaultsError, match=f"`s2` has the bands {', '.join(names)}(.|\n)*the model: B02, B03, B08"):
        description_of(named_scene(NAMES, grid)).check(named_scene(names, grid), PredictorOptions())


def test_the_name_of_a_single_band_is_only_said() -> None:
    grid = Grid(2, 3, PLACE, "EPSG:32632")
    known = description_of(named_scene(("VV",), grid, bands=1))
    _, notes = known.check(named_scene(("VH",), grid, bands=1), PredictorOptions())
    assert notes == ["the band of `s2` is VH, and that of the model VV"]


FOOT = 0.3048006096012192
SIZES = {
    "metres": (PLACE, "EPSG:32632"),
    "feet": ((10 / FOOT, 0.0, 1_640_416.0, 0.0, -10 / FOOT, 0.0), "+proj=tmerc +lon_0=9 +x_0=500000 +units=us-ft"),
    "another zone": (PLACE, "EPSG:32635"),
    "half a percent": ((10.05, 0.0, 500_000.0, 0.0, -10.05, 5_500_000.0), "EPSG:32632"),
    "no CRS": ((1.0, 0.0, 0.0, 0.0, 1.0, 0.0), None),
}
OTHER_SIZES = {
    "20 m": ((20.0, 0.0, 500_000.0, 0.0, -20.0, 5_500_000.0), "EPSG:32632", "20 m"),
    "2 percent": ((10.2, 0.0, 500_000.0, 0.0, -10.2, 5_500_000.0), "EPSG:32632", r"10\.2 m"),
    "Web Mercator": ((10.0, 0.0, 1_000_000.0, 0.0, -10.0, 6_400_000.0), "EPSG:3857", r"6\.467 m"),
    "degrees": ((1e-3, 0.0, 9.0, 0.0, -1e-3, 50.0), "EPSG:4326", r"89\.\d+ m"),
}


@pytest.mark.parametrize("kind", SIZES)
def test_pixels_of_the_same_size_on_the_ground_pass(kind: str) -> None:
    known = description_of(named_scene((), Grid(2, 3, PLACE, "EPSG:32632")))
    known.check(named_scene((), Grid(2, 3, *SIZES[kind])), PredictorOptions())


@pytest.mark.parametrize("kind", OTHER_SIZES)
def test_pixels_of_another_size_are_refused_unless_allowed(kind: str) -> None:
    known = description_of(named_scene((), Grid(2, 3, PLACE, "EPSG:32632")))
    transform, crs, found = OTHER_SIZES[kind]
    scene = named_scene((), Grid(2, 3, transform, crs))
    with pytest.raises(FaultsError, match=rf"pixels measure {found}(.|\n)*trained on 10 m(.|\n)*--allow pixel-size"):
        known.check(scene, PredictorOptions())
    known.check(scene, PredictorOptions(allow=("pixel-size",)))


def test_a_size_that_only_the_scene_file_states_counts() -> None:
    known = description_of(named_scene((), Grid(2, 3), metres=2.5))
    known.check(named_scene((), Grid(2, 3), metres=2.51), PredictorOptions())
    with pytest.raises(FaultsError, match=r"measure 1 m"):
        known.check(named_scene((), Grid(2, 3), metres=1), PredictorOptions())


def test_grids_of_one_size_in_degrees_may_lie_at_other_latitudes() -> None:
    def at(latitude: float) -> Scene:
        return named_scene((), Grid(2, 3, (1e-4, 0.0, 9.0, 0.0, -1e-4, latitude), "EPSG:4326"))

    description_of(at(50)).check(at(45), PredictorOptions())
    with pytest.raises(FaultsError, match="pixels measure"):
        description_of(at(50)).check(at(0), PredictorOptions())


def legend_of() -> Legend:
    return Legend((LandClass("a", 1, "#000000"),))


def trained_on(values: np.ndarray) -> Description:
    """A model that knows the values of bands, (H, W) of one or (C, H, W)."""
    bands = np.atleast_3d(values.T).T
    statistics = PixelStatistics(len(bands))
    statistics.update(torch.from_numpy(bands.reshape(len(bands), -1).T.astype(np.float32)))
    grid, names = Grid(1, 1, PLACE, "EPSG:32632"), ("B4", "B8")[: len(bands)]
    (info,) = (part.info for part in named_scene(names, grid, bands=len(bands)).modalities.values())
    return Description(ModelSpec("forest"), {"s2": replace(info, values=statistics.values)}, (), legend_of(), 1, 1, 1)


def scene_of(values: np.ndarray) -> Scene:
    grid, axes = Grid(*values.shape[-2:], PLACE, "EPSG:32632"), "CHW"[-values.ndim :]
    raster = ArrayRaster(values.astype(np.float32), axes, grid, "s2")
    return Scene("new", grid, {"s2": SceneModality(raster, names=("B4", "B8")[: raster.bands])}, legend_of())


def reflectance(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.1, 0.5, (150, 200)).astype(np.float32)


def test_the_quantiles_of_training_are_kept_in_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    values = torch.rand(90_000, 2) * torch.tensor([1.0, 100.0])
    statistics = PixelStatistics(2)
    for part in values.split(7000):
        statistics.update(part)
    found = np.array(statistics.values)
    assert found[:, [0, -1]] == pytest.approx(np.quantile(values, (0, 1), axis=0).T), "exact"
    scaled = np.quantile(values / torch.tensor([1, 100]), QUANTILES, axis=0).T
    assert found / [[1], [100]] == pytest.approx(scaled, abs=0.02)
    bundle.inputs["b"] = replace(bundle.inputs["b"], values=statistics.values)
    bundle.save(tmp_path)
    assert load_bundle(tmp_path).inputs["b"].values == statistics.values


def test_values_like_those_of_training_pass_in_silence() -> None:
    known = trained_on(reflectance())
    assert known.check_values(scene_of(reflectance(1)), PredictorOptions()) == []
    assert known.check_values(scene_of(0.3 + reflectance(1) / 1e4), PredictorOptions()) == []  # as of water alone
    holed = reflectance(1)
    holed[20:] = np.nan
    assert known.check_values(scene_of(holed), PredictorOptions()) == []
    holed[:] = np.nan
    assert known.check_values(scene_of(holed), PredictorOptions()) == []
    old = replace(known, inputs={"s2": replace(known.inputs["s2"], values=())})
    assert old.check_values(scene_of(9999 * reflectance()), PredictorOptions()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: np.where(np.arange(200) < 100, x, x + 1), r"band 1 \(B4\) 50% \(trained on 0\.1 to 0\.5\)"),
        (lambda x: x + 0.2, r"band 1 \(B4\) (49|50|51)%"),
        (lambda x: 0.499 + x / 1e4, r"band 1 \(B4\) 0\.499 to 0\.499\d* only"),
        (lambda x: 0.2 * x, r"band 1 \(B4\) 100%"),
    ],
)
def test_values_outside_those_of_training_are_said(change: Callable[[Any], Any], words: str) -> None:
    values = change(reflectance(1)).astype(np.float32)
    (note,) = trained_on(reflectance()).check_values(scene_of(values), PredictorOptions())
    assert re.search(words, note), note


@pytest.mark.parametrize("change", [lambda x: 1e4 * x, lambda x: x - 300, lambda x: 10 * np.log10(x)])
def test_values_of_another_scale_are_refused_unless_allowed(change: Callable[[Any], Any]) -> None:
    known, scene = trained_on(reflectance()), scene_of(change(reflectance(1)))
    with pytest.raises(BundleError, match=r"`s2` of the scene `new` is in another scale: band 1 \(B4\) has the median"):
        known.check_values(scene, PredictorOptions())
    (note,) = known.check_values(scene, PredictorOptions(allow=("values",)))
    assert "100%" in note
    assert not known.check_values(scene, PredictorOptions(withheld=("s2",)))


def test_bands_that_are_all_divided_by_a_scale_are_refused() -> None:
    numbers = np.stack([300 + 3000 * reflectance(), 300 + 4000 * reflectance()])
    known, divided = trained_on(numbers), scene_of(numbers / 1e4)
    with pytest.raises(BundleError, match=r"is in another scale: band 1(.|\n)*200 times smaller in all bands"):
        known.check_values(divided, PredictorOptions())
    assert len(known.check_values(divided, PredictorOptions(allow=("values",)))) == 1
    assert known.check_values(scene_of(numbers), PredictorOptions()) == []
    one_is_dark = scene_of(np.stack([numbers[0], numbers[1] / 1e4]))
    assert len(known.check_values(one_is_dark, PredictorOptions())) == 1
    assert len(known.check_values(scene_of(0 * numbers), PredictorOptions())) == 1, "there is nothing in it"
    assert len(trained_on(numbers[0]).check_values(scene_of(numbers[0] / 1e4), PredictorOptions())) == 1, (
        "as of heights"
    )


def changed_file(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    words = json.loads((folder / "model.json").read_text())
    change(words)
    (folder / "model.json").write_text(json.dumps(words))


@pytest.mark.parametrize(
    "change",
    [
        lambda words: words.update(temperature=0),
        lambda words: words.update(temperature=float("nan")),
        lambda words: words.update(temperature="1.0"),
        lambda words: words["legend"][0].update(code=1.5),
        lambda words: words["legend"][0].update(code=True),
        lambda words: words["legend"][0].update(name=7),
        lambda words: words["legend"][0].update(code=words["legend"][1]["code"]),
        lambda words: words["legend"][0].update(scored="yes"),
        lambda words: words["modalities"]["a"].update(bands=4),
        lambda words: words["modalities"]["a"].update(zoom=0),
        lambda words: words["modalities"].pop("a"),
        lambda words: words["pixel_maps"].update(a=[]),
        lambda words: words.update(droppable=["x"]),
        lambda words: words["tiling"].update(stride="1"),
        lambda words: words.update(weights="0" * 64),
    ],
)
def test_wrong_words_in_a_bundle_are_reported(
    bundle: Bundle, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    bundle.save(tmp_path)
    changed_file(tmp_path, change)
    with pytest.raises(BundleError, match=r"is broken(.|\n)*copy it again"):
        load_bundle(tmp_path)


def test_a_flipped_bit_of_the_weights_is_reported(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path)
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-3] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(BundleError, match=r"model\.safetensors is not the file"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("name", ["model", "pixel_maps"])
def test_weights_that_are_no_numbers_are_reported(bundle: Bundle, tmp_path: Path, name: str) -> None:
    with torch.no_grad():
        part = next(bundle.model.parameters()) if name == "model" else bundle.maps["a"].weight
        part[0] = float("nan")
    bundle.save(tmp_path)
    with pytest.raises(BundleError, match=rf"weights {name}\.\S+ hold numbers that are not finite"):
        load_bundle(tmp_path)


def test_an_earlier_bundle_names_the_checks_that_are_not_made(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle.save(tmp_path)
    load_bundle(tmp_path)
    assert not caplog.text
    changed_file(tmp_path, lambda words: words.pop("weights"))
    assert load_bundle(tmp_path).inputs["a"].metres == 0, "it was in units of the CRS"
    for part in ("weights are damaged", "names of bands", "values", "pixel size"):
        assert part in caplog.text
