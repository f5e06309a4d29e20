"""ONNX files: logits and maps are those of the bundle, for every model; they run without torch; and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from stac_model.schema import MLModelProperties
from torch import Tensor

from landfuse.bundles.bundle import Bundle
from landfuse.bundles.bundle_files import load_bundle
from landfuse.bundles.description import ModelSpec
from landfuse.bundles.onnx_model import OnnxModel
from landfuse.bundles.predictor import Model
from landfuse.bundles.settings import PredictorOptions
from landfuse.bundles.table_bundle import describe_model, load_model
from landfuse.diffusion.features import DiffusionFeatures
from landfuse.diffusion.settings import FeatureSettings
from landfuse.diffusion.trained_denoiser import TrainedDenoiser, own_maps
from landfuse.errors import BundleError, FaultsError, LandfuseError, ModelError, OutputError, SettingsError
from landfuse.interop import onnx_export, onnx_networks
from landfuse.interop.export import export
from landfuse.layers.state_space import SS2D
from landfuse.layers.token_mixers import BidirectionalScan
from landfuse.legend import UNLABELLED
from landfuse.mapping.engine import map_array, map_blocks
from landfuse.mapping.predict import predict
from landfuse.models import MODELS
from landfuse.rasters.arrays import ArrayRaster
from landfuse.rasters.grid import Grid
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.simulate.scene import simulate_flat
from landfuse.views.pixel_map import PixelMap

SMALL: dict[str, dict[str, Any]] = {
    "bdgf": {"view": 5, "core": 3, "width": 16, "embedding": 16, "states": 2, "heads": 2, "groups": 4},
    "boosted": {"rounds": 4, "context": [5]},
    "forest": {"trees": 7, "depth": 9, "context": [3, 7]},
    "logistic": {"steps": 20},
    "mfnet": {
        "view": 32, "core": 16, "weights": "random", "decoder_features": 8,
        "encoder_options": {"embed_dim": 16, "depth": 2, "num_heads": 2, "window_size": 3, "global_attn_indexes": (1,)},
    },
    "refnet": {"view": 32, "core": 16, "encoder": "test_resnet", "width": 4, "fusion": "concatenate", "enhance": False},
    "stacked": {"view": 32, "core": 16, "architecture": "FPN", "encoder": "tu-test_resnet"},
    "temporal": {"view": 5, "core": 3, "width": 16, "heads": 4},
    "two_branch": {"view": 5, "width": 8},
}  # fmt: skip
TABLES = ("boosted", "forest", "logistic")


@cache
def scene(zoom: int = 1) -> Scene:
    """28 x 33 px of two modalities, the second of two bands perhaps finer than the first, with a hole."""
    flat = simulate_flat(28, 33, {"a": 3})
    values = np.random.default_rng(0).normal(size=(2, 28 * zoom, 33 * zoom)).astype(np.float32)
    values[:, 4:9, 5:11] = np.nan
    values[0, 20] = np.nan
    side, (x, y) = 10.0 / zoom, (flat.grid.transform[2], flat.grid.transform[5])
    grid = Grid(28 * zoom, 33 * zoom, (side, 0.0, x, 0.0, -side, y), flat.grid.crs)
    part = SceneModality(ArrayRaster(values, "CHW", grid, "b"), zoom=zoom)
    classes = flat.read("a", flat.grid.window).argmax(axis=0).astype(np.uint8)
    return Scene("small", flat.grid, {**flat.modalities, "b": part}, flat.legend, lambda: classes)


@cache
def bundle_of(name: str) -> Bundle:
    """Weights as they begin, or learnt from all pixels; `b` may be missing where the model can learn that."""
    torch.manual_seed(0)
    shown = scene(2 if name in (*TABLES, "two_branch") else 1)
    infos = {one: part.info for one, part in shown.modalities.items()}
    # As PCA and as standardised bands.
    maps = {"a": PixelMap(torch.rand(4, 3), torch.rand(4), clip=0.9), "b": PixelMap(torch.rand(2), torch.rand(2))}
    droppable = () if name in ("forest", "logistic") else ("b",)
    made = Bundle(ModelSpec(name, SMALL[name]), maps, infos, shown.legend, droppable=droppable)
    if name in TABLES:
        from landfuse.views.mapped_pixels import read_mapped_pixels

        window, missing = shown.grid.window.padded(made.model.halo), made.model.marks_missing
        pixels = read_mapped_pixels(shown, window, maps, {"b": np.nan}, marks_missing=missing)
        size = {one: table.T.reshape(1, -1, window.height * z, window.width * z)
                for (one, table), z in zip(pixels.tables.items(), pixels.zooms.values(), strict=True)}  # fmt: skip
        made.model.fit([(size, torch.from_numpy(shown.labels)[None])], seed=0)
    if name == "two_branch":  # else logits hardly differ from pixel to pixel
        for parameter in made.model.parameters():
            parameter.data *= 3
    if name == "mfnet":
        made.model.get_submodule("network.decoder.head.2").weight.data *= 30
    for placeholder in getattr(made.model, "placeholders", {}).values():
        torch.nn.init.normal_(placeholder)
    made.temperature, made.attached, made.notes = 1.3, {"sets.scores": np.arange(3.0)}, {"sets": {"levels": 2}}
    return made.eval()


@pytest.fixture(scope="session")
def file_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of a model, written once."""
    folder = tmp_path_factory.mktemp("onnx")

    @cache
    def written(name: str) -> Path:
        onnx_export.write_onnx(bundle_of(name), folder / f"{name}.onnx", licence="CC-BY-4.0")
        return folder / f"{name}.onnx"

    return written


def mapped(model: Model, shown: Scene, **options: Any) -> np.ndarray:
    """The logits of a whole map, 0 where there is no class."""
    found = np.zeros((len(shown.legend), shown.grid.height, shown.grid.width), np.float32)
    for part in map_blocks(model, shown, **options):
        found[:, *part.window.within(shown.grid.window)] = np.where(part.classes == UNLABELLED, 0, part.logits)
    return found


@pytest.mark.parametrize(
    "name",
    # Torch's exporter takes 5 to 30 s for each of the others.
    [pytest.param(one, marks=() if one in ("two_branch", "temporal", *TABLES) else pytest.mark.slow) for one in MODELS],
)
def test_a_file_maps_as_its_bundle(name: str, file_of: Callable[[str], Path]) -> None:
    bundle, file = bundle_of(name), load_model(file_of(name))
    shown = scene(bundle.inputs["b"].zoom)
    raw = {one: image.numpy() for one, image in onnx_export.sample(bundle).items()}
    raw = {one: np.concatenate([image, image[:2]]) for one, image in raw.items()}  # another batch than in export
    outputs = onnxruntime.InferenceSession(str(file.path)).run(None, raw)
    with torch.no_grad():
        images = {one: torch.from_numpy(image) for one, image in raw.items()}
        logits, layers = bundle.model.map_layers(bundle.mapped(images))
    for found, wanted in zip(outputs, (logits, *layers.values()), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert file.digest == bundle.digest
    said = [json.loads(json.dumps(one.description.packed({}))) for one in (file, bundle)]
    assert said[0] == said[1]
    np.testing.assert_array_equal(file.description.attached["sets.scores"], [0, 1, 2])
    known = describe_model(file_of(name))
    assert {one: info["bands"] for one, info in known["modalities"].items()} == {
        one: info.bands for one, info in bundle.description.modalities.items()
    }
    assert not known["needs_torch"]
    for options in ({}, {"mean_for": ("b",)}):
        wanted, found = mapped(bundle, shown, **options), mapped(file, shown, **options)
        assert wanted[:, 3:].std(axis=(1, 2)).max() > 1e-3
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        assert (found.argmax(axis=0) == wanted.argmax(axis=0)).mean() >= 0.9999
        np.testing.assert_array_equal(mapped(file, shown, block=13, **options), found)


@pytest.mark.slow
def test_layers_of_a_file_are_those_of_the_bundle(file_of: Callable[[str], Path], tmp_path: Path) -> None:
    from landfuse.scenes.land_cover_map import beside, open_map

    layers = []
    for number, model in enumerate((bundle_of("bdgf"), load_model(file_of("bdgf")))):
        path = predict(model, scene(), tmp_path / f"{number}.tif", layers=("disagreement",), confidence=True)
        layers.append([beside(path, one).read_bytes() for one in ("disagreement", "confidence")])
        assert open_map(path).classes.shape == (28, 33)
    assert layers[0] == layers[1]


class _Alone(torch.nn.Module):
    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *images: Tensor) -> tuple[Tensor, ...]:
        return (self.layer(images[0]),)


@pytest.mark.parametrize(("layer", "shape"), [(SS2D(4, states=2), (6, 6, 4)), (BidirectionalScan(4, 3), (7, 4))])
def test_scans_are_loops_of_a_graph(layer: torch.nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    alone = _Alone(layer.eval())
    graph = onnx_networks.graph_of(alone, [torch.randn(2, *shape)], ["x"], ["y"])
    assert {one.op_type for one in graph.graph.node} >= {"Scan"}
    assert {one.domain for one in graph.opset_import} == {""}
    x = torch.randn(5, *shape)
    found = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"x": x.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, layer(x), atol=1e-5)


class _OfItsNumbers(torch.nn.Module):
    def forward(self, *images: Tensor) -> tuple[Tensor, ...]:
        return (images[0] if images[0].sum() > 0 else -images[0],)


def test_what_torch_cannot_export_is_one_message() -> None:
    with pytest.raises(ModelError, match=r"cannot export this network(.|\n)*torch 2.13 or newer"):
        onnx_networks.graph_of(_OfItsNumbers(), [torch.randn(2, 3)], ["x"], ["y"])


@pytest.mark.slow
def test_diffusion_features_are_computed_by_a_second_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANDFUSE_CACHE", str(tmp_path / "cache"))
    shown = scene(2)
    own = own_maps([shown], [np.ones((28, 33), bool)], ("a", "b"))
    torch.manual_seed(0)
    denoiser = TrainedDenoiser.untrained(own, {"a": 1, "b": 2}, 8).eval()
    for parameter in denoiser.network.parameters():  # half of it begins at zero
        parameter.data += 0.1 * torch.randn(parameter.shape)
    settings = FeatureSettings(timesteps=(50, 300), levels=(1, 2), tile=16, overlap=8)
    features = DiffusionFeatures(denoiser, settings)
    guided = shown.with_modalities(features.of(shown))
    infos = {name: part.info for name, part in guided.modalities.items()}
    maps = {name: PixelMap(torch.ones(info.bands), torch.zeros(info.bands)) for name, info in infos.items()}
    made = Bundle(
        ModelSpec("logistic", {"features": "diffusion", "steps": 20}), maps, infos, shown.legend, features=features
    )
    images = {name: torch.from_numpy(guided.read(name, guided.grid.window)).nan_to_num()[None] for name in infos}
    made.model.fit([(images, torch.from_numpy(shown.labels)[None])], seed=0)
    onnx_export.write_onnx(made.eval(), tmp_path / "model.onnx")
    file = load_model(tmp_path / "model.onnx")
    completed = file.predictor(PredictorOptions()).complete(shown)
    for name in settings.names:
        wanted, found = (one.read(name, shown.grid.window) for one in (guided, completed))
        assert np.isfinite(wanted).any()
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3)
    wanted, found = mapped(made, shown), mapped(file, shown)
    np.testing.assert_allclose(found, wanted, atol=1e-2)
    assert (found.argmax(axis=0) == wanted.argmax(axis=0)).mean() > 0.998
    np.testing.assert_array_equal(mapped(file, shown, block=13), found)


def test_properties_say_what_the_file_takes(file_of: Callable[[str], Path]) -> None:
    model = onnx.load(file_of("two_branch"))
    onnx.checker.check_model(model, full_check=True)
    words = {one.key: one.value for one in model.metadata_props}
    known = json.loads(words["landfuse"])
    assert known["licence"] == "CC-BY-4.0"
    assert [one["name"] for one in known["legend"]] == scene().legend.names
    assert known["tiling"] == {"view": 5, "core": 1, "stride": 1, "weights": "uniform"}
    assert list(known["modalities"]) == [one.name for one in model.graph.input] == ["a", "b"]
    fields = json.loads(words["mlm"])
    for one in fields["mlm:output"][0]["classification:classes"]:
        del one["title"]  # of the classification extension 2.0, which stac-model does not know
    MLModelProperties.model_validate({one.removeprefix("mlm:"): value for one, value in fields.items()})
    assert b"/" + b"site-packages" not in model.SerializeToString()


def test_a_program_of_torch_export_has_the_bundles_logits(tmp_path: Path) -> None:
    bundle = bundle_of("two_branch")
    onnx_export.write_pt2(bundle, tmp_path / "model.pt2")
    words = {"landfuse.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=words)
    images = onnx_export.sample(bundle)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(*images.values())[0], bundle(images))
    assert json.loads(words["landfuse.json"])["model"]["name"] == "two_branch"
    source = str(Path(onnx_networks.__file__).parent).encode()
    with ZipFile(tmp_path / "model.pt2") as parts:
        assert not any(source in parts.read(name) for name in parts.namelist()), "it names folders of this machine"
    with pytest.raises(ModelError, match="no program of torch"):
        onnx_export.write_pt2(bundle_of("forest"), tmp_path / "forest.pt2")


WITHOUT_TORCH = """
import sys


class Missing:
    @staticmethod
    def find_spec(name, path, target=None):
        if name.split(".")[0] in ("torch", "sklearn", "lightning", "timm", "onnx", "onnxscript"):
            raise ModuleNotFoundError(name, name=name)


sys.meta_path.insert(0, Missing)
import landfuse as lf
from landfuse.cli import main
classifier = lf.load(sys.argv[2])
codes = classifier.predict(lf.open_scene(sys.argv[3]), progress=False)
try:
    main()
finally:
    assert (lf.open_map(sys.argv[5]).legend.to_codes(lf.open_map(sys.argv[5]).classes) == codes).all()
"""


@pytest.fixture(scope="module")
def network(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a small network on the scene in `place`."""
    import yaml

    from landfuse.training.recipe import read_recipe
    from landfuse.training.train import train

    folder = tmp_path_factory.mktemp("network")
    recipe = {
        "scene": str(place / "scene.yaml"), "model": {"name": "two_branch", "view": 3, "width": 4},
        "samples": {"windows": 64, "batch": 32}, "training": {"epochs": 1, "precision": "float32"},
        "run": str(folder / "run"),
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train(read_recipe(folder / "recipe.yaml"), progress=False)
    return folder / "run"


def test_a_network_maps_where_torch_is_not_installed(
    network: Path, place: Path, tmp_path: Path, landfuse: Callable[..., Any]
) -> None:
    from landfuse.scenes.scene_file import open_scene

    ended = landfuse("export", network, "--onnx", tmp_path / "model.onnx", "-q")
    assert ended.code == 0, ended.err
    assert f"file: {tmp_path / 'model.onnx'}" in ended.out
    again = landfuse("export", network, "--onnx", tmp_path / "model.onnx", "-q")
    assert again.code == 0, "it is landfuse's own, and replaced"
    words = ["predict", tmp_path / "model.onnx", place / "scene.yaml", "-o", tmp_path / "map.tif", "--confidence"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    wanted = map_array(load_bundle(network), open_scene(place))
    found = map_array(load_model(tmp_path / "model.onnx"), open_scene(place))
    assert (found == wanted).mean() >= 0.9999


def _changed(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    model = onnx.load_from_string(data)
    words = next(one for one in model.metadata_props if one.key == "landfuse")
    values = json.loads(words.value)
    change(values)
    words.value = json.dumps(values)
    return model.SerializeToString()


def _without_properties(data: bytes) -> bytes:
    model = onnx.load_from_string(data)
    del model.metadata_props[:]
    return model.SerializeToString()


def _with_operator(runtime: str) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        model = onnx.load_from_string(data)
        model.graph.node[0].op_type = "OfTheFuture"
        return _changed(model.SerializeToString(), lambda known: known["onnx"].update(runtime=runtime))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-9], "is no ONNX file, or not whole: its end is missing"),
        (lambda data: data[: len(data) // 2], "is no ONNX file, or not whole"),
        (lambda data: b"", "cannot be read|is no ONNX file"),
        (lambda data: b"scene: scene.yaml\n", "is no ONNX file"),
        (_without_properties, "it has no property `landfuse`"),
        (lambda data: _changed(data, lambda known: known.update(format=99)), "has format 99"),
        (lambda data: _changed(data, lambda known: known["onnx"].update(format=99)), "version 99 of the ONNX files"),
        (lambda data: _changed(data, lambda known: known.pop("legend")), "is broken: legend"),
        (_with_operator("999.1.0"), r"cannot run .*OfTheFuture(.|\n)*version 999.1.0 or newer"),
        (_with_operator("1.0.0"), "is broken: .*OfTheFuture"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_words(
    change: Callable[[bytes], bytes], message: str, file_of: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "bad.onnx").write_bytes(change(file_of("two_branch").read_bytes()))
    with pytest.raises(LandfuseError, match=message) as raised:
        map_array(load_model(tmp_path / "bad.onnx"), scene(2))
    assert isinstance(raised.value, BundleError)
    assert raised.value.do


def test_a_graph_that_was_changed_is_another_model_and_said(
    file_of: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = bytearray(file_of("logistic").read_bytes())
    weights = bundle_of("logistic").model.tables.weight.T.tobytes()  # type: ignore[union-attr]
    data[data.index(weights) + 2] ^= 1
    (tmp_path / "changed.onnx").write_bytes(data)
    model = load_model(tmp_path / "changed.onnx")
    assert model.digest != bundle_of("logistic").digest
    assert "changed.onnx was changed after landfuse wrote it" in caplog.text
    map_array(model, scene(2))


def test_scenes_and_options_that_do_not_fit_are_refused(file_of: Callable[[str], Path], tmp_path: Path) -> None:
    model = load_model(file_of("two_branch"))
    assert isinstance(model, OnnxModel)
    shown = scene(2)
    with pytest.raises(FaultsError, match="no modality `a`"):
        map_array(model, Scene("one", shown.grid, {"b": shown.modalities["b"]}, shown.legend))
    other = simulate_flat(28, 33, {"a": 2}).modalities["a"]
    with pytest.raises(FaultsError, match="3 bands of `a`, this scene has 2"):
        map_array(model, Scene("other", shown.grid, {**shown.modalities, "a": other}, shown.legend))
    for options in ({"precision": "bfloat16"}, {"device": "cuda"}):
        with pytest.raises(SettingsError, match="float32 on the CPU"):
            model.predictor(PredictorOptions(**options))
    with pytest.raises(SettingsError, match="no layer disagreement"):
        model.predictor(PredictorOptions(layers=("disagreement",)))
    # ONNX Runtime 1.32 took 1.7 times a file of 256 MB of matrices, and 2.2 times one of convolutions.
    assert model.predictor().nbytes > 2.2 * model.path.stat().st_size
    model.save(tmp_path / "copy")
    assert load_model(tmp_path / "copy").digest == model.digest


def test_nothing_is_written_over_other_files_or_of_other_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.onnx").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"mine\.onnx"):
        onnx_export.write_onnx(bundle_of("logistic"), tmp_path / "mine.onnx")
    assert (tmp_path / "mine.onnx").read_bytes() == b"mine"
    monkeypatch.setattr(onnx_export, "difference", lambda *_: 0.5)
    with pytest.raises(ModelError, match=r"differ by 0\.5"):
        onnx_export.write_onnx(bundle_of("logistic"), tmp_path / "new.onnx")
    assert not (tmp_path / "new.onnx").exists()
    bundle_of("logistic").save(tmp_path / "bundle")
    for options in ({"onnx": tmp_path / "bundle" / "model.json"}, {"pt2": tmp_path / "new.onnx"}):
        with pytest.raises(SettingsError, match="a file is to be named"):
            export(tmp_path / "bundle", **options)
    with pytest.raises(ModelError, match="no program of torch"):
        export(tmp_path / "bundle", onnx=tmp_path / "new.onnx", pt2=tmp_path / "new.pt2")
    assert not (tmp_path / "new.onnx").exists()
    with pytest.raises(SettingsError, match="nothing is to be written"):
        export(tmp_path / "bundle")
