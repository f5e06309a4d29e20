"""The example in the docstring of every public name runs, in a folder as the README's first commands leave it."""

from __future__ import annotations

import doctest
import shutil
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import pytest
import yaml

import landfuse as lf


@pytest.fixture(scope="module")
def folder(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A scene file, a recipe, its finished run `runs/first`, and `map.tif`."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(place, folder, dirs_exist_ok=True)
    recipe = {"scene": "scene.yaml", "model": {"name": "forest", "trees": 5}, "run": "runs/first"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        lf.predict(lf.train("recipe.yaml", progress=False), lf.open_scene("scene.yaml"), "map.tif", confidence=True)
        yield folder


@pytest.mark.parametrize(
    "name", [*(name for name in lf.__all__ if not isinstance(getattr(lf, name), int)), "Scene.from_arrays"]
)
def test_the_example_of_every_public_name_runs(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    shown = attrgetter(name)(lf)
    tests = doctest.DocTestFinder(recurse=False).find(shown, name, globs={"lf": lf})
    assert any(test.examples for test in tests), f"{name} has no example"
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in tests:
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)
