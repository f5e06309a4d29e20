"""Comparisons of runs against plain loops; what must not be compared is refused; files only grow."""

from __future__ import annotations

import csv
import itertools
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from landfuse.accuracy.confusion import Confusion
from landfuse.errors import (
    BundleError,
    LandfuseError,
    MissingFileError,
    OutputError,
    SceneError,
    SettingsError,
    SplitError,
)
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.studies.compare import Comparison, compare, sign_flip, spread
from landfuse.studies.tables import save, to_latex
from landfuse.training.run import find_runs, read_run

GRID = Grid(4, 5, (1.0, 0, 0, 0, -1.0, 0), "EPSG:32632")
NAMES = ["oak & ash", "grass"]

Made = Callable[..., Path]


def confusion(seed: int) -> Confusion:
    return Confusion(2, np.random.default_rng(seed).integers(1, 50, (2, 2)))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Writes a run folder as training leaves it; roles differ by fold, scores by `draw`."""

    def run(name: str, *, fold: int = 0, seed: int = 0, draw: int = 0, ended: bool = True, **changes: Any) -> Path:
        folder = tmp_path / name
        recipe = {
            "scene": changes.get("scene", str(tmp_path / "scene.yaml")),
            "model": changes.get("model", {"name": "two_branch", "view": 7}),
            "training": {"seed": seed, "epochs": changes.get("epochs", 5)},
            "split": {"fold": fold},
            "run": str(folder),
        }
        folder.mkdir(parents=True)
        (folder / "recipe.json").write_text(json.dumps(recipe))
        if not ended:
            return folder
        counts = changes.get("confusion", confusion(draw))
        scores = {
            "test": counts.scores(),
            "classes": counts.per_class(NAMES),
            "parameters": 1234567,
            "training_seconds": 10.0 + draw,
            "test_mapping_seconds": 1.0,
            "peak_memory_bytes": 2**30,
            "leak_share": 0.0,
        }
        (folder / "scores.json").write_text(json.dumps(scores))
        bundle = {
            "landfuse": "0.1.0",
            "legend": [
                {"name": name, "code": code, "colour": "#000000", "scored": name not in changes.get("unscored", ())}
                for code, name in enumerate(changes.get("names", NAMES))
            ],
            "modalities": {name: {} for name in changes.get("modalities", ("a", "b"))},
        }
        (folder / "bundle").mkdir()
        (folder / "bundle" / "model.json").write_text(json.dumps(bundle))
        roles: NDArray[np.uint8] = np.full((4, 5), 1, np.uint8)
        roles[changes.get("tested", fold)] = 3
        for tile in ("t1", "t2"):
            write_raster(folder / "split" / f"{tile}.tif", GRID, roles, nodata=0)
        return folder

    (tmp_path / "scene.yaml").write_text("name: a scene\n")
    return run


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_the_sign_flip_test_is_that_of_a_plain_loop(count: int) -> None:
    d = np.random.default_rng(count).normal(0.4, 1, count).tolist()
    found = abs(math.fsum(d))
    choices = list(itertools.product((1, -1), repeat=count))
    as_far = sum(abs(math.fsum(s * x for s, x in zip(signs, d, strict=True))) >= found - 1e-12 for signs in choices)
    assert sign_flip(d) == as_far / len(choices)


def test_the_sign_flip_test_holds_its_level() -> None:
    assert sign_flip([0.1] * 5) == 2 / 32, "the least that five pairs can say"
    assert sign_flip([0.0, 0.0]) == 1
    assert sign_flip([0.3, -0.1, -0.2]) == 1, "sums that differ by rounding only are alike"
    assert math.isnan(sign_flip([]))
    rng = np.random.default_rng(0)
    p = np.array([sign_flip(rng.normal(size=8)) for _ in range(2000)])
    for level in (0.05, 0.2, 0.5):
        assert (p <= level).mean() == pytest.approx(level, abs=0.03)
    long = rng.normal(0.15, 1, 40)
    assert sign_flip(long) == pytest.approx(sign_flip_by_normal(long), abs=0.02)


def sign_flip_by_normal(d: NDArray[np.float64]) -> float:
    return math.erfc(abs(d.sum()) / math.sqrt(2 * (d**2).sum()))


def test_spread() -> None:
    values = [0.1, 0.5, 0.7]
    assert spread([*values, None, math.nan]) == spread(values)
    assert spread(values).mean == pytest.approx(statistics.mean(values))
    assert spread(values).std == pytest.approx(statistics.stdev(values))
    assert math.isnan(spread([1.0]).std)
    assert spread([None]).n == 0
    assert not spread([0.1]).interval.known


def three_recipes(made: Made) -> Comparison:
    """Two recipes with three folds of two seeds each, and a third with fewer."""
    for fold, seed in itertools.product(range(3), range(2)):
        for number, name in enumerate(("first", "second")):
            made(
                f"{name}/fold-{fold}-seed-{seed}",
                fold=fold,
                seed=seed,
                draw=100 * number + 10 * fold + seed,
                model={"name": "two_branch", "view": 7, **({"width": 32} if number else {})},
            )
    alone = [made(f"alone-{seed}", seed=seed, draw=500 + seed, modalities=("b",)) for seed in range(2)]
    root = alone[0].parent
    return compare([root / "first", root / "second", *alone])


def test_recipes_are_reported_with_mean_and_spread_over_their_runs(made: Made) -> None:
    result = three_recipes(made)
    assert [recipe.name for recipe in result.recipes] == [
        "two_branch a + b",
        "two_branch a + b model.width=32",
        "two_branch b",
    ]
    assert [len(recipe.runs) for recipe in result.recipes] == [6, 6, 2]
    draws = [10 * fold + seed for fold in range(3) for seed in range(2)]
    for number in range(2):
        counts = [confusion(100 * number + draw) for draw in draws]
        for score in ("OA", "AA", "kappa", "mF1", "mIoU"):
            values = [one.scores()[score] for one in counts]
            assert result.recipes[number].scores[score].mean == pytest.approx(statistics.mean(values))
            assert result.recipes[number].scores[score].std == pytest.approx(statistics.stdev(values))
        assert result.recipes[number].f1["grass"].mean == pytest.approx(statistics.mean(c.f1[1] for c in counts))
        assert result.recipes[number].iou["oak & ash"].std == pytest.approx(statistics.stdev(c.iou[0] for c in counts))
    assert result.recipes[0].costs["training_seconds"].mean == 10 + statistics.mean(draws)


def test_folds_are_paired_and_seeds_averaged_within(made: Made) -> None:
    result = three_recipes(made)
    second, alone = result.differences
    assert (second.unit, second.runs, second.scores["OA"].n) == ("fold", 6, 3)
    by_fold = [
        statistics.mean(
            confusion(100 + 10 * fold + seed).overall_accuracy - confusion(10 * fold + seed).overall_accuracy
            for seed in range(2)
        )
        for fold in range(3)
    ]
    assert second.scores["OA"].mean == pytest.approx(statistics.mean(by_fold))
    assert second.scores["OA"].std == pytest.approx(statistics.stdev(by_fold))
    assert second.p["OA"] == sign_flip(by_fold)
    assert (alone.unit, alone.runs, alone.scores["kappa"].n) == ("seed", 2, 2)
    by_seed = [confusion(500 + seed).kappa - confusion(seed).kappa for seed in range(2)]
    assert alone.scores["kappa"].mean == pytest.approx(statistics.mean(by_seed))
    assert any("differences use the common ones" in note for note in result.notes)


def test_a_class_that_a_fold_lacks_is_averaged_over_the_others(made: Made) -> None:
    runs = [
        made("one", fold=0, confusion=Confusion(2, np.array([[8, 2], [0, 0]]))),
        made("two", fold=1, confusion=Confusion(2, np.array([[8, 2], [5, 5]]))),
    ]
    [recipe] = compare(runs).recipes
    assert recipe.f1["grass"].n == 1
    assert recipe.f1["grass"].mean == pytest.approx(10 / 17)
    assert recipe.f1["oak & ash"].n == 2


def test_a_setting_that_came_later_does_not_set_runs_apart(made: Made) -> None:
    old = made("old")
    new = made("new", seed=1)
    recipe = json.loads((new / "recipe.json").read_text())
    recipe["samples"] = {"balanced": False}
    recipe["model"]["dropout"] = 0.3
    (new / "recipe.json").write_text(json.dumps(recipe))
    assert len(compare([old, new]).recipes) == 1


def test_what_must_not_be_compared_is_refused(made: Made, tmp_path: Path) -> None:
    first = made("first")
    cases: list[tuple[type[LandfuseError], str, dict[str, Any]]] = [
        (SettingsError, r"has the classes oak \(0\), grass \(1\)", {"names": ["oak", "grass"]}),
        (SettingsError, r"leave out grass(.|\n)*leaves out: none", {"unscored": ["grass"]}),
        (SceneError, r"is of the scene .*elsewhere", {"scene": str(tmp_path / "elsewhere.yaml")}),
        (SplitError, r"of different splits: no roles of pixels in common", {"tested": 2, "epochs": 9}),
        (SettingsError, r"first and .*twin are of one recipe, split and seed", {}),
    ]
    for number, (kind, message, change) in enumerate(cases):
        other = made(f"other{number}" if change else "twin", **change)
        with pytest.raises(kind, match=message):
            compare([first, other])
    (tmp_path / "elsewhere.yaml").write_text("name: a scene\n")
    assert len(compare([first, made("copy", seed=3, scene=str(tmp_path / "elsewhere.yaml"))]).recipes) == 1
    with pytest.raises(MissingFileError, match="there is no folder"):
        compare([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="holds no run"):
        compare([tmp_path / "empty"])
    (first / "bundle" / "model.json").unlink()
    with pytest.raises(BundleError, match="holds no bundle"):
        read_run(first)
    (first / "bundle" / "model.json").write_text("{")
    with pytest.raises(SettingsError, match="cannot be read"):
        read_run(first)


def test_runs_that_have_not_ended_are_reported_and_left_out(made: Made, tmp_path: Path) -> None:
    ended, other = made("series/seed-0"), made("series/seed-1", seed=1, ended=False)
    (tmp_path / "log.txt").write_text("beside the runs")
    assert find_runs([tmp_path / "series", ended, tmp_path / "log.txt"]) == ([ended], [other])
    result = compare([tmp_path / "series"])
    assert len(result.recipes[0].runs) == 1
    assert result.notes == (f"{other} has not ended; it is left out",)
    with pytest.raises(OutputError, match="no run has ended yet"):
        compare([other])


def test_other_test_pixels_are_reported(made: Made) -> None:
    few = Confusion(2, np.array([[1, 0], [0, 1]]))
    result = compare([made("first"), made("second", epochs=7, confusion=few)])
    assert "not the same test pixels" in result.notes[0]


def test_files_hold_it_and_are_never_overwritten(made: Made, tmp_path: Path) -> None:
    result = three_recipes(made)
    out = tmp_path / "out"
    paths = save(result, out)
    assert [path.name for path in paths] == [f"comparison.{e}" for e in ("json", "csv", "tex", "png")]
    reported = json.loads(paths[0].read_text())
    assert reported["recipes"][0]["scores"]["OA"]["mean"] == result.recipes[0].scores["OA"].mean
    assert reported["recipes"][1]["classes"][0]["class"] == "oak & ash"
    assert reported["differences"][0]["scores"]["OA"]["p"] == result.differences[0].p["OA"]
    assert paths[3].read_bytes().startswith(b"\x89PNG")
    half = 4.302653 * result.differences[0].scores["OA"].std / 3**0.5  # Student's t of 3 folds
    ends = [reported["differences"][0]["scores"]["OA"][end] for end in ("low", "mean", "high")]
    assert ends == pytest.approx([ends[1] - half, ends[1], ends[1] + half])
    rows = list(csv.DictReader(paths[1].read_text().splitlines()))
    assert [row["recipe"] for row in rows] == [recipe.name for recipe in result.recipes]
    assert float(rows[1]["mF1_std"]) == result.recipes[1].scores["mF1"].std
    assert float(rows[1]["OA_difference"]) == result.differences[0].scores["OA"].mean
    assert rows[0]["OA_p"] == ""
    ledger = (out / "runs.csv").read_text()
    assert len(ledger.splitlines()) == 1 + 14

    before = {path: path.read_bytes() for path in out.iterdir()}
    assert save(result, out) == paths, "the same again"
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    further = compare([tmp_path / "alone-0", made("late", seed=7, draw=9, modalities=("b",))])
    assert save(further, out)[0].name == "comparison-2.json"
    assert all(path.read_bytes() == content for path, content in before.items() if path.name != "runs.csv")
    assert (out / "runs.csv").read_text().startswith(ledger)
    assert len((out / "runs.csv").read_text().splitlines()) == 1 + 15


def test_the_latex_table_has_a_row_per_recipe(made: Made) -> None:
    lines = to_latex(three_recipes(made)).splitlines()
    body = lines[lines.index("\\midrule") + 1 : lines.index("\\bottomrule")]
    assert [line.count("&") for line in body] == [7, 7, 7]
    mean, std = (f"{100 * f([confusion(10 * k + s).overall_accuracy for k in range(3) for s in range(2)]):.1f}"
                 for f in (statistics.mean, statistics.stdev))  # fmt: skip
    assert body[0].startswith(rf"two\_branch a + b & 6 & ${mean} \pm {std}$ & ")
    assert body[0].endswith(r"1\,234\,567 \\")
