"""What these measurements share with those of `benchmarks/speed`: the one file here that imports them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "speed"))

from flat_scene import CLASSES, place
from mfnet import MODALITIES as MFNET_MODALITIES
from mfnet import attention, together, windows
from mfnet import build as build_mfnet
from scan import four_copies, fresh_bias, merged

__all__ = [
    "CLASSES",
    "MFNET_MODALITIES",
    "attention",
    "build_mfnet",
    "four_copies",
    "fresh_bias",
    "merged",
    "place",
    "together",
    "windows",
]
