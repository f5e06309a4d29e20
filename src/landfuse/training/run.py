"""The run folder: claiming it for a recipe, the facts of the machine that fills it, and the one reader of runs.

Nothing here needs torch, so that runs are compared and reported where it is not installed.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pydantic

from landfuse.errors import BundleError, MissingFileError, OutputError, SettingsError
from landfuse.files import to_json, whole_file, write_text
from landfuse.legend import nfc
from landfuse.mapping.memory import in_bytes
from landfuse.markup import percent, table
from landfuse.models import SETTINGS
from landfuse.rasters.geotiff import GdalRaster
from landfuse.settings import parse
from landfuse.training.recipe import ARRAYS, Recipe

_LEARNT = (
    "bundle",
    "checkpoints",
    "confusion.csv",
    "cross_validation",
    "folds",
    "metrics.csv",
    "scores.json",
    "tensorboard",
)
"""What training writes into the run folder."""

log = logging.getLogger("landfuse")


def claim(run: Path, recipe: Recipe) -> bool:
    """Makes the run folder (true), or finds that it already holds the same recipe (false).

    Raises:
        OutputError: if it cannot be made or written, or holds a run of another recipe.
    """
    known = run / "recipe.json"
    text = recipe.to_json()
    if known.exists():
        before, now = _with_defaults(_json(known) or {}), _with_defaults(json.loads(text))
        if before.get("run") and Path(str(before["run"])).resolve() == run.resolve():
            before["run"] = now["run"]  # one folder, spelt in two ways
        differing = sorted(
            key for key in {*_flat(before), *_flat(now)} if _flat(before).get(key) != _flat(now).get(key)
        )
        if differing:
            raise OutputError(
                f"{run} holds a run of another recipe; they differ in {', '.join(differing[:6])}",
                "an empty folder, or the same recipe, to continue it",
                "choose another folder by run=..., or remove this one",
            )
        return False
    others = [name for name in _LEARNT if (run / name).exists()]
    if others:
        raise OutputError(
            f"{run} holds {' and '.join(others)}, but no recipe.json: it is no run, and they would be replaced",
            "an empty folder, or that of a run",
            "choose another folder by run=...",
        )
    write_text(known, text)
    return True


def release(run: Path) -> None:
    """Undoes `claim` and what a start leaves, where nothing was learnt: a corrected recipe may use the folder."""
    for name in ("inputs.json", "metrics.csv", "recipe.json"):
        (run / name).unlink(missing_ok=True)
    for name in ("checkpoints", "tensorboard"):
        shutil.rmtree(run / name, ignore_errors=True)


def remember(run: Path, learnt: Mapping[str, str]) -> None:
    """Notes what a run learns from, or compares it with what was noted.

    Raises:
        OutputError: naming what has changed since.
    """
    place = run / "inputs.json"
    noted = _json(place)
    if noted is None and ((run / "scores.json").exists() or (run / "checkpoints").exists()):
        log.warning("%s is of an earlier landfuse: whether its data have changed since is not checked", run)
    elif noted is None:
        write_text(place, to_json(learnt))
    elif noted != learnt:
        changed = [name for name in dict.fromkeys([*learnt, *noted]) if learnt.get(name) != noted.get(name)]
        shown = ", ".join(changed[:6]) + (f" and {len(changed) - 6} more" if len(changed) > 6 else "")
        raise OutputError(
            f"{run} holds a run that was trained on other data: since then {shown} changed",
            "the data that it was trained on",
            "train again there by --restart, which deletes that run; or choose another folder by run=...",
        )


def clear(run: Path) -> None:
    """Deletes what a run has written into its folder, that it may start again; nothing where it holds no run."""
    if (run / "recipe.json").exists():
        for name in ("scores.json", "inputs.json", "confusion.csv", "environment.json", "pretrain.csv"):
            (run / name).unlink(missing_ok=True)
        for name in ("bundle", "cross_validation", "denoiser", "folds", "split"):
            shutil.rmtree(run / name, ignore_errors=True)
        release(run)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        key: item for name, value in values.items() for key, item in _flat(value, f"{prefix}.{name}".strip(".")).items()
    }


def environment() -> dict[str, str]:
    """Versions and hardware."""
    import torch

    packages = ("landfuse", "torch", "lightning", "timm", "numpy", "rasterio", "scikit-learn")
    return {
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "command": " ".join(sys.argv),
    }


def peak_memory() -> int:
    """Peak resident memory of this process, bytes; 0 on Windows, which does not report it."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024  # Linux counts in KiB


def memory_words() -> str:
    """The most memory that this process took until now, and of its GPU, in words."""
    torch = sys.modules.get("torch")
    gpu = torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_available() else 0
    return f"{in_bytes(peak_memory())} of memory" + (f" and {in_bytes(gpu)} of the GPU's" if gpu else "")


Key = tuple[str, int]
"""What pairs two runs: the digest of the split, and the seed of training."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        folder: of the run.
        recipe: the recipe with all defaults, those of its model too.
        scores: the content of `scores.json`; `leak_share`, the key of older runs, is read as `leak_fraction`.
        bundle: the content of the bundle's `model.json`.
        environment: versions and hardware; empty where it was not kept.
        withheld: the content of `modalities.json`; None where there is none.
    """

    folder: Path
    recipe: Mapping[str, Any] = field(repr=False)
    scores: Mapping[str, Any] = field(repr=False)
    bundle: Mapping[str, Any] = field(repr=False)
    environment: Mapping[str, Any] = field(repr=False)
    withheld: Mapping[str, Any] | None = field(repr=False)

    @property
    def scene(self) -> Path:
        """The scene file; of a run that was fitted to arrays, which has none, the word that stands for them."""
        scene = str(self.recipe["scene"])
        return Path(scene) if scene.startswith(ARRAYS) else (self.folder / scene).resolve()

    @property
    def legend(self) -> tuple[tuple[str, int], ...]:
        """(name, code) of every class."""
        return tuple((nfc(c["name"]), int(c["code"])) for c in self.bundle["legend"])

    @property
    def unscored(self) -> tuple[str, ...]:
        """Names of the classes that do not enter the means."""
        return tuple(c["name"] for c in self.bundle["legend"] if not c.get("scored", True))

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that the model was trained on, in its order."""
        return tuple(self.bundle["modalities"])

    @property
    def seed(self) -> int:
        """The seed of training."""
        return int(self.recipe.get("training", {}).get("seed", 0))

    @property
    def key(self) -> Key:
        """What pairs it with a run of another recipe."""
        return self.split, self.seed

    @property
    def scored_on(self) -> str:
        """What its scores were measured on, in words."""
        return self.cross_validated or "test split"

    @property
    def cross_validated(self) -> str:
        """How a run whose model learnt from all labels was scored, in words; empty for others."""
        return str((self.scores.get("cross_validation") or {}).get("measured", ""))

    @property
    def settings(self) -> dict[str, Any]:
        """The recipe as `a.b` -> value, without folder, scene's path, seeds and fold: equal in runs of one recipe."""
        flat = dict(_flat(self.recipe))
        for name in ("run", "scene", "training.seed", "split", "split.fold", "split.seed"):
            flat.pop(name, None)
        return flat

    @property
    def history(self) -> list[dict[str, float]]:
        """Loss and validation scores, a row per epoch; empty where training has no epochs."""
        return read_history(self.folder / "metrics.csv")

    def _repr_html_(self) -> str:
        test, model = self.scores["test"], self.recipe["model"]["name"]
        caption = f"Run {self.folder.name}: {model} of {', '.join(self.modalities)}"
        names = [name for name in ("OA", "AA", "kappa", "mF1", "mIoU") if test.get(name) is not None]
        leak = self.scores.get("leak_fraction")
        rows = [(name, f"{test[name]:.3f}") for name in names]
        rows.append(("test pixels", f"{test.get('pixels', 0):,.0f}"))
        if leak is not None:
            rows.append(("leak fraction", percent(leak)))
        return table(caption, ("score", self.scored_on), rows)

    @property
    def calibration_leak(self) -> dict[int, float]:
        """View of the model, px -> the fraction of calibration pixels that leak into it; nothing without any."""
        leak = self.scores.get("calibration_leak_fraction")
        return {} if leak is None else {self.bundle["tiling"]["view"]: leak}

    @cached_property
    def split(self) -> str:
        """SHA-256 over the names and roles of all tiles; runs with the same one use the same pixels in each role.

        Raises:
            OutputError: if the folder `split` is missing or broken.
        """
        files = sorted(self.folder.glob("folds/*/split/*.tif" if self.cross_validated else "split/*.tif"))
        if not files:
            raise OutputError(
                f"the run {self.folder} holds no split", "the roles, a raster per tile in `split`", "copy it again"
            )
        digest = hashlib.sha256()
        for file in files:
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            if content not in _ROLES:  # the runs of a fold hold the same files: each is decoded once
                roles = GdalRaster(str(file), resampling="nearest").read_codes()
                _ROLES[content] = hashlib.sha256(f"{roles.shape}".encode() + roles.tobytes()).hexdigest()
            digest.update(f"{file.stem} {_ROLES[content]}".encode())
        return digest.hexdigest()


_ROLES: dict[str, str] = {}
"""Digest of a file -> digest of the roles in it."""


def read_history(path: Path, key: str = "epoch") -> list[dict[str, float]]:
    """The rows of a run's `metrics.csv` or `pretrain.csv`, which all have the key; none if there is no file.

    Raises:
        SettingsError: if it holds something else.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
        if not all(key in row for row in rows):
            raise ValueError(f"a row has no `{key}`")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise SettingsError(
            f"{path} cannot be read: {error}", "a table of numbers, as it was written", "restore it, or remove it"
        ) from None
    return rows


def write_history(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Writes rows as `read_history` reads them, under the keys of all of them."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def saw(how: str, seen: Sequence[str], withheld: Sequence[str]) -> str:
    """What the model of a row of `modalities.json` saw, in words."""
    names = " + ".join(seen)
    if how == "trained without":
        return f"{names}: trained on {'it' if len(seen) == 1 else 'these'} alone"
    if how == "without":
        return f"{names}, without {' + '.join(withheld)}"
    return names if how == "all" else f"{names}, and the {how} of {' + '.join(withheld)}"


def find_runs(paths: Iterable[str | Path]) -> tuple[list[Path], list[Path]]:
    """The runs that paths stand for: a run folder for itself, any other folder for the runs in it.

    Returns:
        Finished runs and those that have not ended, each once, in the order given.

    Raises:
        MissingFileError: if a path is not there, or holds no run.
    """
    finished: dict[Path, Path] = {}
    unfinished: dict[Path, Path] = {}
    for path in map(Path, paths):
        found = _beneath(path)
        if not found and path.is_file():
            continue  # runs/* also names logs beside them
        if not found:
            raise MissingFileError(
                f"{path} holds no run" if path.exists() else f"there is no folder {path}",
                "a run folder, or a folder of runs, as `landfuse train` writes them",
                "check the path",
            )
        for run in found:
            (finished if (run / "scores.json").exists() else unfinished)[run.resolve()] = run
    return list(finished.values()), list(unfinished.values())


def _beneath(path: Path, depth: int = 3) -> list[Path]:
    if (path / "recipe.json").exists():
        return [path]
    if not depth or not path.is_dir():
        return []
    return [run for folder in sorted(p for p in path.iterdir() if p.is_dir()) for run in _beneath(folder, depth - 1)]


def read_run(folder: str | Path) -> Run:
    """Reads a finished run.

    Raises:
        MissingFileError: if the folder is no run, or the run has not ended.
        BundleError: if it has no bundle.
        SettingsError: if one of its files is broken.
    """
    folder = Path(folder)
    recipe = _json(folder / "recipe.json")
    if recipe is None:
        beneath = sorted(path.parent.name for path in folder.glob("*/recipe.json"))
        raise MissingFileError(
            f"{folder} is no run: " + ("it holds no recipe.json" if folder.is_dir() else "there is no such folder"),
            "a run folder, as `landfuse train` makes it",
            f"name one of those in it, e.g. {folder / beneath[0]}" if beneath else "check the path",
        )
    scores = _json(folder / "scores.json")
    if scores is None:
        raise MissingFileError(
            f"the run {folder} has not ended: it holds no scores.json",
            "a run that was trained and scored",
            f"continue it: landfuse train {folder / 'recipe.json'} run={folder}",
        )
    bundle = _json(folder / "bundle" / "model.json")
    if bundle is None:
        raise BundleError(f"{folder} holds no bundle", "bundle/model.json in it", "copy the whole run folder")
    scores = {"leak_fraction" if key == "leak_share" else key: value for key, value in scores.items()}
    environment, withheld = _json(folder / "environment.json"), _json(folder / "modalities.json")
    run = Run(folder, _with_defaults(recipe), scores, bundle, environment or {}, withheld)
    try:
        _Files.model_validate({name: getattr(run, name) for name in _Files.model_fields})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(
            f"the run {folder} is broken: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            "the files of `landfuse train`",
            "train it again",
        ) from None
    return run


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)


class _Model(_Strict):
    name: str


class _Recipe(_Strict):
    scene: str
    model: _Model


class _Class(_Strict):
    name: str
    code: int


class _Bundle(_Strict):
    legend: list[_Class]
    modalities: dict[str, dict[str, Any]]


class _Test(_Strict):
    OA: float | None
    AA: float | None
    kappa: float | None
    mF1: float | None  # noqa: N815
    mIoU: float | None  # noqa: N815
    pixels: float
    unmapped: float | None


class _Scores(_Strict):
    test: _Test
    classes: list[dict[str, str | float | None]]


class _Files(_Strict):
    """What others read of a run's files."""

    recipe: _Recipe
    bundle: _Bundle
    scores: _Scores
    environment: dict[str, str]


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no table")
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(
            f"{path} cannot be read: {error}", "JSON, as it was written", "restore it, or choose another folder"
        ) from None
    return values


def _with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with the defaults of this version, so that a setting that came later does not set runs apart."""
    try:
        recipe = parse(Recipe, values, "the recipe", saved=True)
        config = {key: value for key, value in recipe.model.items() if key != "name"}
        model = parse(SETTINGS[recipe.model["name"]], config, "the model", saved=True)
    except SettingsError:  # of another version: compared by what is written
        return dict(values)
    return {**recipe.model_dump(mode="json"), "model": {"name": recipe.model["name"], **model.model_dump(mode="json")}}
