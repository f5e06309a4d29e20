"""Kernel launches are counted without a GPU, and do not become more."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"


@pytest.mark.parametrize(
    ("model", "forward", "step"),
    [("mfnet", 359, 1140), ("refnet", 489, 2617), ("bdgf", 316, 1423)],  # of mfnet's 86 are in the blocks of its ViT
)
def test_small_networks_launch_no_more_kernels_than_they_did(
    model: str, forward: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from launches import launches_of
    from networks import cases

    case = next(case for case in cases(dry=True) if case.model == model)
    assert launches_of(case, "forward").total <= forward
    assert launches_of(case, "step").total <= step
