"""An ablation: what each variant trains, that it resumes, and its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from landfuse.cli.studies import ablation as command
from landfuse.errors import LandfuseError, SettingsError
from landfuse.settings import kind_of, read_yaml
from landfuse.studies import ablation
from landfuse.studies.ablation import ablate, ablation_members, read_ablation
from landfuse.studies.series import Member
from landfuse.studies.tables import to_csv
from landfuse.training.train import train

RECIPE: dict[str, Any] = {
    "model": {"name": "forest", "trees": 3},
    "pixel_maps": {"default": {"kind": "none"}},
}
VARIANTS: dict[str, Any] = {
    "few": None,
    "many": {"model": {"trees": 5}},
    "one-modality": {"modalities": ["a"], "model.leaf": 9},
}


@pytest.fixture
def file(place: Path, tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"scene": str(place / "scene.yaml"), **RECIPE}))
    path = tmp_path / "ablation.yaml"
    text = {"base": "base.yaml", "seeds": "0..1", "run": str(tmp_path / "runs"), "variants": VARIANTS}
    path.write_text(yaml.safe_dump({**text, "common": {"samples": {"batch": 32}}}, sort_keys=False))
    return path


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Trains in this process, which starts faster; the runs that were not there before."""
    done: list[Path] = []

    def run(path: Path, runs: list[Member], **options: Any) -> None:
        for member in runs:
            if not member.ended:
                train(member.recipe, progress=False)
                done.append(member.run)

    monkeypatch.setattr(ablation, "train_series", run)
    return done


def test_each_variant_is_the_recipe_with_its_changes(file: Path) -> None:
    runs = ablation_members(file, ["training.epochs=3"], seeds="4")
    assert list(runs) == list(VARIANTS)
    recipes = {name: members[0].recipe for name, members in runs.items()}
    assert [recipe.model["trees"] for recipe in recipes.values()] == [3, 5, 3]
    assert recipes["one-modality"].modalities == ("a",)
    assert recipes["one-modality"].model["leaf"] == 9
    assert {recipe.samples.batch for recipe in recipes.values()} == {32}
    assert {recipe.training.epochs for recipe in recipes.values()} == {3}
    forced = ablation_members(file, ["model.trees=9"], seeds="4")
    assert {members[0].recipe.model["trees"] for members in forced.values()} == {9}
    assert [m.run for members in runs.values() for m in members] == [
        file.parent / "runs" / name / "seed-4" for name in VARIANTS
    ]


def test_all_variants_are_trained_once_and_compared_by_name(file: Path, trained: list[Path]) -> None:
    assert [r.name for r in ablate(file, only=["few"], seeds="0").recipes] == ["few"]
    assert len(trained) == 1
    result = ablate(file, only=["few", "one-modality"])
    assert len(trained) == len(set(trained)) == 4  # the one from before is not repeated
    assert [recipe.name for recipe in result.recipes] == ["few", "one-modality"]
    assert [len(recipe.runs) for recipe in result.recipes] == [2, 2]
    assert [(one.name, one.against) for one in result.differences] == [("one-modality", "few")]
    for recipe in result.recipes:
        found = [json.loads((run.folder / "scores.json").read_text())["test"]["OA"] for run in recipe.runs]
        assert recipe.scores["OA"].mean == pytest.approx(sum(found) / 2)
    assert to_csv(result).splitlines()[2].startswith("one-modality,2,")


def test_a_folder_can_be_named_on_the_command_line(file: Path, tmp_path: Path) -> None:
    runs = ablation_members(file, [f"run={tmp_path / 'else'}"], only=["many"], seeds="1")
    assert [m.run for m in runs["many"]] == [tmp_path / "else" / "many" / "seed-1"]


def test_by_default_runs_are_named_after_the_file_and_its_folder(file: Path) -> None:
    text = yaml.safe_load(file.read_text())
    del text["run"]
    file.write_text(yaml.safe_dump(text))
    runs = ablation_members(file, seeds="0")
    assert runs["few"][0].run == Path("runs") / f"{file.parent.name}-ablation" / "few" / "seed-0"


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        ({"variants": {}}, "name some"),
        ({"variants": {"../x": {}}}, "'../x'"),
        ({"variants": {"a": {"model": {"tree": 4}}}}, "tree"),
        ({"variants": {"a": {"training": {"rate": -1}}}}, "training.rate"),
        ({"seeds": "a"}, "seeds is `a`"),
        ({"folds": "0..2"}, "fold"),
        ({"base": "nothing.yaml"}, "nothing.yaml"),
        ({"variant": {}}, "variants"),
    ],
)
def test_mistakes_are_reported_before_anything_is_trained(file: Path, changes: dict[str, Any], reported: str) -> None:
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}, sort_keys=False))
    with pytest.raises(LandfuseError, match=reported):
        ablate(file)
    assert not (file.parent / "runs").exists()


def test_a_variant_that_is_not_there_is_reported(file: Path) -> None:
    with pytest.raises(SettingsError, match=r"no variant none(.|\n)*few, many"):
        ablation_members(file, only=["none"])


def test_the_command_prints_the_table(file: Path, trained: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    command(file, only=["many"], seeds="0", output=file.parent / "out")
    reported = capsys.readouterr().out
    assert "many" in reported
    assert (file.parent / "out" / "comparison.csv").exists()
    assert len(trained) == 1


def test_two_variants_that_are_the_same_are_reported(file: Path, trained: list[Path]) -> None:
    text = yaml.safe_load(file.read_text())
    text["variants"] = {"a": {}, "b": {"model": {"trees": 3}}}
    file.write_text(yaml.safe_dump(text))
    with pytest.raises(SettingsError, match="one recipe, split and seed"):
        ablate(file, seeds="0")


def test_the_ablations_of_the_benchmarks_can_be_run() -> None:
    known = sorted((Path(__file__).resolve().parents[2] / "benchmarks").glob("*/*.yaml"))
    files = [path for path in known if kind_of(read_yaml(path)) == "an ablation"]
    assert len(files) >= 6
    for file in files:
        runs = ablation_members(file, folds="0" if read_ablation(file).folds is not None else None, seeds="0")
        assert len({m.recipe.model_dump_json(exclude={"run"}) for members in runs.values() for m in members}) == len(
            runs
        )
