"""Kernel launches are counted without a GPU, and do not become more."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"


def test_a_small_mfnet_launches_no_more_kernels_than_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from launches import forward_launches
    from networks import cases

    case = next(case for case in cases(dry=True) if case.model == "mfnet")
    assert forward_launches(case).total <= 330, "of them 86 in the two blocks of its ViT, the others in the decoder"
