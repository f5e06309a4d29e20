"""A recipe with several seeds and folds: which runs, in which folders, and what is not done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from landfuse.errors import ModelError, OutputError, SettingsError
from landfuse.studies import series as series_module
from landfuse.studies.series import members, numbers, train_series
from landfuse.training.train import train


@pytest.fixture
def recipe(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe of a small forest, run from `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    text = {
        "scene": str(place / "scene.yaml"),
        "model": {"name": "forest", "trees": 3},
        "split": {"kind": "blocks", "size": 8, "folds": 3, "validation": 0.2},
        "run": "runs/it",
    }
    (tmp_path / "forest.yaml").write_text(yaml.safe_dump(text))
    return tmp_path / "forest.yaml"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Trains in this process instead of one of its own; gives what was asked for."""
    asked: list[list[str]] = []

    def run(words: list[str]) -> int:
        asked.append(words)
        path, *assignments = words
        train(path, *assignments, progress=False)
        return 0

    monkeypatch.setattr(series_module, "_run", run)
    return asked


def test_numbers() -> None:
    assert numbers("0..4", "--seeds") == [0, 1, 2, 3, 4]
    assert numbers("0-4,9", "--seeds") == [0, 1, 2, 3, 4, 9]
    assert numbers("0,3,5", "--seeds") == [0, 3, 5]
    assert numbers("0..2, 7", "--seeds") == [0, 1, 2, 7]
    for wrong in ("", "a", "3..1", "-1", "0..", "1,,2", "0..99999", "1.5"):
        with pytest.raises(SettingsError, match=r"--folds is `(.|\n)*0\.\.4 or 0,3,5"):
            numbers(wrong, "--folds")
    with pytest.raises(SettingsError, match="twice"):
        numbers("1..3,2", "--seeds")


def test_each_run_has_its_folder_and_recipe(recipe: Path) -> None:
    both = members(recipe, ["model.trees=4"], seeds=[0, 5], folds=[0, 2])
    assert [str(one.run) for one in both] == [f"runs/it/fold-{fold}-seed-{seed}" for fold in (0, 2) for seed in (0, 5)]
    for one, (fold, seed) in zip(both, [(0, 0), (0, 5), (2, 0), (2, 5)], strict=True):
        assert one.recipe.split is not None
        assert one.recipe.split["fold"] == fold
        assert one.recipe.split["size"] == 8
        assert one.recipe.training.seed == seed
        assert one.recipe.model["trees"] == 4
        assert one.recipe.run == str(one.run)
    assert [str(one.run) for one in members(recipe, ["run=x"], seeds=[3])] == ["x/seed-3"]
    assert [str(one.run) for one in members(recipe, folds=[1])] == ["runs/it/fold-1"]
    with pytest.raises(SettingsError, match="`fold` is 3, but the folds are 0 to 2"):
        members(recipe, folds=[0, 3])


def test_a_series_goes_on_and_repeats_nothing(recipe: Path, here: list[list[str]], monkeypatch: Any) -> None:
    runs = members(recipe, seeds=[0, 1, 2])
    said: list[str] = []
    working = series_module._run
    monkeypatch.setattr(series_module, "_run", lambda words: working(words) if "seed-0" in words[-1] else 2)
    with pytest.raises(ModelError, match=r"seed-1 did not end(.|\n)*repeat the same command"):
        train_series(recipe, runs, report=said.append)
    assert [one.ended for one in runs] == [True, False, False]
    monkeypatch.setattr(series_module, "_run", working)
    train_series(recipe, runs, report=said.append)
    assert len(here) == 3
    assert said[-3:] == [
        "run 1 of 3: runs/it/seed-0 has ended before",
        "run 2 of 3: runs/it/seed-1",
        "run 3 of 3: runs/it/seed-2",
    ]
    seeds = [json.loads((one.run / "recipe.json").read_text())["training"]["seed"] for one in runs]
    assert seeds == [0, 1, 2]
    train_series(recipe, runs)
    assert len(here) == 3, "nothing was left to do"
    train(recipe, f"run={runs[0].run}", "training.seed=0", progress=False)  # an ordinary run: this is its command
    with pytest.raises(OutputError, match=r"another recipe; they differ in model\.trees"):
        members(recipe, ["model.trees=9"], seeds=[7, 0])
    with pytest.raises(OutputError, match="holds a single run"):
        members(recipe, ["run=runs/it/seed-0"], seeds=[0])


def command(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "landfuse.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_the_command_trains_and_compares(recipe: Path, here: list[list[str]]) -> None:
    """One run is there already, the other is trained by a process of its own."""
    first = members(recipe, seeds=[0])
    train_series(recipe, first)
    running = command("train", recipe, "--seeds", "0,1")
    out, err = running.communicate(timeout=100)
    assert running.returncode == 0, err
    assert "run 1 of 2: runs/it/seed-0 has ended before" in out
    assert "forest a + b" in out
    assert "F1 of each class" in out
    scores = [json.loads(Path(f"runs/it/seed-{n}/scores.json").read_text()) for n in (0, 1)]
    mean = sum(one["test"]["OA"] for one in scores) / 2
    assert f"{mean:.3f} ±" in out
    assert scores[0]["test"] != scores[1]["test"]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_run_ends_with_the_command_that_started_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = {}

    def start(words: list[str], **options: Any) -> Any:
        started.update(options)
        return SimpleNamespace(wait=lambda: 0)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", start)
        series_module._run([])
    os.mkfifo(tmp_path / "scene.yaml")  # reading it takes for ever
    words = [sys.executable, "-m", "landfuse.cli", "check", str(tmp_path / "scene.yaml")]
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of what a shell starts in the background
    try:
        run = subprocess.Popen(words, **started)
    finally:
        signal.signal(signal.SIGINT, ignored)
    with (tmp_path / "scene.yaml").open("wb"):  # once it is open at both ends
        assert run.stdin is not None
        run.stdin.close()  # as the system does
        assert run.wait(timeout=60) == 130


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_control_c_reaches_the_run(recipe: Path) -> None:
    model = "model={name: two_branch, view: 3, width: 4}"
    running = command("train", recipe, "--seeds", "0..2", model, "training.epochs=3000", "training.patience=null", "-q")
    metrics = Path("runs/it/seed-0/metrics.csv")
    while running.poll() is None and not metrics.exists():
        time.sleep(0.1)
    os.kill(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=100)
    assert running.returncode == 130, err
    assert "Traceback" not in err
    assert (metrics.parent / "checkpoints" / "last.ckpt").exists()
    assert not Path("runs/it/seed-1").exists()
