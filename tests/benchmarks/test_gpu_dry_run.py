"""The GPU measurements run on a CPU as a dry run, and every part says what it did and did not measure."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu" / "measure.py"
PARTS = {"ceilings", "parity", "scan", "networks", "mapping", "p1"}


def run(*arguments: str, shared: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "LANDFUSE_SHARED": str(shared)}
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, env=environment)


def test_every_part_reports_in_a_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("--dry-run", "--out", str(tmp_path / "out"), shared=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    machine, *lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert machine["kind"] == "machine"
    assert {"command", "commit", "device", "torch", "landfuse"} <= machine.keys()
    results = [line for line in lines if line["kind"] == "result"]
    measured = {line["part"] for line in results}
    assert measured == PARTS if importlib.util.find_spec("triton") else measured == PARTS - {"parity"}
    gaps = {line["part"]: line["what"] for line in lines if line["kind"] == "not measured"}
    assert gaps.keys() == PARTS
    assert "mamba_ssm's kernel: gpu/kern/so/mamba_scan.so is in neither" in gaps["scan"]
    assert all(line["dry_run"] for line in [machine, *lines])
    assert all(line["passes"] and line["poisoned"] for line in results if line["part"] == "parity")
    for line in results:  # two ways of the same
        if "difference from plain attention" in line["name"]:
            assert line["f32"] < 1e-5
        if line["part"] == "scan":
            assert line["error"] < (1e-5 if " f32," in line["name"] else 1e-2)
    tables = (tmp_path / "out" / "tables.md").read_text()
    assert tables in done.stdout
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from page import MARKER, PAGE, write

    page = tmp_path / "gpu.md"
    page.write_text(f"{PAGE.read_text().partition(MARKER)[0]}{MARKER}older tables")
    write(page, [tmp_path / "out"])
    above, marker, below = page.read_text().partition(MARKER)
    assert above == PAGE.read_text().partition(MARKER)[0]
    assert marker
    assert below.startswith("\ndevice cpu, ")
    assert tables in below
    assert "older tables" not in below
    for part in PARTS:
        assert f"## {part} (dry run" in tables
    assert tables.count("Not measured:") == len(PARTS)


def test_without_a_gpu_one_message_says_so(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path / "out"), shared=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "There is no CUDA GPU here: nothing was measured. With --dry-run all parts run on a CPU."
    ]
    assert not (tmp_path / "out").exists()
