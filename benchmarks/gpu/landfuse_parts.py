"""What these measurements use of landfuse: the one file here that imports it."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

import landfuse
from landfuse.classifier import Classifier, ModelSpec
from landfuse.engine import Engine, map_blocks
from landfuse.layers import scan_image, selective_scan
from landfuse.layers.relative_attention import RelativeAttention
from landfuse.models.base import FusionModel, Modality
from landfuse.models.bdgf import Bdgf
from landfuse.models.refnet import RefNet
from landfuse.models.two_branch import TwoBranch
from landfuse.patchwork import Patchwork
from landfuse.scenes.grid import Window
from landfuse.scenes.scene import Scene

prediction: ModuleType = importlib.import_module("landfuse.predict")  # the name landfuse.predict is the function
predict = prediction.predict

VERSION: str = landfuse.__version__
HAS_TRITON = importlib.util.find_spec("triton") is not None
"""Where it is missing, landfuse computes the scan by PyTorch, whatever path is asked for."""

SCAN_KERNELS = ("tile_states", "carry", "outputs", "tile_adjoints", "gradients")
"""Names of the scan's Triton kernels, as a profile shows them."""

STEPS_OF_MAPPING: dict[str, tuple[Any, str]] = {
    "read": (Engine, "read"),
    "cut views": (Patchwork, "views"),
    "compute": (Engine, "compute"),
    "write parts": (prediction.Job, "write"),
    "join parts": (prediction, "assemble"),
}
"""Name -> where the function lies whose time it is. `compute` contains `cut views`; reading and writing are threads."""

__all__ = [
    "HAS_TRITON",
    "SCAN_KERNELS",
    "STEPS_OF_MAPPING",
    "VERSION",
    "Bdgf",
    "Classifier",
    "Engine",
    "FusionModel",
    "Modality",
    "ModelSpec",
    "RefNet",
    "RelativeAttention",
    "Scene",
    "TwoBranch",
    "Window",
    "map_blocks",
    "predict",
    "scan_image",
    "selective_scan",
]
