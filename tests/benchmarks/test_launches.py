"""Kernel launches are counted without a GPU, and do not become more."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"


@pytest.mark.parametrize(
    ("model", "most"),
    [("mfnet", 359), ("refnet", 489), ("bdgf", 322)],  # of mfnet's 86 are in the two blocks of its ViT
)
def test_small_networks_launch_no_more_kernels_than_they_did(
    model: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from launches import forward_launches
    from networks import cases

    case = next(case for case in cases(dry=True) if case.model == model)
    assert forward_launches(case).total <= most
