"""The run folder: whose it is, and what is told of the machine that filled it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from landfuse.errors import MissingFileError, OutputError, SettingsError
from landfuse.files import write_text
from landfuse.models import MODELS
from landfuse.rasters.geotiff import GdalRaster
from landfuse.settings import parse
from landfuse.training.recipe import Recipe


def claim(run: Path, recipe: Recipe) -> bool:
    """Makes the run folder (true), or finds that it holds this very recipe (false).

    Raises:
        OutputError: if it cannot be made or written, or holds a run of another recipe.
    """
    known = run / "recipe.json"
    text = recipe.to_json()
    if known.exists():
        try:
            before, now = json.loads(known.read_text(encoding="utf-8")), json.loads(text)
        except (OSError, ValueError) as error:
            raise OutputError(
                f"{known} cannot be read: {error}", "the recipe of a run", "choose another folder by run=..."
            ) from None
        if isinstance(before, dict) and before.get("run") and Path(before["run"]).resolve() == run.resolve():
            before["run"] = now["run"]  # one folder, spelt in two ways
        differing = sorted(
            key for key in {*_flat(before), *_flat(now)} if _flat(before).get(key) != _flat(now).get(key)
        )
        if differing:
            raise OutputError(
                f"{run} holds a run of another recipe; they differ in {', '.join(differing[:6])}",
                "an empty folder, or the same recipe to go on with",
                "choose another folder by run=..., or remove this one",
            )
        return False
    write_text(known, text)
    return True


def release(run: Path) -> None:
    """Undoes `claim` and what a start leaves, where nothing was learnt: a mended recipe may have the folder."""
    for name in ("recipe.json", "metrics.csv"):
        (run / name).unlink(missing_ok=True)
    for name in ("checkpoints", "tensorboard"):
        shutil.rmtree(run / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        run.rmdir()  # only if nothing else lies in it


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        key: item for name, value in values.items() for key, item in _flat(value, f"{prefix}.{name}".strip(".")).items()
    }


def environment() -> dict[str, str]:
    """Versions and hardware, to tell runs apart."""
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
    """Peak resident memory of this process, bytes; 0 on Windows, which does not tell it."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024  # Linux counts in KiB


def plain(values: Any) -> Any:
    """Values that JSON knows: NaN becomes null."""
    if isinstance(values, Mapping):
        return {key: plain(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [plain(value) for value in values]
    if isinstance(values, np.generic):
        values = values.item()
    return None if isinstance(values, float) and not math.isfinite(values) else values


Key = tuple[str, int]
"""What pairs two runs: the digest of the split, and the seed of training."""


@dataclass(frozen=True)
class RunRecord:
    """A finished run.

    Args:
        path: its folder.
        recipe: the recipe with all defaults, those of its model too.
        scores: what `scores.json` holds.
        legend: (name, code) of every class.
        unscored: names of the classes that do not enter the means.
        modalities: in the order of the model.
        split: digest of every tile's roles; runs with the same one were trained and tested on the same pixels.
        version: of landfuse that made it.
    """

    path: Path
    recipe: Mapping[str, Any]
    scores: Mapping[str, Any]
    legend: tuple[tuple[str, int], ...]
    unscored: tuple[str, ...]
    modalities: tuple[str, ...]
    split: str
    version: str

    @property
    def key(self) -> Key:
        """What pairs it with a run of another recipe."""
        return self.split, self.seed

    @property
    def seed(self) -> int:
        """The seed of training."""
        return int(self.recipe.get("training", {}).get("seed", 0))

    @property
    def settings(self) -> dict[str, Any]:
        """The recipe without what only repeats it: folder, scene's path, seeds and fold; `a.b` -> value."""
        flat = dict(_flat(self.recipe))
        for name in ("run", "scene", "training.seed", "split", "split.fold", "split.seed"):
            flat.pop(name, None)
        return flat


def find_runs(paths: Iterable[str | Path]) -> tuple[list[Path], list[Path]]:
    """The runs that paths stand for: a run folder for itself, any other folder for the runs that lie in it.

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
            continue  # runs/* also names logs that lie beside
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


def read_run(path: str | Path) -> RunRecord:
    """Reads a finished run.

    Raises:
        OutputError: if it has not ended, or a file of it is missing or broken.
    """
    path = Path(path)
    try:
        recipe = json.loads((path / "recipe.json").read_text(encoding="utf-8"))
        scores = json.loads((path / "scores.json").read_text(encoding="utf-8"))
        bundle = json.loads((path / "bundle" / "model.json").read_text(encoding="utf-8"))
        return RunRecord(
            path,
            _with_defaults(recipe),
            scores,
            tuple((c["name"], int(c["code"])) for c in bundle["legend"]),
            tuple(c["name"] for c in bundle["legend"] if not c.get("scored", True)),
            tuple(bundle["modalities"]),
            split_digest(path / "split"),
            bundle["landfuse"],
        )
    except FileNotFoundError as error:
        raise OutputError(
            f"{path} is no finished run: {Path(error.filename or '').name} is missing",
            "a run that has ended",
            "go on with it by the same `landfuse train` command",
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"the run {path} cannot be read: {error}", "a whole run folder", "copy it again, or train again"
        ) from None


def split_digest(folder: Path) -> str:
    """SHA-256 over the names and roles of all tiles of a run's `split/`."""
    files = sorted(folder.glob("*.tif"))
    if not files:
        raise FileNotFoundError(2, "no such file", str(folder / "*.tif"))
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


def _with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with the defaults of this version, so that a setting that came later does not set runs apart."""
    try:
        recipe = parse(Recipe, values, "the recipe")
        config = {key: value for key, value in recipe.model.items() if key != "name"}
        model = parse(MODELS[str(recipe.model["name"])].Settings, config, "the model")
    except SettingsError:
        return dict(values)  # of another version: compared by what is written
    return {**recipe.model_dump(mode="json"), "model": {"name": recipe.model["name"], **model.model_dump(mode="json")}}


def _settings_of(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _settings_of(value, f"{prefix}{name}.")
        elif value not in (None, {}):
            yield f"{prefix}{name}", value
