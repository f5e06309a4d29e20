"""MFNet: a frozen Vision Transformer, fine-tuned for several modalities at once, and a decoder that fuses them.

    images -> three channels, one size -> ViT, all modalities in one pass -> a pyramid per modality
           -> squeeze-and-excitation fusion at four scales -> UNetFormer's decoder -> logits

Source: Ma et al. 2025, "A Unified Framework with Multimodal Fine-tuning for Remote Sensing Semantic Segmentation",
doi 10.1109/TGRS.2025.3585238, arXiv 2410.11160. With two modalities, SAM's encoder and `view: 256` it is the authors'
network: `from_authors` reads their checkpoints.

Rules that the paper leaves open:

- Channels: three go in as they are; one is repeated (as the paper does with heights); any other number passes a small
  trained 1 x 1 convolution, which starts as the first three channels (of two: both, and their mean).
- Sizes: images are continued by mirroring to a multiple of 32 px (twice the patch) and scores cropped. The encoder's
  positions are resized once, when its weights are loaded.
- Zoom: all modalities are brought to the finest one's size (`encoder_zoom` sets another), coarser ones bilinearly and
  finer ones by averaging; scores are averaged over each pixel of the scene's grid.
- Encoders without SAM's neck get one of the same form, trained and shared by the modalities. SAM 2's has four scales of
  its own: they take the place of the pyramid, each through a trained 1 x 1 convolution.

Differs from the paper, and why:

- One pass over stacked modalities instead of one pass each: the same numbers, frozen layers run once.
- LoRA's and the Adapter's exchange and the fusion take any number of modalities (see `layers/adapters.py`). As in the
  release the first modality's pyramid has a layer norm, and every further one's a batch norm.
- The norms of SAM's blocks use 1e-6, as SAM was trained; timm's samvit models default to 1e-5.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse import settings
from landfuse.errors import ModelError
from landfuse.layers.adapters import MECHANISMS, fine_tune
from landfuse.layers.checkpoints import read_tensors
from landfuse.layers.deep_fusion import WIDTH, DeepFusion, Stem, SumFusion, neck
from landfuse.layers.lora import merge_lora
from landfuse.layers.unetformer import UNetFormerDecoder, mirrored
from landfuse.layers.vit_encoder import StackedEncoder
from landfuse.models import mfnet_authors, mfnet_weights
from landfuse.models.base import FusionModel, Modality, settings_of
from landfuse.models.settings import MFNetSettings

MAX_SIDE = 4096  # px; global attention over more patches than 256 x 256 fits no machine


class MFNet(FusionModel):
    """Multimodal fine-tuning of a frozen ViT, deep fusion, and UNetFormer's decoder.

    Args:
        modalities: name -> channels, or `Modality`; the first is the paper's optical image.
        classes: K.
        config: the settings; or keywords, see `MFNetSettings`. `load_pretrained` reads the `weights`: until then the
            encoder, most of which is not trained, is random.

    Raises:
        SettingsError: for an unknown or wrong setting.
        ModelError: if the settings or the zooms cannot be used.

    `forward` takes images of up to the view, name -> (B, C, H * zoom, W * zoom), and returns (B, K, H, W), less the
    halo where a `core` is set. Smaller ones are continued by mirroring, since the encoder has learned positions.

    >>> import torch, landfuse as lf
    >>> options = {"embed_dim": 32, "depth": 4, "num_heads": 2, "global_attn_indexes": (1, 3)}  # a small one
    >>> net = lf.models.MFNet({"rgb": 3, "dsm": 1}, classes=6, view=64, encoder_options=options).eval()
    >>> net({"rgb": torch.zeros(1, 3, 50, 64), "dsm": torch.zeros(1, 1, 50, 64)}).shape
    torch.Size([1, 6, 50, 64])
    """

    Settings = MFNetSettings

    def __init__(
        self,
        modalities: Mapping[str, int | Modality],
        classes: int,
        config: MFNetSettings | None = None,
        **keywords: Any,
    ) -> None:
        config = settings_of(MFNetSettings, config, keywords)
        super().__init__(modalities, classes, view=config.view, core=config.core or config.view)
        self.config = config
        self.zoom = _zoom(self.modalities, config)
        mechanism = MECHANISMS[config.finetune](
            len(modalities), rank=config.rank, bottleneck=config.bottleneck, exchange=config.exchange
        )
        self.encoder = StackedEncoder(
            config.encoder,
            config.view * self.zoom,
            config.encoder_options,
            checkpointing=config.checkpointing,
        )
        self._reference: mfnet_weights.Reference | None = None
        plain = self.encoder.vit.state_dict(keep_vars=True)
        fine_tune(self.encoder.vit, mechanism, config.first_block)
        names = {id(value): name for name, value in plain.items()}
        tuned = self.encoder.vit.state_dict(keep_vars=True)
        self._published = {name: names[id(value)] for name, value in tuned.items() if id(value) in names}
        self._trains_encoder = mechanism.trains_encoder
        self.stems = nn.ModuleList(Stem(modality.channels) for modality in self.modalities.values())
        channels = self.encoder.channels
        self.necks = nn.ModuleList(neck(each, len(channels) == 1) for each in channels)
        self.fusion = DeepFusion(len(modalities), len(channels)) if config.deep_fusion else SumFusion()
        scales = [WIDTH] * (4 if config.deep_fusion else len(channels))
        self.decoder = UNetFormerDecoder(scales, classes, features=config.decoder_features, dropout=config.dropout)
        if config.merged:
            self.merge()

    def load_pretrained(self, *, missing_only: bool = False) -> None:
        """Reads the encoder's published weights, or those of the file that `weights` names.

        They are fetched once, to the directory that LANDFUSE_CACHE names or ~/.cache/landfuse.
        """
        config = self.config
        if config.merged or config.weights == "random" or (missing_only and self._trains_encoder):
            return
        if config.weights == "pretrained":
            self._reference = mfnet_weights.by_name(config.encoder)
        else:
            self._reference = mfnet_weights.from_file(config.encoder, config.weights)
        state = mfnet_weights.encoder_state(read_tensors(self._reference.path))
        mfnet_weights.fit(self.encoder.vit, state, self._reference, self._published)

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        height, width = self.size_of(images)
        return self._decoded(self.features(images), height, width)

    def _decoded(self, maps: list[list[Tensor]], height: int, width: int) -> Tensor:
        logits = self.decoder(self.fusion(maps))
        size = (self.encoder.padded, self.encoder.padded)
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        logits = logits[:, :, : height * self.zoom, : width * self.zoom]
        if self.zoom > 1:
            logits = F.avg_pool2d(logits, self.zoom)
        return logits[:, :, self.halo : height - self.halo, self.halo : width - self.halo]

    def features(self, images: dict[str, Tensor]) -> list[list[Tensor]]:
        """What the encoder returns.

        Args:
            images: as in `forward`.

        Returns:
            Per modality, in the order of `modalities`, its maps (B, 256, H, W), finest first.
        """
        height, width = self.size_of(images)
        if max(height, width) > self.view:
            raise ModelError(
                f"the images are {height} x {width} px, and the encoder has positions for {self.view} x {self.view}",
                f"images of up to {self.view} px on each side (times the zoom of a finer modality)",
                f"build MFNet with view={max(height, width)}, or cut the images; whole scenes are mapped by "
                "landfuse.predict",
            )
        size = (height * self.zoom, width * self.zoom)
        stems = zip(self.modalities, self.stems, strict=True)
        prepared = [self._prepared(stem(images[name]), size) for name, stem in stems]
        maps = self.encoder(prepared)
        return [[neck(x) for neck, x in zip(self.necks, each, strict=True)] for each in maps]

    def heat_maps(self, images: dict[str, Tensor], wanted: Tensor) -> list[Tensor]:
        """Where each modality's features speak for a class: Grad-CAM at the encoder's coarsest map.

        As in the authors' release (test_heatmap.py), which takes the score of one pixel; here it may be that of
        several, as in Vinogradova et al. 2020, doi 10.1609/aaai.v34i10.7244.

        Args:
            images: as in `forward`.
            wanted: what the scores are weighed by, of the shape of the logits: 1 at a class and its pixels, else 0.

        Returns:
            Per modality (B, H * zoom, W * zoom): the channels of its features, weighed by the mean gradient of the
            score, summed, from 0 (nothing, or against it) to 1 at its largest.
        """
        height, width = self.size_of(images)
        with torch.no_grad():
            maps = self.features(images)
        coarsest = [each[-1].requires_grad_() for each in maps]
        score = (self._decoded(maps, height, width) * wanted).sum()
        heat = []
        for x, slope in zip(coarsest, torch.autograd.grad(score, coarsest), strict=True):
            each = F.relu((x.detach() * slope.mean(dim=(2, 3), keepdim=True)).sum(1, keepdim=True))
            each = each / each.amax(dim=(2, 3), keepdim=True).clamp(min=1e-30)
            each = F.interpolate(each, size=(self.encoder.padded,) * 2, mode="bilinear", align_corners=False)
            heat.append(each[:, 0, : height * self.zoom, : width * self.zoom])
        return heat

    def _prepared(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if x.shape[-1] > size[1]:
            x = F.interpolate(x, size=size, mode="area")
        elif x.shape[-1] < size[1]:
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return mirrored(x, self.encoder.padded, self.encoder.padded)

    def frozen_reference(self) -> dict[str, str] | None:
        """What a bundle says of the encoder that it does not store: its name, address and SHA-256.

        Returns:
            None where a bundle stores all weights: the encoder was trained, merged, or started at random.
        """
        if self._trains_encoder or self._reference is None:
            return None
        name, address, sha256, _ = self._reference
        return {"name": name, "address": address, "sha256": sha256}

    def trained_state(self) -> dict[str, Tensor]:
        """What a bundle stores: everything but the frozen encoder that `frozen_reference` names."""
        state = self.state_dict()
        frozen = self._frozen_names()
        return {name: value for name, value in state.items() if name not in frozen}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what `trained_state` returned; the frozen encoder is already there.

        Raises:
            ModelError: if the weights are those of another model.
        """
        wanted = self.state_dict()
        kept = set(wanted) - self._frozen_names()
        faults = [f"{name} is missing" for name in sorted(kept - set(state))]
        faults += [f"{name} is unknown" for name in sorted(set(state) - kept)]
        faults += [
            f"{name} is {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
            for name in sorted(kept & set(state))
            if state[name].shape != wanted[name].shape
        ]
        if faults:
            raise ModelError(
                f"weights that do not fit this MFNet: {'; '.join(faults[:3])}"
                + (f"; and {len(faults) - 3} more" if len(faults) > 3 else ""),
                "the weights of a model with the same modalities, classes and settings",
                "use the settings that the weights were saved with",
            )
        self.load_state_dict(dict(state), strict=False)

    def _frozen_names(self) -> set[str]:
        if self.frozen_reference() is None:
            return set()
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name for name in self.state_dict() if name.startswith("encoder.vit.")} - trained

    def merge(self) -> tuple[list[str], list[str]]:
        """Folds LoRA into the weights where that is the same function, for inference.

        The model then stores its encoder, since it is no longer the published one; `config` says so.

        Returns:
            Names of the layers that were folded, and of those that cannot be (see `layers.lora.merge_lora`).
        """
        folded, kept = merge_lora(self)
        if folded:
            self.config = self.config.model_copy(update={"merged": True})
            self.store_all()
        return folded, kept

    def store_all(self) -> None:
        """Lets a bundle hold the frozen encoder too, so that it needs no other file; `config` says so."""
        self.config = self.config.model_copy(update={"weights": "random"})
        self._reference = None


def _zoom(modalities: Mapping[str, Modality], config: MFNetSettings) -> int:
    """Pixels of the encoder per pixel of the scene's grid."""
    zoom = config.encoder_zoom or max(modality.zoom for modality in modalities.values())
    if config.view * zoom > MAX_SIDE:
        raise ModelError(
            f"a view of {config.view} px at zoom {zoom} is {config.view * zoom} px wide",
            f"at most {MAX_SIDE} px for the encoder",
            f"set `view` to {MAX_SIDE // zoom} or less" if zoom <= MAX_SIDE else "set a smaller `encoder_zoom`",
        )
    return zoom


def from_authors(
    path: str | Path,
    modalities: Mapping[str, Modality] | None = None,
    *,
    view: int = 256,
    core: int | None = None,
) -> MFNet:
    """MFNet from a checkpoint that was trained with the authors' code (https://github.com/sstary/SSRS).

    Args:
        path: the state_dict that their training saved, or the same as .safetensors.
        modalities: two; if not given, `optical` with three channels and `dsm` with one, at zoom 1.
        view: side of the images in pixels; the authors train at 256.
        core: side of the square that is labelled; by default the view.

    Returns:
        A model with the same logits. It stores its encoder when it is saved, and needs no other file.

    Raises:
        MissingFileError: if there is no such file.
        ModelError: if it is no such checkpoint, or the modalities are not two of three, and one or three channels.
    """
    modalities = modalities or {"optical": Modality(3), "dsm": Modality(1)}
    channels = [modality.channels for modality in modalities.values()]
    if channels not in ([3, 1], [3, 3]):
        raise ModelError(
            f"the authors' MFNet was asked for with {len(modalities)} modalities of "
            f"{', '.join(map(str, channels))} channels",
            "two modalities, the first with three channels, the second with one or three",
            "name the optical image first and the heights second",
        )
    values, state = mfnet_authors.convert(read_tensors(path), view, str(path))
    classes = state["decoder.head.2.weight"].shape[0]
    config = settings.parse(MFNetSettings, {**values, "core": core}, str(path))
    model = MFNet(modalities, classes, config)
    wanted = model.state_dict()
    for name in state.keys() & wanted.keys():
        state[name] = mfnet_weights.resized(name.removeprefix("encoder.vit."), state[name], wanted[name].shape, 0)
    model.load_trained_state(state)
    return model
