"""The fusion models, one file each; `MODELS` is the whole registry."""

from landfuse.models.base import FusionModel
from landfuse.models.bdgf import Bdgf
from landfuse.models.forest import Forest
from landfuse.models.mfnet import MFNet
from landfuse.models.refnet import RefNet
from landfuse.models.stacked import Stacked
from landfuse.models.two_branch import TwoBranch

MODELS: dict[str, type[FusionModel]] = {
    "bdgf": Bdgf,
    "forest": Forest,
    "mfnet": MFNet,
    "refnet": RefNet,
    "stacked": Stacked,
    "two_branch": TwoBranch,
}
"""Every model by the name that recipes use."""
