"""What an earlier version wrote still loads: bundles, runs, recipes, scene files, maps; see data/old/README.md."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import safetensors.torch
import torch

import landfuse as lf
from landfuse.bundles.table_bundle import describe_model

OLD = Path(__file__).resolve().parent / "data" / "old"
EXPECTED: dict[str, dict[str, Any]] = json.loads((OLD / "expected.json").read_text(encoding="utf-8"))
RUNS = ("runs/two_branch", "runs/dropout", "runs/bdgf", "runs/forest/seed-0", "runs/forest/seed-1")
SCALES = {"optical": (0.2, 0.1), "sar": (-10.0, 4.0)}

each_bundle = pytest.mark.parametrize("name", list(EXPECTED))


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the old files as they were made: the bundles unpacked, the scenes of the runs by absolute paths."""
    folder = tmp_path_factory.mktemp("old") / "old"
    shutil.copytree(OLD, folder)
    for packed in (folder / "bundles").glob("*.zip"):
        with zipfile.ZipFile(packed) as file:
            file.extractall(folder / "bundles")
    for path in folder.rglob("recipe.json"):  # a run names its scene by an absolute path
        recipe = json.loads(path.read_text(encoding="utf-8"))
        recipe["scene"] = str((path.parent / recipe["scene"]).resolve())
        path.write_text(json.dumps(recipe), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No features are kept where the user's are."""
    monkeypatch.setenv("LANDFUSE_CACHE", str(tmp_path_factory.getbasetemp() / "old-cache"))


def description(folder: Path) -> dict[str, Any]:
    inside = folder if (folder / "model.json").exists() else folder / "bundle"
    found: dict[str, Any] = json.loads((inside / "model.json").read_text(encoding="utf-8"))
    return found


def batch(bundle: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Raw images; the same as in `data/old/make.py`."""
    side = bundle["tiling"]["view"]
    images = {}
    for number, (name, note) in enumerate(bundle["modalities"].items()):
        mean, spread = SCALES.get(name, (0.0, 1.0))
        values = np.random.default_rng(number).standard_normal((2, note["bands"], side, side))
        images[name] = torch.from_numpy((mean + spread * values).astype(np.float32))
    images["sar"][0, :, :2, :2] = float("nan")
    return images


def codes(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        found: np.ndarray = file.read(1)
        return found


def test_the_files_are_small_and_of_all_models() -> None:
    assert sum(path.stat().st_size for path in OLD.rglob("*") if path.is_file()) <= 2_000_000
    found = [description(OLD / run) for run in RUNS]
    assert {one["format"] for one in found} == {1, 2}
    assert set(EXPECTED) - {"dropout"} <= set(lf.MODELS), "later models have none"


@each_bundle
def test_a_bundle_gives_the_same_logits(old: Path, name: str) -> None:
    known = EXPECTED[name]
    classifier = lf.load_bundle(old / known["bundle"])
    with torch.no_grad():
        logits = classifier(batch(description(old / known["bundle"])))
    expected = torch.tensor(known["logits"]).reshape(known["shape"])
    assert logits.shape == expected.shape
    # Relative to the largest, since float32 cannot hold more.
    assert float((logits - expected).abs().max()) <= 1e-4 * max(1.0, float(expected.abs().max()))
    sure = expected.topk(2, dim=1).values.diff(dim=1).abs()[:, 0] > 1e-3
    assert torch.equal(logits.argmax(dim=1)[sure], expected.argmax(dim=1)[sure])
    assert sure.float().mean() > 0.9
    said, right = describe_model(old / known["bundle"]), classifier.description
    assert list(said["modalities"]) == list(right.modalities)
    assert [one for one, info in said["modalities"].items() if not info["required"]] == list(right.droppable)
    assert [one["name"] for one in said["classes"]] == right.legend.names


@each_bundle
def test_the_state_of_a_bundle_loads_into_the_network_alone(old: Path, name: str) -> None:
    about, folder = description(old / EXPECTED[name]["bundle"]), old / EXPECTED[name]["bundle"]
    inside = folder if (folder / "model.json").exists() else folder / "bundle"
    kind = lf.MODELS[about["model"]["name"]]
    settings = {key: value for key, value in about["model"]["settings"].items() if key not in kind.Settings.retired}
    settings.pop("mutual", None)  # concerned training only
    modalities = {
        key: lf.Modality(shape[0], about["modalities"][key]["zoom"]) for key, shape in about["pixel_maps"].items()
    }
    net: torch.nn.Module = kind(modalities, len(about["legend"]), **settings)  # type: ignore[call-arg]
    tensors = safetensors.torch.load_file(inside / "model.safetensors")
    prefix = "model.network." if about.get("droppable") else "model."
    net.load_state_dict({key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)})


@each_bundle
def test_a_bundle_gives_the_same_map(old: Path, name: str, tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    bundle, scene = old / EXPECTED[name]["bundle"], old / "scene" / "scene.yaml"
    result = landfuse("predict", bundle, scene, "-o", tmp_path / "map.tif", "--block", 24, "--quiet")
    assert result.code == 0, result.err
    now, before = codes(tmp_path / "map.tif"), codes(old / "maps" / f"{name}.tif")
    assert (now == before).mean() >= 0.999
    assert len(np.unique(before[before != 255])) > 1, "a map of one class would show little"


@pytest.mark.parametrize("name", sorted(path.stem for path in (OLD / "maps").glob("*.tif")))
def test_a_map_can_be_scored(old: Path, name: str, tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    words = ("evaluate", old / "maps" / f"{name}.tif", old / "scene" / "scene.yaml", "-o", tmp_path)
    split = ("--split", old / "runs" / "two_branch" / "split") if name == "two_branch" else ()
    result = landfuse(*words, *split)
    assert result.code == 0, result.err
    run = old / EXPECTED[name]["bundle"] / "scores.json"
    if run.exists():
        scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["scores"]
        known = json.loads(run.read_text(encoding="utf-8"))["test"]
        assert scores["OA"] == pytest.approx(known["OA"], abs=1e-9)
        assert scores["mIoU"] == pytest.approx(known["mIoU"], abs=1e-9)


def test_an_unfinished_map_is_known_and_made_again(old: Path, tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    shutil.copytree(old / "maps" / "unfinished.tif.parts", tmp_path / "map.tif.parts")
    words = ("predict", old / "runs" / "two_branch", old / "scene", "-o", tmp_path / "map.tif", "--block", 16, "-q")
    result = landfuse(*words)
    assert result.code == 2
    assert "holds blocks of another map" in result.err, "its files lie elsewhere, and it can say so"
    assert "the modality `sar`" in result.err
    assert "the grid" not in result.err
    assert landfuse(*words, "--restart").code == 0
    assert (codes(tmp_path / "map.tif") == codes(old / "maps" / "two_branch.tif")).mean() >= 0.999
    assert not (tmp_path / "map.tif.parts").exists()


def test_runs_can_be_compared(old: Path, tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    result = landfuse("compare", *(old / run for run in RUNS[:3]), old / "runs" / "forest", "-o", tmp_path)
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert [recipe["n"] for recipe in found["recipes"]] == [1, 1, 1, 2]
    for recipe, run in zip(found["recipes"], RUNS[:3], strict=False):
        scores = json.loads((old / run / "scores.json").read_text(encoding="utf-8"))
        assert recipe["scores"]["mIoU"]["mean"] == pytest.approx(scores["test"]["mIoU"])
        costs = recipe.get("costs", recipe)
        leak = next(value for key, value in costs.items() if key.startswith("leak"))
        assert leak["mean"] == pytest.approx(scores["leak_share"])
    row = next(line for line in result.out.splitlines() if "two_branch" in line and "%" in line)
    assert f"{json.loads((old / RUNS[0] / 'scores.json').read_text())['leak_share']:.1%}" in row


@pytest.mark.parametrize("run", RUNS)
def test_a_run_is_reported(old: Path, run: str, tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    shutil.copytree(old / run, tmp_path / "run")
    result = landfuse("report", tmp_path / "run", "--scene", old / "scene", "-q")
    assert result.code == 0, result.err
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    made = codes(tmp_path / "run" / "maps" / "old.tif")
    assert made.shape == (40, 40)


@pytest.mark.parametrize("run", RUNS)
def test_the_recipe_of_a_run_is_read(run: str) -> None:
    recipe = lf.read_recipe(OLD / run / "recipe.json")
    assert Path(recipe.scene) == OLD / "scene" / "scene.yaml"
    kept = json.loads((OLD / run / "recipe.json").read_text(encoding="utf-8"))
    if kept["pretrain"]:  # `kind: adaptive` with `hide: swap` is now `kind: swap`
        kept["pretrain"]["balance"] = {
            "kind": "swap",
            **{k: kept["pretrain"]["balance"][k] for k in ("gamma", "warmup")},
        }
    if kept["features"]:
        del kept["features"]["mode"]
    assert_holds(json.loads(recipe.to_json()), {name: value for name, value in kept.items() if name != "scene"})


def assert_holds(read: Any, kept: Any) -> None:
    """Every value that was kept is read; settings that came later are there too."""
    if isinstance(kept, dict) and kept:
        for name, value in kept.items():
            assert_holds(read[name], value)
    else:
        assert read == kept


OLD_RECIPES = sorted(path.name for path in (OLD / "recipes").glob("*.yaml") if path.name != "ablation.yaml")


@pytest.mark.parametrize("name", [name for name in OLD_RECIPES if name != "every_setting.yaml"])
def test_a_recipe_is_read(old: Path, name: str) -> None:
    recipe = lf.read_recipe(old / "recipes" / name)
    assert len(lf.open_scenes(recipe.scene)) == 1
    assert recipe.model["name"] in lf.MODELS


def test_settings_that_no_longer_exist_are_all_named(old: Path) -> None:
    """Every setting of old, away from its default: one message names those that are gone, and the rest is read."""
    path = old / "recipes" / "every_setting.yaml"
    with pytest.raises(lf.LandfuseError, match=r"kind: fixed.*no longer exists(.|\n)*`mode` no longer exists"):
        lf.read_recipe(path)
    text = path.read_text(encoding="utf-8").replace("mode: patch, ", "")
    before = "{kind: fixed, gamma: 1.0, progress: 0.0, hide: cells, cell: 4, imputation: 0.5, every: 5, warmup: 1}"
    text = text.replace(before, "{kind: paper, gamma: 1.0, every: 5, warmup: 1}")
    for gone in ("probabilities: dml, ", "temperature: 3, features: relational, ", ", ramp: 0.5"):
        text = text.replace(gone, "")
    path.write_text(text, encoding="utf-8")
    assert lf.read_recipe(path).pretrain is not None


def test_a_recipe_still_gives_the_same_forest(old: Path, tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    recipe = old / "recipes" / "forest.yaml"
    assert lf.read_recipe(recipe).model["context"] == [3, 7, 15], "the default of this version, written out"
    words = (f"run={tmp_path / 'run'}", "training.seed=0", "model.context=[]", "--quiet")
    result = landfuse("train", recipe, *words)
    assert result.code == 0, result.err
    found, before = (
        json.loads((run / "scores.json").read_text(encoding="utf-8"))
        for run in (tmp_path / "run", old / "runs" / "forest" / "seed-0")
    )
    assert found["test"]["OA"] == pytest.approx(before["test"]["OA"], abs=0.02)


def test_an_ablation_is_read(old: Path, tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    result = landfuse("ablation", old / "recipes" / "ablation.yaml", "--only", "none-of-them", "-o", tmp_path)
    assert result.code == 2
    assert "both" in result.err, "it is read, and its variants are named"


def test_a_denoiser_is_started_from(old: Path, tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    words = ("train", old / "recipes" / "bdgf.yaml", f"run={tmp_path / 'runs' / 'run'}", "pretrain.steps=1")
    small = ("training.epochs=1", "samples.windows=32", "--quiet")
    result = landfuse(*words, f"pretrain.start_from={old / 'runs' / 'bdgf'}", *small)
    assert result.code == 0, result.err


def test_a_scene_file_of_many_settings_is_checked(old: Path, landfuse: Callable[..., Any]) -> None:
    result = landfuse("check", old / "tiles")
    assert result.code == 0, result.out + result.err
    assert [scene.name for scene in lf.open_scenes(old / "tiles" / "scene.yaml")] == ["north", "south"]


def test_what_modalities_give_was_kept(old: Path) -> None:
    rows = json.loads((old / "runs" / "dropout" / "modalities.json").read_text(encoding="utf-8"))["rows"]
    assert {row["how"] for row in rows} == {"all", "mean", "placeholder"}


def test_a_bundle_of_features_per_patch_says_what_is_gone(old: Path) -> None:
    path = old / "runs" / "bdgf" / "bundle" / "model.json"
    words = json.loads(path.read_text(encoding="utf-8"))
    words["features"]["mode"] = "patch"
    path.write_text(json.dumps(words), encoding="utf-8")
    with pytest.raises(lf.LandfuseError, match=r"features of the bundle .*`mode` no longer exists"):
        lf.load_bundle(old / "runs" / "bdgf")


def test_training_an_ended_run_again_loads_its_bundle(old: Path, landfuse: Callable[..., Any]) -> None:
    """Settings that came later stand at their defaults; the run is not taken for one of another recipe."""
    run = old / "runs" / "two_branch"
    recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    (run / "recipe.json").write_text(json.dumps({**recipe, "run": str(run)}), encoding="utf-8")
    before = (run / "scores.json").read_bytes()
    done = landfuse("train", run / "recipe.json", "--quiet")
    assert done.code == 0, done.err
    assert (run / "scores.json").read_bytes() == before
