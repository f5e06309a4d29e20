"""Whatever stands in a scene file, a recipe or an assignment: it is read, or refused in one message."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from landfuse.errors import LandfuseError
from landfuse.models import SETTINGS
from landfuse.scenes.check import check
from landfuse.settings import Settings
from landfuse.training.recipe import Recipe, read_recipe

ODD = [
    "", "~", "no", "010", "-1", "0", "0.5", "1e30", "1e400", "-1e400", ".nan", ".inf", "9" * 30, "9" * 5000,
    "0x" + "f" * 99, "1-999999999", "1-3, 9", "[]", "{}", "[1, 2]", "[[1]]", "{a: 1}", "[.nan]", "[-1]", "true",
    "12:30", "2024-02-30", '"a\\0b"', '"\\ud83c"', '""', "n" * 300 + ".tif", "../..", "/dev/null", "{tile}",
    "${LF_NOT_SET}", "${HOME}", "http://127.0.0.1:9/x.tif", "/vsizip/none.zip/a.tif", "EPSG:0", "'*'", "'[a'",
    "a.tif", "labels", "[a, a]", "!!int x", "!!binary x", "&x [*x]", "<<", "[" * 400,
]  # fmt: skip
odd = st.sampled_from(ODD) | st.text(max_size=5).map(json.dumps) | st.integers().map(str) | st.floats().map(str)
quick = settings(
    max_examples=25,
    phases=[Phase.generate],
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

SCENE = {
    "name": "t", "title": "", "root": ".", "georeferenced": True, "tiles": None, "reference": "a",
    "modalities": {
        "a": {"path": "a.tif", "bands": [1, 2], "names": [], "nodata": 0, "scale": 1, "offset": 0, "units": "m",
              "zoom": 1, "resampling": "nearest", "crs": None, "metres": 1, "decibel": False, "variable": None},
    },
    "labels": {"path": "labels.tif", "ignored": [], "unlisted": "error", "crs": None, "colours": None, "polygons": [],
               "attribute": None, "also": [], "join": None, "nodata": None, "overlap": "last"},
    "legend": [{"name": f"w{i}", "code": i, "colour": None, "value": None, "scored": True} for i in range(1, 5)],
    "split": {"kind": "blocks", "size": 8, "buffer": 0, "seed": 0, "test": 0.3, "validation": 0.2, "folds": None,
              "fold": 0},
    "counts": {"size": [96, 96], "tiles": 1, "labelled": [1, 2, 3, 4], "bands": {"a": 3}},
    "fetch": {"files": [{"address": "http://127.0.0.1:9/a", "size": 1, "name": "a", "folder": "."}], "manual": ""},
}  # fmt: skip


def places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value can be replaced: each key, and each section."""
    keys = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, below in keys:
        yield (*path, key)
        yield from places(below, (*path, key))


def with_odd(values: Any, path: tuple[Any, ...], text: str) -> str:
    """The values as YAML, with a text in one place."""
    values = copy.deepcopy(values)
    at = values
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = "ODD VALUE"
    return yaml.safe_dump(values, sort_keys=False).replace("ODD VALUE", text)


@quick
@given(path=st.sampled_from([*places(SCENE)]), text=odd)
def test_scene_files(path: tuple[Any, ...], text: str, place: Path, tmp_path: Path) -> None:
    for name in ("a", "labels"):
        if not (tmp_path / f"{name}.tif").exists():
            (tmp_path / f"{name}.tif").symlink_to(place / f"{name}.tif")
    (tmp_path / "scene.yaml").write_text(with_odd(SCENE, path, text), errors="replace")
    with suppress(LandfuseError):
        check(tmp_path, views=[(7, 1)])


def keys(kind: type[Settings], before: str = "") -> Iterator[str]:
    """Assignments to each setting, and to those below it."""
    for name, field in kind.model_fields.items():
        yield f"{before}{name}="
        for below in (field.annotation, *get_args(field.annotation)):
            if isinstance(below, type) and issubclass(below, Settings):
                yield from keys(below, f"{before}{name}.")


MODEL_KEYS = [f"model={{name: {name}, {key}: %s}}" for name, kind in SETTINGS.items() for key in kind.model_fields]
KEYS = [f"{key}%s" for key in keys(Recipe)] + [f"split.{name}=%s" for name in ("kind", "seed", "size", "folds")]


@settings(quick, max_examples=200)
@given(key=st.sampled_from([*KEYS, *MODEL_KEYS]), text=odd)
def test_recipes_and_assignments(key: str, text: str, place: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"scene: {place}/scene.yaml\nmodel: forest\n")
    with suppress(LandfuseError):
        recipe = read_recipe(tmp_path / "recipe.yaml", [key % text])
        recipe.split_of(recipe.read_scene())
        assert Recipe.model_validate_json(recipe.to_json()) == recipe


@pytest.mark.parametrize("number", ["-1", "9" * 30, "9" * 5000, "1e400", "nan"])
@pytest.mark.parametrize(
    "words",
    [
        "sample m.tif -o s.csv --seed", "sample m.tif -o s.csv --points", "sample m.tif -o s.csv --side",
        "sample m.tif -o s.csv --minimum", "evaluate m.tif . --block", "report run --block", "demo x --seed",
        "predict run . -o m.tif --workers", "predict run . -o m.tif --memory", "predict run . -o m.tif --block",
        "predict run . -o m.tif --batch", "check . --views", "train r.yaml --seeds", "train r.yaml --folds",
        "report run --bands", "reproduce houston2013 --seeds",
    ],
)  # fmt: skip
def test_options(words: str, number: str, landfuse: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = landfuse(*words.split(), number)
    assert done.code == 2, done
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []
