"""Checkpoints: whole or absent, read without running code, and the one before is kept."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from landfuse.files import whole_file

log = logging.getLogger("landfuse")


class Checkpoints(TorchCheckpointIO):
    """How Lightning writes checkpoints."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises an OutputError if it cannot be written."""
        write_checkpoint(checkpoint, Path(path), keep=Path(path).name == "last.ckpt")


def _before(path: Path) -> Path:
    return path.with_name(f"before-{path.name}")


def write_checkpoint(values: Mapping[str, Any], path: Path, *, keep: bool = True) -> None:
    """Writes one, and keeps the one that was there or not; raises an OutputError if it cannot be written."""
    content = io.BytesIO()
    torch.save(values, content)
    with whole_file(path) as partial:
        partial.write_bytes(content.getvalue())  # a view of it can crash Python 3.12.1 as it collects garbage
        if keep and path.exists():
            path.replace(_before(path))


def read_checkpoint(
    path: Path, fits: Callable[[Mapping[str, Any]], bool], device: torch.device | str = "cpu"
) -> tuple[Path, dict[str, Any]] | None:
    """The last checkpoint that is whole and fits, and its place; None where there is none. Others are removed."""
    for place in (path, _before(path)):
        try:
            values = torch.load(place, map_location=device, weights_only=True)
            if isinstance(values, dict) and fits(values):
                return place, values
            reason = "it is of another training"
        except FileNotFoundError:
            continue
        except Exception as error:  # torch raises nearly anything on what is cut off or foreign
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        log.warning("%s cannot be used: %s. The training goes on from the one before, if there is one", place, reason)
        place.unlink()
    return None
