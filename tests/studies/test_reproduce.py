"""`landfuse reproduce`: both splits, what has been published, and going on after an interruption."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from landfuse.errors import LandfuseError, MissingFileError, ModelError, SettingsError
from landfuse.scenes.benchmarks import places
from landfuse.studies import reproduce as module
from landfuse.studies.reproduce import cell, plan, read_published, reproduce
from landfuse.studies.series import Member
from landfuse.training.train import train

FIGURE = {
    "method": "Somebody's | net",
    "modalities": "a + b",
    "split": "random",
    "scores": {"OA": [91.5, 0.4], "kappa": [88.0]},
    "source": "Somebody 2024, doi 10.1/2",
    "faults": "chooses the epoch on the test set",
}


@pytest.fixture
def home(place: Path, tmp_path: Path) -> Path:
    """A place: the small scene split at random, two recipes, and a published figure."""
    folder = tmp_path / "chequers"
    shutil.copytree(place, folder)
    text = yaml.safe_load((folder / "scene.yaml").read_text())
    text["split"] = {"kind": "random", "train": 0.3}
    (folder / "scene.yaml").write_text(yaml.safe_dump(text))
    forest = {
        "scene": "scene.yaml",
        "model": {"name": "forest", "trees": 2},
        "pixel_maps": {"default": {"kind": "none"}},
    }
    (folder / "forest.yaml").write_text(yaml.safe_dump(forest))
    net = {
        "scene": "scene.yaml",
        "model": {"name": "two_branch", "view": 5, "width": 4},
        "samples": {"windows": 64},
        "training": {"epochs": 1, "precision": "float32", "accelerator": "cpu"},
    }
    (folder / "net.yaml").write_text(yaml.safe_dump(net))
    published = {"block_split": {"size": 16}, "figures": [FIGURE]}
    (folder / "published.yaml").write_text(yaml.safe_dump(published))
    return folder


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs are trained in this process; gives their folders in order."""
    done: list[str] = []

    def in_process(path: Path, runs: Sequence[Member], *, quiet: bool, report: Callable[[str], None]) -> None:
        for one in runs:
            if not one.ended:
                train(one.recipe, progress=False)
                done.append("/".join(one.run.parts[-3:]))

    monkeypatch.setattr(module, "train_series", in_process)
    # Half of a small run's time goes into its pictures.
    monkeypatch.setattr(sys.modules["landfuse.training.train"], "save", lambda *_: None)
    return done


def test_the_table_holds_both_splits_and_what_is_published(home: Path, tmp_path: Path, trained: list[str]) -> None:
    out = tmp_path / "out"
    result = reproduce(home, ["forest", "net"], 2, folder=out)
    assert [(row.method, row.split, row.n) for row in result.rows] == [
        ("forest", "official", 2), ("net", "official", 2), ("forest", "blocks", 2), ("net", "blocks", 2),
        ("Somebody's | net", "random", 0),
    ]  # fmt: skip
    leaks = {(row.method, row.split): row.leak for row in result.rows}
    assert leaks["net", "official"] > 0.9  # type: ignore[operator]
    assert leaks["net", "blocks"] == leaks["forest", "blocks"] == 0
    scores = [json.loads((out / f"blocks/forest/seed-{seed}/scores.json").read_text())["test"]["OA"] for seed in (0, 1)]
    reported = result.rows[2].scores["OA"]
    assert reported.mean == pytest.approx(np.mean(scores))
    assert reported.std == pytest.approx(np.std(scores, ddof=1))
    published = result.rows[-1]
    assert (published.scores["OA"].mean, published.scores["OA"].std) == pytest.approx((0.915, 0.004))
    assert cell(published.scores["OA"]) == "91.50 ± 0.40"
    assert cell(published.scores["kappa"]) == "88.00"
    assert cell(published.scores["AA"]) == "–"
    assert published.source == "Somebody 2024, doi 10.1/2"
    assert result.notes[0] == "blocks: squares of 16 px, 7 px without a role around those that test or validate"
    recipe = json.loads((out / "blocks/net/seed-1/recipe.json").read_text())
    assert recipe["split"] == {"kind": "blocks", "buffer": 7, "size": 16, "test": 0.5, "seed": 0}
    lines = (out / "table.md").read_text().splitlines()
    assert sum(line.startswith("|") for line in lines) == 7
    assert "| Somebody's / net | a + b | random | – | – | 91.50 ± 0.40 |" in "\n".join(lines)
    table = json.loads((out / "table.json").read_text())
    assert table["rows"][-1]["scores"]["AA"] == {"mean": None, "std": None}
    assert (out / "official" / "comparison.json").exists()
    assert (out / "blocks" / "runs.csv").exists()


def test_it_goes_on_where_it_stopped(
    home: Path, tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    working = module.train_series

    def broken(path: Path, runs: Sequence[Member], **more: Any) -> None:
        if runs[0].run.parts[-3] == "blocks":
            raise ModelError("the power is gone", "power", "wait")
        working(path, runs, **more)

    with monkeypatch.context() as patched:
        patched.setattr(module, "train_series", broken)
        with pytest.raises(ModelError):
            reproduce(home, ["forest"], 2, folder=tmp_path / "out")
    assert trained == ["official/forest/seed-0", "official/forest/seed-1"]
    assert not (tmp_path / "out" / "table.md").exists()
    first = reproduce(home, ["forest"], 2, folder=tmp_path / "out")
    assert trained[2:] == ["blocks/forest/seed-0", "blocks/forest/seed-1"]
    again = reproduce(home, ["forest"], 2, folder=tmp_path / "out")
    assert len(trained) == 4
    assert again.rows[0].scores == first.rows[0].scores


def test_a_split_by_tiles_is_the_only_one(home: Path, tmp_path: Path) -> None:
    text = yaml.safe_load((home / "scene.yaml").read_text())
    text["split"] = {"kind": "tiles", "test_tiles": ["chequers"]}
    (home / "scene.yaml").write_text(yaml.safe_dump(text))
    splits, notes = plan(home, ["forest"], 1, folder=tmp_path / "out")
    assert list(splits) == ["official"]
    assert "only one" in notes[0]


def test_a_split_by_blocks_that_does_not_leak_is_the_only_one(home: Path, tmp_path: Path) -> None:
    text = yaml.safe_load((home / "scene.yaml").read_text())
    text["split"] = {"kind": "blocks", "size": 8, "buffer": 2}
    (home / "scene.yaml").write_text(yaml.safe_dump(text))
    assert list(plan(home, ["net"], 1, folder=tmp_path / "a")[0]) == ["official"]
    assert list(plan(home, ["net"], 1, ["model.view=7"], folder=tmp_path / "b")[0]) == ["official", "blocks"]


def test_all_folds_of_a_split_are_taken(home: Path, tmp_path: Path) -> None:
    text = yaml.safe_load((home / "scene.yaml").read_text())
    text["split"] = {"kind": "blocks", "size": 8, "buffer": 2, "folds": 3}
    (home / "scene.yaml").write_text(yaml.safe_dump(text))
    splits, _ = plan(home, ["net"], 2, folder=tmp_path / "a")
    assert [one.run.name for one in splits["official"]["net"]] == [
        f"fold-{f}-seed-{s}" for f in range(3) for s in (0, 1)
    ]
    splits, _ = plan(home, ["net"], 2, ["split.fold=1"], folder=tmp_path / "b")
    assert [one.run.name for one in splits["official"]["net"]] == ["seed-0", "seed-1"]


def test_what_is_wrong_is_reported(home: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="has no recipe tree"):
        plan(home, ["forest", "tree"], 1)
    with pytest.raises(SettingsError, match="at least one seed"):
        plan(home, ["forest"], 0)
    (home / "b.tif").unlink()
    with pytest.raises(MissingFileError, match=r"b\.tif") as caught:
        plan(home, ["forest"], 1)
    assert "landfuse fetch" in str(caught.value)
    (home / "published.yaml").write_text("figures: [{method: x, scores: {OA: [1, 2, 3]}, sauce: y}]")
    with pytest.raises(LandfuseError, match="did you mean `source`"):
        read_published(home)


@pytest.mark.parametrize("name", sorted(places()))
def test_published_figures_name_their_source(name: str) -> None:
    for figure in read_published(places()[name]).figures:
        assert any(word in figure.source for word in ("doi 10.", "arXiv ")), figure.method
        assert figure.scores
        assert all(0 < value[0] <= 100 for value in figure.scores.values())
