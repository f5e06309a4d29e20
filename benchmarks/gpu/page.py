"""Writes the tables of runs into docs/gpu.md, below its marker.

python benchmarks/gpu/page.py runs/gpu/first runs/gpu/second
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

MARKER = "<!-- below: written by benchmarks/gpu/run.sh -->\n"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "gpu.md"


def tables(folders: list[Path]) -> str:
    """The card and the versions, and then the tables of each run."""
    first = (folders[0] / "results.jsonl").read_text(encoding="utf-8").splitlines()[0]
    shown = ("device", "GiB", "commit", "landfuse", "torch", "triton", "cuda")
    facts = json.loads(first)
    machine = ", ".join(f"{name} {facts[name]}" for name in shown if name in facts)
    return "\n".join([f"{machine}\n", *((folder / "tables.md").read_text(encoding="utf-8") for folder in folders)])


def write(page: Path, folders: list[Path]) -> None:
    above, _, _ = page.read_text(encoding="utf-8").partition(MARKER)
    page.write_text(f"{above}{MARKER}\n{tables(folders)}", encoding="utf-8")


if __name__ == "__main__":
    write(PAGE, [Path(folder) for folder in sys.argv[1:]])
