"""The parameter names of the REF-Net authors' release, and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from landfuse.errors import ModelError
from landfuse.layers.state_space import from_vmamba

# The authors' names -> ours; {0} is a scale from 1 (finest) to 5.
_AUTHORS = (
    (r"(opt|sar)_encoder\.(.+)", r"encoders.{m}.\2"),
    (r"decoder\.(opt|sar)_proj_layer(\d)\.(.+)", r"decoder.scales.{s}.project.{m}.\3"),
    (r"decoder\.fuse_layer(\d)\.share_st_block\.1\.(.+)", r"decoder.scales.{s}.fuse.shared_block:\2"),
    (r"decoder\.fuse_layer(\d)\.diff_st_block\.1\.(.+)", r"decoder.scales.{s}.fuse.difference_block:\2"),
    (r"decoder\.fuse_layer(\d)\.share_conv\.(.+)", r"decoder.scales.{s}.fuse.join.\2"),
    (r"decoder\.fuse_layer(\d)\.smooth_layer\.(.+)", r"decoder.scales.{s}.fuse.smooth.\2"),
    (r"decoder\.st_block_(\d)\.1\.(.+)", r"decoder.scales.{s}.refine:\2"),
    (r"decoder\.(opt|sar)_fuse_layer_(\d)\.(.+)", r"decoder.scales.{s}.enhance.{m}.\3"),
    (r"decoder\.smooth_layer_(\d)1\.(.+)", r"decoder.scales.{s}.smooth.\2"),
    (r"decoder\.smooth_layer_(\d)2\.(.+)", r"decoder.scales.{s}.smooth_enhanced.0.\2"),
    (r"decoder\.smooth_layer_(\d)3\.(.+)", r"decoder.scales.{s}.smooth_enhanced.1.\2"),
    (r"seg_head\.0\.(.+)", r"head.\1"),
    (r"(opt|sar)_seg_head\.0\.(.+)", r"auxiliary_heads.{m}.\2"),
)


def rename_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the parameters of the authors' release to those of `RefNet`; optical comes first, SAR second.

    Raises:
        ModelError: for a name that REF-Net does not have.
    """
    renamed: dict[str, Tensor] = {}
    blocks: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        found = ((re.fullmatch(pattern, name), ours) for pattern, ours in _AUTHORS)
        match, ours = next((pair for pair in found if pair[0]), (None, ""))
        if match is None:
            raise ModelError(f"`{name}` is no parameter of REF-Net", "the authors' checkpoint", "check the file")
        scale = next((int(group) - 1 for group in match.groups() if group.isdigit()), 0)
        modality = int("sar" in match.groups())
        target = match.expand(ours.replace("{s}", str(scale)).replace("{m}", str(modality)))
        block, colon, parameter = target.partition(":")
        if colon:
            blocks.setdefault(block, {})[parameter] = value
        else:
            renamed[target] = value
    for block, parameters in blocks.items():
        renamed |= {f"{block}.{name}": value for name, value in from_vmamba(parameters).items()}
    return renamed
