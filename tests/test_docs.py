"""The documents are true: their code runs, their YAML is accepted, what they link to and name exists."""

from __future__ import annotations

import ast
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
import yaml

import landfuse as lf
from landfuse import models
from landfuse.bundles.bundle import build_model
from landfuse.bundles.description import ModelSpec
from landfuse.cli.commands import COMMANDS, command
from landfuse.legend import UNLABELLED
from landfuse.models import SETTINGS
from landfuse.models.base import FusionModel, Modality, cross_entropy
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.scenes import splits
from landfuse.scenes.scene_keys import ClassSettings, JoinSettings, LabelSettings, ModalitySettings, SceneSettings
from landfuse.settings import kind_of, parse, read_yaml
from landfuse.studies.ablation import AblationSettings, ablation_members
from landfuse.training.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path: Path, language: str) -> list[str]:
    """The code blocks of one language in a document."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose `landfuse-demo` holds a small scene of two modalities, and a recipe."""
    side, folder = 48, tmp_path / "landfuse-demo"
    grid = Grid(side, side, (1.0, 0.0, 5e5, 0.0, -1.0, 5e6), "EPSG:32632")
    rng = np.random.default_rng(0)
    truth = np.add.outer(np.arange(side) // 6, np.arange(side) // 6) % 2
    for name, bands in (("hsi", 4), ("height", 1)):
        values = truth + 0.1 * rng.standard_normal((bands, side, side))
        write_raster(folder / f"{name}.tif", grid, values.astype(np.float32))
    write_raster(folder / "labels.tif", grid, (truth + 1).astype(np.uint8))
    scene = {
        "name": "tiny",
        "modalities": {"hsi": {"path": "hsi.tif"}, "height": {"path": "height.tif"}},
        "labels": {"path": "labels.tif"},
        "legend": [{"name": "low"}, {"name": "high"}],
        "split": {"kind": "blocks", "size": 12, "test": 0.4},
    }
    (folder / "scene.yaml").write_text(yaml.safe_dump(scene), encoding="utf-8")
    recipe = {
        "scene": "scene.yaml",
        "model": {"name": "two_branch", "view": 3, "width": 8},
        "samples": {"windows": 640},
        "training": {"epochs": 2, "rate": 1e-2, "precision": "float32", "accelerator": "cpu"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_eight_lines_of_the_readme_run(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, arrays = blocks(ROOT / "README.md", "python")
    assert all(len([line for line in code.splitlines() if line.strip()]) <= 8 for code in (files, arrays))
    names: dict[str, Any] = {}
    exec(compile(files, "README.md", "exec"), names)
    printed = {line.split()[0]: float(line.split()[1]) for line in capsys.readouterr().out.splitlines()}
    assert set(printed) == {"OA", "kappa", "mIoU"}
    assert printed["OA"] > 0.9
    assert (demo / "map.tif").exists()
    assert (demo / "map_confidence.tif").exists()
    pytest.importorskip("rioxarray")
    exec(compile(arrays, "README.md", "exec"), names)
    assert re.fullmatch(r"OA [01]\.\d+ in EPSG:32632\n", capsys.readouterr().out)
    assert names["mapped"].shape == (48, 48)


@pytest.fixture
def documented() -> Iterator[dict[str, Any]]:
    """The names that the code of docs/add-a-model.md defines; its model is registered for the time of the test."""
    names: dict[str, Any] = {"cross_entropy": cross_entropy}
    try:
        for code in blocks(ROOT / "docs" / "add-a-model.md", "python"):
            exec(compile(code, "docs/add-a-model.md", "exec"), names)
        assert "late_sum" in lf.MODELS
        assert SETTINGS["late_sum"] is lf.MODELS["late_sum"].Settings
        yield names
    finally:
        models._registered.pop("late_sum", None)


def late_sum(settings: dict[str, Any], modalities: dict[str, Modality]) -> FusionModel:
    return build_model(ModelSpec("late_sum", settings), modalities, 3)


def test_the_documented_model_keeps_the_contract(documented: dict[str, Any]) -> None:
    modalities = {"hsi": Modality(4), "height": Modality(1)}
    torch.manual_seed(0)
    model = late_sum({"view": 7}, modalities)
    images = {name: torch.randn(5, m.channels, 7, 7) for name, m in modalities.items()}
    target = torch.tensor([0, 1, 2, 1, UNLABELLED], dtype=torch.uint8)[:, None, None]
    assert model(images).shape == (5, 3, 1, 1)
    model.loss(images, target)["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    model.eval()
    alone = model({name: image[:1] for name, image in images.items()})
    torch.testing.assert_close(alone, model(images)[:1])
    assert torch.isfinite(model.loss(images, torch.full_like(target, UNLABELLED))["loss"])
    with pytest.raises(lf.LandfuseError, match="zoom"):
        late_sum({}, {"rgb": Modality(3, zoom=10)})
    with pytest.raises(lf.LandfuseError, match="core"):
        late_sum({"view": 6}, modalities)


def test_the_documented_objective_is_logged_by_its_parts(documented: dict[str, Any]) -> None:
    kind = documented["Calibrated"]
    model = kind({"hsi": Modality(4)}, 3, kind.Settings(view=3))
    parts = model.loss({"hsi": torch.randn(2, 4, 3, 3)}, torch.zeros((2, 1, 1), dtype=torch.uint8))
    assert set(parts) == {"loss", "cross_entropy", "penalty"}
    torch.testing.assert_close(parts["loss"], parts["cross_entropy"] + parts["penalty"])


def test_the_documented_model_trains_and_maps(documented: dict[str, Any], demo: Path) -> None:
    classifier = lf.train("landfuse-demo/recipe.yaml", "model={name: late_sum, view: 3}", "run=run", progress=False)
    scene = lf.open_scene("landfuse-demo/scene.yaml")
    mapped = lf.map_array(lf.load_bundle("run"), scene)
    assert np.array_equal(mapped, lf.map_array(classifier, scene))
    assert (mapped == scene.labels).mean() > 0.9


def scene_blocks() -> list[str]:
    return blocks(ROOT / "docs" / "add-a-scene.md", "yaml")


@pytest.mark.parametrize("number", range(len(scene_blocks())))
def test_the_yaml_of_add_a_scene_is_accepted(number: int) -> None:
    part = yaml.safe_load(scene_blocks()[number])
    if "name" in part:
        whole = part
    else:  # a part of a scene file, put into a whole one
        modalities = part.get("modalities", {"hsi": {"path": "hsi.tif"}})
        whole = {"name": "x", "modalities": modalities, "labels": {"path": "l.tif"}, "legend": [{"name": "a"}], **part}
    parse(SceneSettings, whole, f"block {number} of docs/add-a-scene.md")


def test_add_a_scene_shows_every_key_in_an_example() -> None:
    kinds: list[type[pydantic.BaseModel]] = [
        SceneSettings,
        ModalitySettings,
        LabelSettings,
        ClassSettings,
        JoinSettings,
    ]
    kinds += [
        splits.MasksSplit, splits.RolesSplit, splits.RandomSplit, splits.BlocksSplit, splits.TilesSplit
    ]  # fmt: skip
    used = {key for block in scene_blocks() for key in re.findall(r"\b([a-z_]+):", block)}
    keys = {key for kind in kinds for key in kind.model_fields}
    assert keys - used - {"test"} == set()


@pytest.mark.parametrize(
    ("path", "number"),
    [(path, n) for path in DOCUMENTS if path.name != "add-a-scene.md" for n in range(len(blocks(path, "yaml")))],
    ids=lambda value: name_of(value) if isinstance(value, Path) else str(value),
)
def test_documented_settings_are_accepted(path: Path, number: int) -> None:
    """Whole files, or sections of them."""
    values, where = yaml.safe_load(blocks(path, "yaml")[number]), f"block {number} of {name_of(path)}"
    if "variants" in values:
        parse(AblationSettings, values, where)
    elif "scene" in values or not values.keys() <= SceneSettings.model_fields.keys():
        parse(Recipe, {"scene": "scene.yaml", "model": "forest", **values}, where)
    else:
        parse(SceneSettings, {"name": "x", "modalities": {"s2": {"path": "s2.tif"}}, **values}, where)


def test_concepts_describes_the_tree_in_the_order_of_imports() -> None:
    """One line per package, in the order of `tests/test_house.py`; and those of the picture are among them."""
    text = (ROOT / "docs" / "development" / "code.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| package \|.*?\n\n", text, re.MULTILINE | re.DOTALL)
    rows = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in table.strip().splitlines()[2:]]
    source = ROOT / "src" / "landfuse"
    there = {path.name for path in source.iterdir() if (path / "__init__.py").exists()}
    there |= {path.stem for path in source.glob("*.py") if not path.stem.startswith("__")}
    assert {name for row in rows for name in row} == there
    house = ast.parse((ROOT / "tests" / "test_house.py").read_text(encoding="utf-8"))
    names = [
        ast.literal_eval(node.value)
        for node in house.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PACKAGES"
    ]
    assert [name for row in rows[1:] for name in row] == names[0].split()
    picture = (ROOT / "docs" / "images" / "flow.svg").read_text(encoding="utf-8")
    drawn = set(re.findall(r"\b([a-z]+)/(?=[ ,<])", picture))
    assert drawn
    assert drawn <= there, "a package of the picture is gone"


def test_the_window_of_concepts_has_the_class_of_the_map(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lf.train("landfuse-demo/recipe.yaml", "run=landfuse-demo/runs/hsi-height-sar", progress=False)
    (code,) = blocks(ROOT / "docs" / "development" / "code.md", "python")
    exec(compile(code, "docs/development/code.md", "exec"), {})
    first, second = (line.split(":")[1] for line in capsys.readouterr().out.splitlines()[-2:])
    assert first == second
    assert int(first) in (0, 1)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_documented_files_exist(path: Path) -> None:
    for name in re.findall(r"`([\w./]+/\w+\.py)`", path.read_text(encoding="utf-8")):
        assert any((place / name).exists() for place in (ROOT / "src" / "landfuse", ROOT)), f"{path} names {name}"


def test_the_functions_of_concepts_are_in_the_files_beside_them() -> None:
    text = (ROOT / "docs" / "development" / "code.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| station \|.*?(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    for row in table.strip().splitlines()[2:]:
        _, station, functions, files, _ = row.split("|")
        paths = [ROOT / "src" / "landfuse" / name for name in re.findall(r"`([^`]+)`", files)]
        source = "\n".join(path.read_text(encoding="utf-8") for path in paths)
        for name in re.findall(r"`(?:lf\.)?([A-Za-z_.]+)(?:\([^`]*)?`", functions):
            for word in name.split("."):
                assert re.search(rf"\b(def|class) {word}\b", source) or name == "map.tif", f"{station}: {name}"


def test_the_status_table_is_that_of_the_models() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for name, status in rows if status == "ready"} == set(lf.MODELS)
    assert all(status == "in progress" for name, status in rows if name not in lf.MODELS)


ABLATIONS = [path for path in sorted(ROOT.glob("benchmarks/*/*.yaml")) if kind_of(read_yaml(path)) == "an ablation"]


@pytest.mark.parametrize("path", ABLATIONS, ids=name_of)
def test_every_ablation_of_the_benchmarks_is_accepted(path: Path, tmp_path: Path) -> None:
    assert all(ablation_members(path, [f"run={tmp_path}"]).values())


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
        if "://" not in target and "reference/" not in target:  # those pages are generated, and checked with the site
            assert (path.parent / target).exists(), f"{name_of(path)} links to {target}"


def test_words_are_plain() -> None:
    """Those that CONTRIBUTING advises against; it names them, and is left out."""
    failed = re.compile(r"\b(tells?|told|mend(s|ed|ing)?|anew|hands|handed|does not pay|was given)\b", re.IGNORECASE)
    paths = [path for path in DOCUMENTS if path.name != "CONTRIBUTING.md"] + [ROOT / "CHANGELOG.md"]
    paths += [*ROOT.glob("benchmarks/**/*.yaml"), *ROOT.glob("benchmarks/**/*.md"), *ROOT.glob("examples/*.py")]
    paths += [*ROOT.glob("src/**/*.py"), ROOT / "hatch_build.py", ROOT / ".ci" / "run"]
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            assert not failed.search(line), f"{name_of(path)}:{number}: {line}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_documented_commands_exist(path: Path) -> None:
    for block in blocks(path, "sh"):
        lines = block.replace("\\\n", " ").replace("&&", "\n").splitlines()
        for line in lines:
            words = shlex.split(line, comments=True)
            if words and words[0] in ("scripts/test", "scripts/digests", ".ci/run"):
                assert (ROOT / words[0]).is_file()
                assert os.name != "posix" or os.access(ROOT / words[0], os.X_OK), f"{words[0]} cannot be run"
            if not words or Path(words[0]).name != "landfuse":
                continue
            if words[1] == "COMMAND":
                continue
            assert words[1] in COMMANDS, line
            known = {option for param in command(words[1]).params for option in param.opts} | {"--help"}
            assert {word for word in words if word.startswith("-")} <= known, line
            for word in words:
                if word.startswith("benchmarks/") and "RECIPE" not in word:
                    assert (ROOT / word).exists(), line
