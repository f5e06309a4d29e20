"""Recipes: what they may say, the errors where they say it wrong, and the split that two files make together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from landfuse.errors import MissingFileError, SettingsError
from landfuse.scenes.scene_file import read_scene_file
from landfuse.scenes.split_rules import BlocksSplit, RandomSplit
from landfuse.training.recipe import Recipe, read_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipes" / "small.yaml"
    path.parent.mkdir()
    path.write_text("scene: ../places/here/scene.yaml\nmodel: {name: two_branch, view: 5}\ntraining: {epochs: 3}\n")
    return path


def test_paths_and_defaults(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path / "recipes")
    for path in (recipe, Path("small.yaml")):
        read = read_recipe(path)
        assert read.scene == str((tmp_path / "places" / "here" / "scene.yaml").resolve())
        assert read.run == "runs/here-small"
        assert read.model == {"name": "two_branch", "view": 5}
        assert read.training.epochs == 3
        assert read.training.rate == 1e-3
    assert read_recipe(recipe, ["run=elsewhere"]).run == "elsewhere"
    assert read_recipe(recipe, ["model=forest"]).model == {"name": "forest", "context": [3, 7, 15]}
    assert read_recipe(recipe, ["scene=other.yaml"]).run == "runs/other-small"


def test_assignments_win(recipe: Path) -> None:
    read = read_recipe(
        recipe,
        ["training.epochs=7", "model.width=16", "modalities=[b, a]", "pixel_maps.b={kind: pca, components: 2}",
         "samples.memory=500 MB", "training.patience=null"],
    )  # fmt: skip
    assert read.training.epochs == 7
    assert read.model == {"name": "two_branch", "view": 5, "width": 16}
    assert read.modalities == ("b", "a")
    assert read.pixel_maps["b"].components == 2
    assert read.samples.memory == 500_000_000
    assert read.training.patience is None


def test_what_was_resolved_reads_back(recipe: Path, tmp_path: Path) -> None:
    read = read_recipe(recipe, ["split={kind: blocks, size: 8}", "training.lightning={max_time: '00:01:00:00'}"])
    again = tmp_path / "again.yaml"
    again.write_text(read.to_json())
    assert read_recipe(again) == read
    assert Recipe.model_validate(json.loads(read.to_json())) == read


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("trainign.epochs=3", r"unknown key `trainign`; did you mean `training`\?"),
        ("training.epoch=3", r"unknown key `training.epoch`; did you mean `training.epochs`\?|did you mean `epochs`\?"),
        ("training.epochs=0", r"`training.epochs` is 0"),
        ("training.epochs=many", r"`training.epochs` is 'many'"),
        ("training.choose_by=F1", r"`training.choose_by` is 'F1'(.|\n)*mF1"),
        ("training.precision=half", r"`training.precision` is 'half'"),
        ("samples.memory=much", r"'much' is no size; write one like 2GiB"),
        ("pixel_maps.a.kind=whiten", r"`pixel_maps.a.kind` is 'whiten'"),
        ("pixel_maps.a.component=3", r"unknown key `pixel_maps.a.component`; did you mean `components`\?"),
        ("model.name=two_brunch", r"no model 'two_brunch'; known: bdgf, boosted, forest"),
        ("model.widht=3", r"model `two_branch`: unknown key `widht`; did you mean `width`\?"),
        ("model.width=1", r"model `two_branch`: `width` is 1"),
        ("model=3", r"no model 3"),
        ("modalities=[]", r"at least one modality, and each once"),
        ("modalities=[a, a]", r"at least one modality, and each once"),
        ("training.epochs", r"is no assignment(.|\n)*key=value"),
        ("scene.path=x", r"`scene` holds a value, not keys"),
        ("training=[", r"not valid YAML"),
    ],
)
def test_mistakes_are_reported(recipe: Path, assignment: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_recipe(recipe, [assignment])


def test_all_mistakes_are_reported_at_once(recipe: Path) -> None:
    recipe.write_text("model: {name: two_branch}\ntraning: {}\nsamples: {batch: 0}\n")
    with pytest.raises(SettingsError) as raised:
        read_recipe(recipe)
    for part in ("the key `scene` is missing", "unknown key `traning`", "`samples.batch` is 0"):
        assert f"{recipe}: {part}" in str(raised.value)


def test_a_recipe_that_is_not_there(recipe: Path) -> None:
    with pytest.raises(MissingFileError, match=r"did you mean `.*small\.yaml`\?"):
        read_recipe(recipe.with_name("smal.yaml"))


def test_unknown_modalities_are_reported(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({"scene": str(place / "scene.yaml"), "model": "forest"}))
    read_recipe(path, ["modalities=[b]", "pixel_maps={default: {clip: 3}, a: {clip: 2}}"]).read_scene()
    with pytest.raises(SettingsError, match=r"names the modality c, d\n  expected: those of .*: a, b"):
        read_recipe(path, ["modalities=[c, a]", "pixel_maps={d: {}}"]).read_scene()


def split(place: Path, tmp_path: Path, own: dict[str, Any] | None, *assignments: str) -> Any:
    text = yaml.safe_load((place / "scene.yaml").read_text())
    text["split"] = own
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(text))
    (tmp_path / "r.yaml").write_text("scene: scene.yaml\nmodel: forest\n")
    return read_recipe(tmp_path / "r.yaml", assignments).split_of(read_scene_file(tmp_path / "scene.yaml"))


def test_the_split_of_a_run(place: Path, tmp_path: Path) -> None:
    own = {"kind": "blocks", "size": 8, "folds": 3}
    assert split(place, tmp_path, own) == BlocksSplit(kind="blocks", size=8, folds=3)
    assert split(place, tmp_path, own, "split.fold=1") == BlocksSplit(kind="blocks", size=8, folds=3, fold=1)
    assert split(place, tmp_path, own, "split.kind=blocks", "split.seed=4").folds == 3
    assert split(place, tmp_path, own, "split={kind: random, train: 20}") == RandomSplit(kind="random", train=20)
    assert split(place, tmp_path, None) is None
    assert split(place, tmp_path, None, "split={kind: random, train: 20}") == RandomSplit(kind="random", train=20)
    for assignment, message in (
        ("split.fold=3", "`fold` is 3, but the folds are 0 to 2"),
        ("split.sise=3", r"unknown key(.|\n)*did you mean `size`\?"),
        ("split.kind=random", r"the key `split\.random\.train` is missing|`split.train` is missing"),
    ):
        with pytest.raises(SettingsError, match=message):
            split(place, tmp_path, own, assignment)
    with pytest.raises(SettingsError, match="the recipe's split"):
        split(place, tmp_path, None, "split.fold=1")
