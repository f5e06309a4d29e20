"""The scripts of `benchmarks/few_labels` run with a recipe, with a denoiser, and with the candidates of guidance."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from landfuse.scenes.split_rules import TEST, TRAIN, VALIDATION

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "few_labels"
RECIPE = """
scene: scene.yaml
pretrain: {base: 8, steps: 2, batch: 2, crop: 8}
features: {tile: 96, overlap: 16}
model: {name: bdgf, view: 3, width: 8, embedding: 8, heads: 2, branches: [cnn]}
samples: {windows: 16, batch: 8}
training: {epochs: 1, accelerator: cpu, precision: float32}
mapping: {batch: 512}
"""


@pytest.fixture
def few_labels(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Runs a script of the folder on the small scene, in an empty folder; returns the lines that it wrote."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANDFUSE_CACHE", str(tmp_path / "cache"))
    known = set(sys.modules)
    run = importlib.import_module("run")
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setitem(run.SCENES, place.name, ("a", "b"))
    shutil.copytree(place, tmp_path / place.name)
    (tmp_path / place.name / "bdgf.yaml").write_text(RECIPE)

    def started(name: str, *words: object) -> list[dict[str, Any]]:
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [name, *map(str, words), "--out", f"{name}.jsonl"])
        module.main()
        return [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()]

    yield started
    for name in {"run", "guides", "denoisers"} - known:
        sys.modules.pop(name, None)


def test_a_recipe_and_the_probes_of_its_denoiser_learn_from_the_same_draws(
    few_labels: Callable[..., Any], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("--scenes", place.name, "--labels", 3)
    recipe = ("--recipe", "bdgf=bdgf.yaml", "--set", "model.embedding=4")
    lines = few_labels("run", *own, "--draws", 1, "--methods", "", *recipe)
    trained = Path(f"runs/few_labels/{place.name}-bdgf-3-0")
    test = json.loads((trained / "scores.json").read_text())["test"]
    assert [line["OA"] for line in lines] == [test["OA"]]
    assert json.loads((trained / "recipe.json").read_text())["model"]["embedding"] == 4

    methods = ("forest", "probe", "probe-untrained")
    lines = few_labels(
        "run", *own, "--draws", 2, "--methods", ",".join(methods), "--denoiser", f"{place.name}={trained}"
    )
    found = {(line["method"], line["draw"]): line for line in lines}
    assert set(found) == {("bdgf", 0), *((method, draw) for method in methods for draw in (0, 1))}
    assert {line["pixels"] for line in lines} == {test["pixels"]}  # every method on the same test pixels
    assert found["probe", 0]["OA"] != found["probe-untrained", 0]["OA"]
    assert "| `probe` |" in capsys.readouterr().out

    roles = importlib.import_module("run").Place(place.name)
    drawn, whole = roles.drawn(3, 1)[0], roles.roles(1)[0]
    labels = roles.scenes[0].labels
    assert np.array_equal(np.bincount(labels[drawn == TRAIN], minlength=4)[:4], [3, 3, 3, 3])
    assert not (drawn == VALIDATION).any()
    assert np.array_equal(drawn == TEST, whole == TEST)
    assert (whole[drawn == TRAIN] == TRAIN).all()

    own = ("--scene", place.name, "--labels", 3, "--draws", 1, "--steps", 2, "--every", 7)
    tried = "none,full,whitened,timesteps-mean,head,member,hide,probe,none+probe"
    lines = few_labels("guides", *own, "--candidates", tried, "--denoiser", trained)
    assert [line["method"] for line in lines] == tried.split(",")
    assert {line["pixels"] for line in lines} == {-(-test["pixels"] // 7)}
    logits = [
        np.load(f"guides/{place.name}-{one}-3-0.npy").astype(np.float32) for one in ("none", "probe", "none+probe")
    ]
    none, probe = (np.exp(own) / np.exp(own).sum(axis=1, keepdims=True) for own in logits[:2])
    assert np.allclose(logits[2], (none + probe) / 2, atol=1e-3)

    module = importlib.import_module("denoisers")
    sys.argv = ["denoisers", place.name, str(trained), "--labels", "3", "--draws", "2"]
    module.main()
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    probes = [found["probe", draw]["OA"] for draw in (0, 1)]
    assert row[3].split()[0] == f"{np.mean(probes):.3f}"  # with all modalities it is the probe of `run.py`
