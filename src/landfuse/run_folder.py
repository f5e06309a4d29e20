"""The run folder: whose it is, and what is told of the machine that filled it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from landfuse.errors import OutputError
from landfuse.files import write_text
from landfuse.recipe import Recipe


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
