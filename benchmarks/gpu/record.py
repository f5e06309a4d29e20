"""Results: JSON lines in a file, written after each measurement, and tables at the end."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from landfuse_parts import VERSION

LIBRARIES = ("numpy", "timm", "triton", "lightning", "rasterio")


def machine(device: str) -> dict[str, Any]:
    """The command, the commit, the device and the versions."""
    facts: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "commit": commit(), "landfuse": VERSION}
    if device == "cuda":
        of_gpu = torch.cuda.get_device_properties(0)
        facts |= {"device": of_gpu.name, "multiprocessors": of_gpu.multi_processor_count}
        facts |= {"GiB": round(of_gpu.total_memory / 2**30, 1), "cuda": torch.version.cuda}
        facts |= {"tf32_products": torch.backends.cuda.matmul.allow_tf32}
        facts |= {"tf32_convolutions": torch.backends.cudnn.allow_tf32}
    else:
        facts["device"] = "cpu"
    facts |= {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}
    for library in LIBRARIES:
        try:
            facts[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            facts[library] = None
    return facts


def commit() -> str | None:
    """The checkout's commit, with + where files differ from it; None where git or the checkout is missing."""
    here = Path(__file__).resolve().parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=here, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.returncode else "")


def shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)


class Record:
    """The results of one run.

    Args:
        folder: gets `results.jsonl` and `tables.md`.
        dry: said in every line.
        seconds: after which no measurement begins.
    """

    def __init__(self, folder: Path, dry: bool, seconds: float = float("inf")) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.dry, self.seconds = folder, dry, seconds
        self.begun = time.monotonic()
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.gaps: dict[str, list[str]] = {}
        self.faults, self.ended = 0, False
        self.file = (folder / "results.jsonl").open("w", encoding="utf-8")

    def write(self, part: str, kind: str, values: Mapping[str, Any]) -> None:
        """One line of JSON; `kind` is `machine`, `result`, `not measured` or `fault`."""
        line = {"part": part, "kind": kind, "dry_run": self.dry, "second": round(time.monotonic() - self.begun, 1)}
        self.file.write(json.dumps(line | dict(values), default=str) + "\n")
        self.file.flush()

    def add(self, part: str, name: str, **values: object) -> None:
        """A result; dictionaries and lists among the values are only written to the file."""
        self.write(part, "result", {"name": name, **values})
        self.rows.setdefault(part, []).append({"name": name, **values})
        flat = {key: value for key, value in values.items() if value is not None and not isinstance(value, dict | list)}
        words = ", ".join(f"{key} {shown(value)}" for key, value in flat.items())
        print(f"{time.monotonic() - self.begun:6.1f} s  {part}: {name}: {words}", flush=True)

    def not_measured(self, part: str, what: str) -> None:
        self.write(part, "not measured", {"what": what})
        self.gaps.setdefault(part, []).append(what)

    def fault(self, part: str, name: str, error: str) -> None:
        self.faults += 1
        self.write(part, "fault", {"name": name, "error": error})
        self.gaps.setdefault(part, []).append(f"{name}: {error.splitlines()[0][:200]}")
        print(f"{time.monotonic() - self.begun:6.1f} s  {part}: {name}: FAULT: {error[:400]}", flush=True)

    @contextmanager
    def measurement(self, part: str, name: str) -> Iterator[bool]:
        """Records an error and lets the run go on; gives False where no time is left to begin."""
        late = self.ended or time.monotonic() - self.begun > self.seconds
        if late:
            self.not_measured(part, f"{name}: not begun, the time was up")
        try:
            yield not late
        except KeyboardInterrupt:  # the rest is left out, and the tables are written
            self.ended = True
            self.not_measured(part, f"{name}: interrupted")
        except Exception as error:
            traceback.print_exc(limit=6)
            self.fault(part, name, f"{type(error).__name__}: {error}")

    def close(self, parts: list[str]) -> None:
        """Prints a table for each part, with what was not measured, and writes them."""
        self.file.close()
        text = "\n\n".join(self._table(part) for part in parts) + "\n"
        (self.folder / "tables.md").write_text(text, encoding="utf-8")
        print(f"\n{text}")

    def _table(self, part: str) -> str:
        rows = self.rows.get(part, [])
        columns = list(dict.fromkeys(k for row in rows for k, v in row.items() if not isinstance(v, dict | list)))
        columns = [column for column in columns if any(row.get(column) is not None for row in rows)]
        lines = [f"## {part}" + (" (dry run: no number is of a GPU)" if self.dry else ""), ""]
        if rows:
            lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
            lines += [f"| {' | '.join(shown(row.get(column)) for column in columns)} |" for row in rows]
        gaps = self.gaps.get(part, [])
        if gaps:
            lines += ["", "Not measured:", "", *(f"- {gap}" for gap in gaps)]
        return "\n".join(lines)
