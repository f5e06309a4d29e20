"""Models of one's own: from other packages by entry point, as a class, by --model; and what a bundle may not import."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml

import landfuse as lf
from landfuse import models
from landfuse.bundles.bundle import Bundle
from landfuse.bundles.bundle_files import load_bundle
from landfuse.bundles.description import ModelSpec
from landfuse.errors import BundleError, LandfuseError, ModelError, SettingsError
from landfuse.legend import LandClass, Legend
from landfuse.models.two_branch import TwoBranch
from landfuse.scenes.scene import ModalityInfo
from landfuse.training.recipe import Recipe, read_recipe
from landfuse.views.pixel_map import PixelMap

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "add-a-model.md").read_text(encoding="utf-8")


def block(language: str, word: str) -> str:
    """The block of the document that holds a word."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    return next(text for text in found if word in text)


MODULE = block("python", "class LateSum")
PROJECT = block("toml", "[project]")


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is registered and offered lasts for one test."""
    monkeypatch.setattr(models, "_registered", {})
    models._offered.cache_clear()
    before = set(sys.modules)
    yield
    models._offered.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith(("late_sum", "evil", "other_sum")):
            del sys.modules[name]


def install(folder: Path, *, name: str = "late-sum", version: str = "1.0", points: str = "late_sum = late_sum:LateSum",
            module: str = MODULE) -> None:  # fmt: skip
    """Puts a package into a folder, as pip leaves it there."""
    about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (about / "entry_points.txt").write_text(f"[landfuse.models]\n{points}\n")
    (folder / f"{name.replace('-', '_')}.py").write_text(module)
    models._offered.cache_clear()
    importlib.invalidate_caches()


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that Python looks for packages in."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


def a_bundle(spec: ModelSpec) -> Bundle:
    torch.manual_seed(0)
    maps = {name: PixelMap(torch.ones(bands), torch.zeros(bands)) for name, bands in (("a", 3), ("b", 2))}
    notes = {name: ModalityInfo(len(m.weight), "float32", "1", 1) for name, m in maps.items()}
    legend = Legend((LandClass("x", 1, "#112233"), LandClass("y", 2, "#445566")))
    return Bundle(spec, maps, notes, legend).eval()


def logits(bundle: Bundle) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    side = bundle.model.view
    with torch.no_grad():
        found: torch.Tensor = bundle(
            {name: torch.randn(2, bands, side, side, generator=random) for name, bands in (("a", 3), ("b", 2))}
        )
    return found


def change(folder: Path, **values: Any) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


class Wide(TwoBranch):
    """A model that no package offers."""


def test_a_package_offers_a_model(packages: Path, tmp_path: Path) -> None:
    assert "late_sum" not in lf.MODELS
    install(packages)
    assert "late_sum" in lf.MODELS
    assert list(lf.MODELS) == sorted([*models._OWN, "late_sum"]) == list(models.SETTINGS)
    assert "late_sum" not in sys.modules, "it is imported when it is looked up"
    kind = lf.MODELS["late_sum"]
    assert kind.__name__ == "LateSum"
    assert models.SETTINGS["late_sum"] is kind.Settings
    assert models.package_of(kind) == ("late-sum", "1.0")
    assert models.name_of(kind) == "late_sum"
    assert Recipe(scene="s", model={"name": "late_sum", "view": 7}).model["view"] == 7
    with pytest.raises(ValueError, match=r"unknown key `veiw`; did you mean `view`\?"):
        Recipe(scene="s", model={"name": "late_sum", "veiw": 7})
    with pytest.raises(ValueError, match=r"no model 'late_sun'; known: (.|\n)*did you mean `late_sum`\?"):
        Recipe(scene="s", model={"name": "late_sun"})
    before = a_bundle(ModelSpec("late_sum", {"view": 3}))
    before.save(tmp_path / "bundle")
    assert json.loads((tmp_path / "bundle" / "model.json").read_text())["package"] == {
        "name": "late-sum",
        "version": "1.0",
    }
    after = load_bundle(tmp_path / "bundle")
    assert torch.equal(logits(after), logits(before))
    assert after.digest == before.digest


def test_a_bundle_of_landfuses_own_models_names_no_package(tmp_path: Path) -> None:
    a_bundle(ModelSpec("two_branch", {"view": 3})).save(tmp_path)
    assert "package" not in json.loads((tmp_path / "model.json").read_text())


def test_a_name_of_landfuses_own_is_refused(packages: Path, caplog: pytest.LogCaptureFixture) -> None:
    install(packages, points="refnet = late_sum:LateSum\nlate_sum = late_sum:LateSum")
    with caplog.at_level(logging.WARNING):
        assert "nothing" not in lf.MODELS
    assert "package late-sum 1.0 offers a model `refnet`, which is landfuse's own name: it is not used" in caplog.text
    assert lf.MODELS["refnet"] is lf.models.RefNet
    assert models.name_of(lf.models.RefNet) == "refnet"
    with pytest.raises(ModelError, match="`refnet`, the name of one of landfuse's own"):
        models.register("refnet", Wide)


def test_a_name_that_two_packages_offer_is_refused(packages: Path) -> None:
    install(packages)
    install(packages, name="other-sum", version="2.1", points="late_sum = other_sum:LateSum")
    with pytest.raises(ModelError, match=r"several packages offer a model `late_sum`: .*late-sum 1\.0.*other-sum 2\.1"):
        lf.MODELS["late_sum"]
    assert models.name_of(TwoBranch) == "two_branch"


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("import nothing_of_the_kind", r"late_sum:LateSum: ModuleNotFoundError(.|\n)*package late-sum 1\.0"),
        ("LateSum = 3", r"`late_sum` is 3(.|\n)*derives from landfuse\.FusionModel"),
        ("import landfuse\nclass LateSum(landfuse.FusionModel): pass", "has no `Settings`"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_packages_that_are_broken(packages: Path, module: str, message: str) -> None:
    install(packages, module=module)
    assert lf.MODELS["two_branch"] is TwoBranch, "the others are not concerned"
    with pytest.raises(ModelError, match=message):
        lf.MODELS["late_sum"]
    with pytest.raises(ValueError, match="late_sum"):
        Recipe(scene="s", model={"name": "late_sum"})


def test_names_of_classes() -> None:
    with pytest.raises(ModelError, match=r"no model `refnett`(.|\n)*did you mean `refnet`\?"):
        models.name_of("refnett")
    assert models.name_of("bdgf") == "bdgf"
    name = models.name_of(Wide)
    assert name == f"{Wide.__module__}:Wide"
    assert lf.MODELS[name] is Wide
    assert models.registered(name) is Wide
    models.register("wide", Wide)
    assert models.name_of(Wide) in ("wide", name)
    with pytest.raises(ModelError, match="derives from"):
        models.name_of(dict)  # type: ignore[arg-type]
    for place, message in (
        ("os:system", "derives from"),
        ("late_sum", "package.module:Class"),
        ("os:nothing", "AttributeError"),
        ("nothing_of_the_kind:A", "ModuleNotFoundError"),
        ("os:system; rm", "package.module:Class"),
    ):
        with pytest.raises(ModelError, match=message):
            models.imported(place)


def test_a_bundle_whose_package_is_missing_or_another(
    packages: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(packages)
    a_bundle(ModelSpec("late_sum", {"view": 3})).save(tmp_path / "bundle")
    shutil.rmtree(packages / "late_sum-1.0.dist-info")
    install(packages, version="1.1")
    with caplog.at_level(logging.WARNING):
        load_bundle(tmp_path / "bundle")
    assert "its model `late_sum` is of late-sum 1.0, and here of late-sum 1.1" in caplog.text
    shutil.rmtree(packages / "late_sum-1.1.dist-info")
    models._offered.cache_clear()
    with pytest.raises(BundleError, match=r"of the package late-sum 1\.0(.|\n)*pip install late-sum==1\.0") as caught:
        load_bundle(tmp_path / "bundle")
    assert len(str(caught.value).splitlines()) == 3


def test_a_bundle_of_a_class(tmp_path: Path) -> None:
    before = a_bundle(ModelSpec("my.own:Wide", {"view": 3}, Wide))
    before.save(tmp_path)
    with pytest.raises(BundleError, match=r"`my\.own:Wide`(.|\n)*--model my\.own:Wide, or landfuse\.models\.register"):
        load_bundle(tmp_path)
    loaded = load_bundle(tmp_path, model=Wide)
    assert isinstance(loaded.model, Wide)
    assert torch.equal(logits(loaded), logits(before))
    models.register("my.own:Wide", Wide)
    assert isinstance(load_bundle(tmp_path).model, Wide)
    with pytest.raises(ModelError, match="derives from"):
        load_bundle(tmp_path, model=dict)  # type: ignore[arg-type]
    change(tmp_path, model={"name": "two_branch", "settings": {"view": 3}})
    with pytest.raises(BundleError, match=r"landfuse's own, and Wide was given"):
        load_bundle(tmp_path, model=Wide)
    assert isinstance(load_bundle(tmp_path, model=TwoBranch).model, TwoBranch)


@pytest.mark.parametrize(
    "values",
    [
        {"model": {"name": "os:system", "settings": {"command": "touch evil-was-here"}}},
        {"model": {"name": "evil:Model", "settings": {}}},
        {"model": {"name": "evil", "settings": {}}, "package": {"name": "evil", "version": "1.0"}},
        {"model": {"name": "evil.Model", "settings": {}}, "package": {"name": "evil; touch x", "version": "1"}},
        {"model": {"name": "two_branch", "settings": {"view": 3}}, "package": {"name": "evil", "version": "1.0"}},
    ],
)
def test_a_bundle_imports_nothing_that_it_names(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    """P5; `evil` is installed, and offers nothing."""
    install(packages, name="evil", points="", module="open('evil-was-here', 'w').close()")
    a_bundle(ModelSpec("two_branch", {"view": 3})).save(tmp_path / "bundle")
    change(tmp_path / "bundle", **values)
    monkeypatch.chdir(tmp_path)
    if values["model"]["name"] == "two_branch":
        load_bundle(tmp_path / "bundle")
    else:
        with pytest.raises(LandfuseError) as caught:
            load_bundle(tmp_path / "bundle")
        assert "touch x" not in caught.value.do
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"scene": "s.yaml", "model": {"name": "evil:Model"}}))
    with pytest.raises(SettingsError):
        read_recipe(tmp_path / "recipe.yaml")
    assert "evil" not in sys.modules
    assert not (tmp_path / "evil-was-here").exists()


def recipe(place: Path, folder: Path, model: Any) -> Path:
    training = {"epochs": 2, "rate": 1e-2, "precision": "float32", "accelerator": "cpu"}
    text = {"scene": str(place / "scene.yaml"), "model": model, "samples": {"windows": 640}, "training": training}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(text))
    return folder / "recipe.yaml"


def codes(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        found: np.ndarray = file.read(1)
        return found


def test_a_class_named_on_the_command_line(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, landfuse: Callable[..., Any]
) -> None:
    (tmp_path / "late_sum.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    path, own = recipe(place, tmp_path, {"name": "two_branch", "view": 3, "width": 8}), ("--model", "late_sum:LateSum")
    done = landfuse("train", path, "run=run", "--quiet", *own)
    assert done.code == 0, done.err
    written = json.loads((tmp_path / "run" / "bundle" / "model.json").read_text())
    assert written["model"] == {"name": "late_sum:LateSum", "settings": {"view": 3, "width": 8}}
    models._registered.clear()
    words = ("predict", "run", place / "scene.yaml", "--quiet", "-o")
    refused = landfuse(*words, "none.tif")
    assert refused.code == 2
    assert "--model late_sum:LateSum" in refused.err
    refused = landfuse("train", tmp_path / "run" / "recipe.json", "run=run")
    assert refused.code == 2
    assert "--model late_sum:LateSum" in refused.err
    assert landfuse(*words, "map.tif", *own).code == 0
    done = landfuse(*words, "apart.tif", *own, "--workers", 1)
    assert done.code == 0, done.err
    assert (tmp_path / "apart.tif").read_bytes() == (tmp_path / "map.tif").read_bytes()
    assert landfuse("train", path, "model.view=4", *own).code == 2, "the view is even"
    done = landfuse("train", path, "run=series", "training.epochs=1", "--seeds", "1", "--quiet", *own)
    assert done.code == 0, done.err
    assert "late_sum:LateSum" in (tmp_path / "series" / "seed-1" / "recipe.json").read_text()


def test_a_package_is_built_installed_trained_and_used(place: Path, tmp_path: Path) -> None:
    """The package of docs/add-a-model.md, as its reader would have it."""
    source, target = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    (source / "late_sum.py").write_text(MODULE)
    (source / "pyproject.toml").write_text(PROJECT)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, capture_output=True)
    path = recipe(place, tmp_path, {"name": "late_sum", "view": 3, "width": 8})

    def command(*words: object, installed: bool = True) -> subprocess.CompletedProcess[str]:
        paths = [str(ROOT / "src"), *([str(target)] if installed else [])]
        variables = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"}
        return subprocess.run(
            [sys.executable, "-m", "landfuse", *map(str, words)],
            cwd=tmp_path, env=variables, capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = command("train", path, "run=run", "--quiet")
    assert done.returncode == 0, done.stderr
    about = json.loads((tmp_path / "run" / "bundle" / "model.json").read_text())
    assert about["package"] == {"name": "late-sum", "version": "1.0"}
    words = ("predict", "run", place / "scene.yaml", "--quiet", "-o")
    done = command(*words, "map.tif")
    assert done.returncode == 0, done.stderr
    assert len(np.unique(codes(tmp_path / "map.tif"))) > 2
    done = command(*words, "apart.tif", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "apart.tif").read_bytes() == (tmp_path / "map.tif").read_bytes()
    done = command(*words, "none.tif", installed=False)
    assert done.returncode == 2
    assert "pip install late-sum==1.0" in done.stderr
    assert "Traceback" not in done.stderr
