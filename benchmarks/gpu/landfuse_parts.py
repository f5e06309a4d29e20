"""What these measurements use of landfuse: the one file here that imports it."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

import landfuse
from landfuse.bundles.bundle import Bundle
from landfuse.bundles.description import ModelSpec
from landfuse.bundles.torch_predictor import TorchPredictor
from landfuse.diffusion.features import DiffusionFeatures
from landfuse.diffusion.settings import FeatureSettings
from landfuse.diffusion.trained_denoiser import TrainedDenoiser
from landfuse.kernels import gpu, scan_image
from landfuse.kernels import scan as selective_scan
from landfuse.kernels.attention import RelativeAttention
from landfuse.kernels.gpu import Replayed, forget_constants
from landfuse.kernels.linear import rounded_once
from landfuse.layers.fewer_kernels import with_fewer_kernels
from landfuse.mapping.engine import Engine, map_blocks
from landfuse.mapping.settings import map_options
from landfuse.models.base import FusionModel, Modality
from landfuse.models.bdgf import Bdgf
from landfuse.models.refnet import RefNet
from landfuse.models.two_branch import TwoBranch
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene
from landfuse.views.mapped_pixels import MappedPixels, read_mapped_pixels
from landfuse.views.pixel_map import PixelMap

prediction: ModuleType = importlib.import_module("landfuse.mapping.predict")
predict = prediction.predict

VERSION: str = landfuse.__version__
HAS_TRITON = importlib.util.find_spec("triton") is not None
"""Where it is missing, landfuse computes the scan by PyTorch, whatever path is asked for."""

SCAN_KERNELS = ("walk", "carry", "gradients")
"""Names of the scan's Triton kernels, as a profile shows them."""

STEPS_OF_MAPPING: dict[str, tuple[Any, str]] = {
    "read": (Engine, "read"),
    "cut views": (MappedPixels, "views"),
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
    "Bundle",
    "DiffusionFeatures",
    "Engine",
    "FeatureSettings",
    "FusionModel",
    "Modality",
    "ModelSpec",
    "PixelMap",
    "RefNet",
    "RelativeAttention",
    "Replayed",
    "Scene",
    "TorchPredictor",
    "TrainedDenoiser",
    "TwoBranch",
    "Window",
    "forget_constants",
    "gpu",
    "map_blocks",
    "map_options",
    "predict",
    "read_mapped_pixels",
    "rounded_once",
    "scan_image",
    "selective_scan",
    "with_fewer_kernels",
]
