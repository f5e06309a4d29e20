"""REF-Net: keeps what the modalities share and what they differ in, and sharpens each one by the difference.

Source: Wei et al. 2025, "Retain and Enhance Modality-Specific Information for Multimodal Remote Sensing Image Land
Use/Land Cover Classification", doi 10.1109/TGRS.2025.3591926. Its state-space blocks are VMamba's (`state_space.py`).

    encoders, one per modality: features at stride 2, 4, 8, 16, 32, each projected to the same width
    at every scale, MDF-VSS:    shared  = join(V(a), V(b));  differing = V'(a - b);  fused = smooth(shared + differing)
    MDF decoder:                fused, through one more VSS block, summed from coarse to fine  -> logits
    MSIE decoder:               smooth(a + differing), likewise summed, per modality           -> auxiliary logits

Differs from the paper, and why:
- Any number of modalities from two. With more than two, each modality's difference is taken to the mean of the others,
  the mean of the differing features enters the fusion, and each modality is sharpened by its own. With two this would
  give two differences of opposite sign where the paper has one, so there the paper's is used.
- Logits are brought to the size of the image, whatever it is, where the paper doubles them: the same for even sizes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models.resnet import BasicBlock
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse.errors import MissingFileError, ModelError
from landfuse.layers.checkpoints import read_checkpoint, tensors_of, timm_weights
from landfuse.layers.state_space import VSSBlock, from_vmamba
from landfuse.models.base import FusionModel, Modality, cross_entropy, refuse_zoom, settings_of
from landfuse.models.settings import RefNetSettings
from landfuse.settings import parse

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


STRIDES = (2, 4, 8, 16, 32)


class Parts(NamedTuple):
    """What one MDF-VSS block makes of its modalities; each (B, width, H, W), None where switched off."""

    shared: Tensor | None
    differing: Tensor | None
    fused: Tensor
    differing_by_modality: list[Tensor]


def _smooth(width: int) -> BasicBlock:
    """Two 3x3 convolutions with a skip, as in a ResNet."""
    return BasicBlock(width, width)


class MdfVss(nn.Module):
    """Splits the features of several modalities into what they share and what they differ in, and fuses the two."""

    def __init__(self, modalities: int, config: RefNetSettings) -> None:
        super().__init__()
        width = config.width
        self.shared_block = _vss(config) if config.share else None
        self.join = _join(modalities, width) if config.share else None
        self.difference_block = _vss(config) if config.difference else None
        self.smooth = _smooth(width)

    def forward(self, features: Sequence[Tensor]) -> Parts:
        """One (B, width, H, W) per modality."""
        shared = differing = None
        by_modality: list[Tensor] = []
        if self.shared_block is not None and self.join is not None:
            shared = self.join(torch.cat(_each(self.shared_block, features), dim=1))
        if self.difference_block is not None:
            if len(features) == 2:
                differing = self.difference_block(features[0] - features[1])
                by_modality = [differing, differing]
            else:
                total = torch.stack(list(features)).sum(0)
                others = [(total - f) / (len(features) - 1) for f in features]
                by_modality = _each(self.difference_block, [f - o for f, o in zip(features, others, strict=True)])
                differing = torch.stack(by_modality).mean(0)
        present = [part for part in (shared, differing) if part is not None]
        return Parts(shared, differing, self.smooth(sum(present[1:], present[0])), by_modality)


def _each(block: nn.Module, features: Sequence[Tensor], at_once: bool | None = None) -> list[Tensor]:
    """The block of each; on a GPU, which waits for launches, by default all at once."""
    if features[0].is_cuda if at_once is None else at_once:
        return list(block(torch.cat(list(features))).chunk(len(features)))
    return [block(f) for f in features]


class PlainFusion(nn.Module):
    """Fuses features without splitting them, for comparison: by a convolution of all, or their sum."""

    def __init__(self, modalities: int, config: RefNetSettings) -> None:
        super().__init__()
        self.join = _join(modalities, config.width) if config.fusion == "concatenate" else None

    def forward(self, features: Sequence[Tensor]) -> Parts:
        """One (B, width, H, W) per modality."""
        fused = sum(features[1:], features[0]) if self.join is None else self.join(torch.cat(list(features), dim=1))
        return Parts(None, None, fused, [])


def _join(modalities: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(modalities * width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )


class Scale(nn.Module):
    """One scale of both decoders.

    Args:
        channels: of the encoders' features at this scale, one per modality.
        coarsest: there is no coarser scale whose sums come in.
        config: settings of the model.
    """

    def __init__(self, channels: Sequence[int], coarsest: bool, config: RefNetSettings) -> None:
        super().__init__()
        width = config.width
        self.project = nn.ModuleList(nn.Conv2d(c, width, 1, bias=False) for c in channels)
        self.fuse = (MdfVss if config.fusion == "decompose" else PlainFusion)(len(channels), config)
        self.refine = _vss(config)
        self.smooth = None if coarsest else _smooth(width)
        enhanced = range(len(channels)) if config.enhance else ()
        self.enhance = nn.ModuleList(_smooth(width) for _ in enhanced)
        self.smooth_enhanced = nn.ModuleList(_smooth(width) for _ in enhanced if not coarsest)

    def forward(
        self, features: Sequence[Tensor], coarser: tuple[Tensor, list[Tensor]] | None, *, enhancing: bool
    ) -> tuple[Tensor, list[Tensor], Parts]:
        """Fused features, enhanced features per modality where wanted, and what the fusion saw."""
        projected = [project(f) for project, f in zip(self.project, features, strict=True)]
        parts = self.fuse(projected)
        fused = self.refine(parts.fused)
        enhanced: list[Tensor] = []
        if enhancing:
            differing = parts.differing_by_modality or [torch.zeros_like(f) for f in projected]
            enhanced = [layer(f + d) for layer, f, d in zip(self.enhance, projected, differing, strict=False)]
        if coarser is not None and self.smooth is not None:
            fused = self.smooth(_add_upsampled(coarser[0], fused))
        if enhancing and coarser is not None:
            enhanced = [
                smooth(_add_upsampled(coarse, fine))
                for smooth, coarse, fine in zip(self.smooth_enhanced, coarser[1], enhanced, strict=True)
            ]
        return fused, enhanced, parts


class Decoder(nn.Module):
    """The MDF and MSIE decoders.

    Args:
        channels: of the encoders' features, one list from fine to coarse per modality.
        config: settings of the model.
    """

    def __init__(self, channels: Sequence[Sequence[int]], config: RefNetSettings) -> None:
        super().__init__()
        by_scale = list(zip(*channels, strict=True))
        self.scales = nn.ModuleList(
            Scale(at_scale, coarsest=i == len(by_scale) - 1, config=config) for i, at_scale in enumerate(by_scale)
        )
        _initialise(self)

    def forward(
        self, features: Sequence[Sequence[Tensor]], *, enhancing: bool = True
    ) -> tuple[list[Tensor], list[list[Tensor]], list[Parts]]:
        """Decodes features, one list from fine to coarse per modality.

        Returns:
            From coarse to fine: fused features (B, width, H, W), enhanced features per modality (empty where not
            wanted or switched off), and the parts of the MDF-VSS blocks.
        """
        fused: list[Tensor] = []
        enhanced: list[list[Tensor]] = []
        parts: list[Parts] = []
        for i, at_scale in reversed(list(enumerate(zip(*features, strict=True)))):
            coarser = (fused[-1], enhanced[-1]) if fused else None
            at_fused, at_enhanced, at_parts = self.scales[i](at_scale, coarser, enhancing=enhancing)
            fused.append(at_fused)
            enhanced.append(at_enhanced)
            parts.append(at_parts)
        return fused, enhanced, parts


class RefNet(FusionModel):
    """REF-Net: an encoder per modality, and decoders for what they share and what they differ in.

    Args:
        modalities: name -> channels; two or more, in the order in which differences are taken.
        classes: K.
        config: the settings; or keywords, see `RefNetSettings`. With `pretrained` or `weights`, `load_pretrained`
            reads them.

    Raises:
        SettingsError: for an unknown or wrong setting.
        ModelError: for fewer than two modalities, a zoomed modality, or an encoder that does not fit.

    `forward` takes images of any size, name -> (B, C, H, W), and returns (B, K, H, W), less the halo where a `core` is
    set.

    >>> import torch, landfuse as lf
    >>> net = lf.models.RefNet({"s2": 10, "s1": 2}, classes=8, encoder="resnet18", width=16).eval()
    >>> net({"s2": torch.zeros(1, 10, 50, 70), "s1": torch.zeros(1, 2, 50, 70)}).shape
    torch.Size([1, 8, 50, 70])
    """

    Settings = RefNetSettings

    def __init__(
        self,
        modalities: Mapping[str, int | Modality],
        classes: int,
        config: RefNetSettings | None = None,
        **keywords: Any,
    ) -> None:
        config = settings_of(RefNetSettings, config, keywords)
        super().__init__(modalities, classes, view=config.view, core=config.core or config.view)
        self.config = config
        refuse_zoom("refnet", self.modalities)
        if len(modalities) < 2:
            raise ModelError(
                f"`refnet` got {len(modalities)} modality: {', '.join(modalities)}",
                "two or more, since it works on their difference",
                "add a modality, or use `stacked`",
            )
        self.auxiliary_weight = config.auxiliary_weight
        self.encoders = nn.ModuleList(_encoder(name, m.channels, config) for name, m in self.modalities.items())
        channels: list[list[int]] = [encoder.feature_info.channels() for encoder in self.encoders]  # type: ignore[union-attr, operator]
        self.decoder = Decoder(channels, config)
        self.head = _head(config.width, classes)
        self.auxiliary_heads = nn.ModuleList(_head(config.width, classes) for _ in modalities if config.enhance)

    def load_pretrained(self, *, missing_only: bool = False) -> None:
        """Reads the encoders' weights: those that `weights` names, and with `pretrained` timm's for the others."""
        for (name, modality), encoder in zip(self.modalities.items(), self.encoders, strict=True):
            file = self.config.weights.get(name)
            if missing_only or not (file or self.config.pretrained):
                continue
            if file is not None and not file.exists():
                raise MissingFileError(
                    f"there is no file {file}", f"weights for the encoder of `{name}`", "check the path"
                )
            backbone = str(_backbone(name, self.config))
            overlay = None if file is None else {"state_dict": timm_weights(file, backbone, encoder)}
            with torch.random.fork_rng(devices=[]):  # what is drawn there is not kept
                published = _encoder(
                    name, modality.channels, self.config, pretrained=True, pretrained_cfg_overlay=overlay
                )
            encoder.load_state_dict(published.state_dict())

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        fused, _, _ = self._decode(images, enhancing=False)
        return self._logits(self.head, fused[-1], images)

    def loss(self, images: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of the map plus, at their weight, of the auxiliary maps from each modality."""
        fused, enhanced, _ = self._decode(images)
        main = cross_entropy(self._logits(self.head, fused[-1], images), target)
        if not self.auxiliary_heads:
            return {"loss": main}
        auxiliary = sum(
            cross_entropy(self._logits(head, features, images), target)
            for head, features in zip(self.auxiliary_heads, enhanced[-1], strict=True)
        )
        return {"loss": main + self.auxiliary_weight * auxiliary, "main": main, "auxiliary": torch.as_tensor(auxiliary)}

    def parts(self, images: dict[str, Tensor]) -> list[Parts]:
        """Shared, differing and fused features at stride 32, 16, 8, 4, 2, to look at."""
        return self._decode(images, enhancing=False)[2]

    def _decode(
        self, images: dict[str, Tensor], *, enhancing: bool = True
    ) -> tuple[list[Tensor], list[list[Tensor]], list[Parts]]:
        """What maps the enhanced features is there for training only."""
        self.size_of(images)
        features = [encoder(images[name]) for name, encoder in zip(self.modalities, self.encoders, strict=True)]
        result: tuple[list[Tensor], list[list[Tensor]], list[Parts]] = self.decoder(features, enhancing=enhancing)
        return result

    def _logits(self, head: nn.Module, features: Tensor, images: dict[str, Tensor]) -> Tensor:
        size = next(iter(images.values())).shape[-2:]
        logits = F.interpolate(head(features), size=size, mode="bilinear", align_corners=True)
        return logits[..., self.halo : size[0] - self.halo, self.halo : size[1] - self.halo]


def _vss(config: RefNetSettings) -> VSSBlock:
    return VSSBlock(config.width, config.states, drop_path=config.drop_path)


def _head(width: int, classes: int) -> nn.Conv2d:
    head = nn.Conv2d(width, classes, 1)
    nn.init.xavier_uniform_(head.weight)
    nn.init.zeros_(head.bias)  # type: ignore[arg-type]
    return head


def _add_upsampled(coarse: Tensor, fine: Tensor) -> Tensor:
    return F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False) + fine


def _initialise(decoder: nn.Module) -> None:
    """Convolutions by He's rule, linear maps by Glorot's, as in the authors' release."""
    for module in decoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _backbone(modality: str, config: RefNetSettings) -> str | None:
    return config.encoder if isinstance(config.encoder, str) else config.encoder.get(modality)


def _encoder(modality: str, channels: int, config: RefNetSettings, **options: Any) -> nn.Module:
    name = _backbone(modality, config)
    if name is None or not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:5] if name else []
        raise ModelError(
            f"the encoder {name!r} for `{modality}` is no backbone of timm" if name else f"`{modality}` has no encoder",
            "the name of a backbone, e.g. resnet50",
            f"perhaps one of {', '.join(near)}" if near else "set `encoder`; timm.list_models() lists all names",
        )
    try:
        encoder: nn.Module = timm.create_model(name, features_only=True, in_chans=channels, **options)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ModelError(f"the encoder {name} for `{modality}` cannot be made: {error}", "", "choose another") from None
    strides = tuple(encoder.feature_info.reduction())  # type: ignore[union-attr, operator]
    if strides != STRIDES:
        raise ModelError(
            f"the encoder {name} for `{modality}` has features at stride {', '.join(map(str, strides))}",
            f"features at stride {', '.join(map(str, STRIDES))}",
            "choose another backbone, e.g. a resnet, regnet or efficientnet",
        )
    return encoder


def from_authors(
    path: str | Path,
    names: tuple[str, str] = ("optical", "sar"),
    encoder: str | Mapping[str, str] | None = None,
    view: int = 256,
    *,
    core: int | None = None,
    classes: int | None = None,
) -> RefNet:
    """Loads a checkpoint of the authors' release.

    Args:
        path: the file that their training wrote.
        names: of the optical and the SAR modality.
        encoder: timm's name of the backbone, or one for each modality; by default what the checkpoint says, or
            resnet50.
        view: side of the square that the model looks at.
        core: side of the square that it labels; by default the view.
        classes: K; where the checkpoint has one more, its first is left out, the background that the authors' loss
            ignores. By default as in the checkpoint.

    Raises:
        MissingFileError: if there is no such file.
        ModelError: if it is no checkpoint of REF-Net, or one of other classes.
    """
    checkpoint = read_checkpoint(path)
    state = tensors_of(checkpoint, path)
    needed = {
        "opt_encoder.conv1.weight": 4,
        "sar_encoder.conv1.weight": 4,
        "seg_head.0.weight": 4,
        "decoder.st_block_1.1.op.A_logs": 2,
    }
    for name, axes in needed.items():
        if name not in state or state[name].dim() != axes:
            raise ModelError(
                f"{path} lacks `{name}`" if name not in state else f"`{name}` is {tuple(state[name].shape)} in {path}",
                "a checkpoint of REF-Net with ResNet encoders",
                "check the file",
            )
    known = len(state["seg_head.0.weight"])
    if classes not in (None, known, known - 1):
        raise ModelError(
            f"{path} has {known} classes", f"{classes}, with or without a background before them", "check the legend"
        )
    backbones = (checkpoint.get(key) or "resnet50" for key in ("opt_backbone", "sar_backbone"))
    encoders = dict(zip(names, backbones, strict=True))
    encoders |= dict.fromkeys(names, encoder) if isinstance(encoder, str) else encoder or {}
    values = {
        "view": view,
        "core": core,
        "encoder": encoders,
        "width": state["seg_head.0.weight"].shape[1],
        "states": state["decoder.st_block_1.1.op.A_logs"].shape[-1],
        "enhance": "opt_seg_head.0.weight" in state,
    }
    channels = (state[f"{theirs}_encoder.conv1.weight"].shape[1] for theirs in ("opt", "sar"))
    try:
        model = RefNet(
            dict(zip(names, channels, strict=True)), classes or known, parse(RefNetSettings, values, str(path))
        )
        renamed = rename_authors(state)
        for name in [name for name in renamed if "head" in name.split(".")[0] and classes == known - 1]:
            renamed[name] = renamed[name][1:]
        model.load_state_dict(renamed)
    except (RuntimeError, LookupError) as error:
        raise ModelError(
            f"{path} does not fit REF-Net with {encoders}: {error}",
            "the backbone it was trained with",
            "name it by `encoder`",
        ) from None
    return model
