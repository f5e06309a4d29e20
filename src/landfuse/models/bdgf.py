"""BDGF: diffusion features guide a CNN, a Mamba and a transformer side by side, and the three teach each other.

Source: Liu et al. 2025, "Balanced Diffusion-Guided Fusion for Multimodal Remote Sensing Classification", arXiv
2509.23310. Neither its equations nor its code are available. What is known of the paper: a multimodal diffusion model,
balanced by masking modalities, whose features guide three branches (a CNN by feature fusion, a Mamba by group channel
attention, a transformer by cross-attention) that learn from each other's probabilities and features.

    guides       g_1, g_2, g_3 = mix over timesteps(diffusion_1), ..(diffusion_2), ..(diffusion_3)
    per branch   tokens = stem(images);  three times: tokens = guided by g_s(mixed(tokens))
                 CNN: two 3x3 convolutions | Mamba: scans along a spiral, from both ends | transformer: attention
                 z = read([whole view; pixel of the core]),  logits = head(z)
    final        logits = MLP([z of all branches]);  the map averages the probabilities of all heads
    loss         cross-entropy of all heads + ramp * (KL to the other branches + 1 - cosine of the features)

The features come as modalities named `diffusion_1`, `diffusion_2`, `diffusion_3` (decoder levels, fine to deep), the
channels of a timestep side by side. Without them the network runs unguided; a stage whose level is missing is too.

Differs from the paper, and why:
- All shapes, the operators' forms and the losses' forms are our own choice, since the paper's are not available; the
  pairing of operators and branches, and what is aligned, are the paper's.
- Any number of modalities from one; narrow ones enter by a 3x3 convolution, wide ones pixel by pixel and then by one
  3x3 convolution per channel, which is smaller. Finer ones are averaged to the grid after that.
- The guides are normalised over the channels of each pixel, not over the patch: a pixel's guide is then the same in
  every patch that holds it.
- With a `core` of several pixels the read-out and the heads work on each of its pixels, and a training pixel may be
  anywhere in it: one pass then maps core * core pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse.errors import ModelError
from landfuse.layers import guidance, mutual
from landfuse.legend import UNLABELLED
from landfuse.models.base import DIFFUSION_LEVEL, FusionModel, Modality, cross_entropy, settings_of
from landfuse.models.bdgf_branches import KINDS, Branch, Size
from landfuse.models.settings import BdgfSettings

STAGES = 3


TEMPERATURE = 2.0
"""Softens the probabilities that branches learn from."""
RAMP = 0.2
"""Fraction of the training over which mutual learning rises from nothing."""


class Scores(NamedTuple):
    """What the network makes of a batch; P = core * core."""

    features: Tensor  # of the branches, (J, B, P, Z)
    branches: Tensor  # logits of their heads, (J, B, P, K)
    final: Tensor  # logits of the final head, (B, P, K)
    linear: Tensor | None  # logits of the linear layer on the pixel's own diffusion features, (B, P, K)


class Bdgf(FusionModel):
    """The guided network; `pretrain:` and `features:` of a recipe make its diffusion features.

    Args:
        modalities: name -> channels, or `Modality`; `diffusion_1` to `diffusion_3` are guides (the channels of a
            timestep side by side), all others are looked at.
        classes: K.
        config: the settings; or keywords, see `BdgfSettings`.

    Raises:
        SettingsError: for an unknown or wrong setting.
        ModelError: if there are only diffusion features, their channels do not divide by the timesteps, or `linear` has
            none.

    `forward` takes name -> (B, C, view * zoom, view * zoom), and no other size, since its tokens have learned
    positions; it returns (B, K, core, core).

    >>> import torch, landfuse as lf
    >>> net = lf.models.Bdgf({"hsi": 144, "lidar": 1}, classes=15, width=32, core=5, branches=["cnn", "mamba"])
    >>> net({"hsi": torch.zeros(2, 144, 11, 11), "lidar": torch.zeros(2, 1, 11, 11)}).shape
    torch.Size([2, 15, 5, 5])
    """

    Settings = BdgfSettings

    def __init__(
        self,
        modalities: Mapping[str, int | Modality],
        classes: int,
        config: BdgfSettings | None = None,
        **keywords: Any,
    ) -> None:
        config = settings_of(BdgfSettings, config, keywords)
        super().__init__(modalities, classes, view=config.view, core=config.core)
        self.config = config
        levels, seen = _levels(self.modalities, config.timesteps), _seen(self.modalities)
        size = Size(config.view, config.core, config.width, config.embedding, config.states, config.heads)
        chosen = _chosen(config, sorted(levels))
        if config.guidance == "raw":
            stacked = sum(m.channels for m in seen.values())
            self.guides = nn.ModuleDict(
                {str(number): guidance.TimestepMix(1, stacked, config.width) for number in range(1, STAGES + 1)}
            )
        else:
            used = sorted({level for row in chosen for level in row if level is not None})
            self.guides = nn.ModuleDict(
                {str(k): guidance.TimestepMix(config.timesteps, levels[k], config.width) for k in used}
            )
        self.chosen, self.seen = chosen, seen
        self.names = _numbered(config.branches)
        self.branches = nn.ModuleDict()
        for name, kind, row in zip(self.names, config.branches, chosen, strict=True):
            operators = [None if level is None else _operator(kind, config) for level in row]
            self.branches[name] = Branch(KINDS[kind], seen, operators, size)
        self.heads = nn.ModuleDict({name: nn.Linear(config.embedding, classes) for name in self.names})
        self.final = nn.Sequential(
            nn.Linear(len(self.names) * config.embedding, config.embedding),
            nn.GELU(),
            nn.Linear(config.embedding, classes),
        )
        self.levels = [name for name in self.modalities if name not in seen]
        self.linear: nn.Linear | None = None
        if config.linear:
            if not self.levels:
                raise ModelError(
                    f"`linear` is to read diffusion features, and `bdgf` gets {', '.join(self.modalities)}",
                    "`pretrain:` and `features:` in the recipe, which make diffusion_1, diffusion_2 and diffusion_3",
                    "add them, or set model.linear=false",
                )
            self.linear = nn.Linear(sum(self.modalities[name].channels for name in self.levels), classes)
        if len(self.names) > 1:
            self.layers = ("disagreement",)

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        return self._logits(self.scores(images))

    def map_layers(self, images: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and how far the branches disagree."""
        scores = self.scores(images)
        if len(self.names) == 1:
            return self._logits(scores), {}
        apart = mutual.disagreement(F.log_softmax(scores.branches.float(), dim=-1))
        return self._logits(scores), {"disagreement": self._on_core(apart[..., None])}

    def loss(self, images: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of every head, and at their weights, ramped up, what branches learn from each other."""
        scores, config = self.scores(images), self.config.mutual
        smoothing = self.config.label_smoothing
        parts = {"final": cross_entropy(self._on_core(scores.final), target, smoothing)}
        for name, logits in zip(self.names, scores.branches, strict=True):
            parts[name] = cross_entropy(self._on_core(logits), target, smoothing)
        total = torch.stack(list(parts.values())).sum()
        ramp = min(1.0, self.progress / RAMP)
        if len(self.names) > 1:
            labelled = (target.flatten() != UNLABELLED).nonzero().squeeze(1)  # among all pixels of the batch
            if config.probability_weight:
                parts["probabilities"] = mutual.distil(
                    scores.branches.flatten(1, 2).index_select(1, labelled).float(), TEMPERATURE
                )
                total = total + ramp * config.probability_weight * parts["probabilities"]
            if config.feature_weight:
                parts["features"] = mutual.align_direction(
                    scores.features.flatten(1, 2).index_select(1, labelled).float()
                )
                total = total + ramp * config.feature_weight * parts["features"]
        if scores.linear is not None:
            parts["linear"] = cross_entropy(self._on_core(scores.linear), target, smoothing)
            total = total + parts["linear"]
        return {"loss": total, **parts}

    def scores(self, images: Mapping[str, Tensor]) -> Scores:
        """The features and logits of every branch, and the final logits."""
        self.check_view(images)
        guides = self._guides(images)
        features = torch.stack(
            [
                branch(images, [None if level is None else guides[level] for level in row])
                for branch, row in zip(self.branches.values(), self.chosen, strict=True)
            ]
        )
        logits = torch.stack([head(z) for head, z in zip(self.heads.values(), features, strict=True)])
        final = self.final(torch.cat(list(features), dim=-1))
        return Scores(features, logits, final, None if self.linear is None else self.linear(self._own(images)))

    def _own(self, images: Mapping[str, Tensor]) -> Tensor:
        """The diffusion features of the core's pixels, (B, P, D)."""
        inside = slice(self.halo, self.halo + self.core)
        return torch.cat([images[name][:, :, inside, inside].flatten(2) for name in self.levels], dim=1).transpose(1, 2)

    def _guides(self, images: Mapping[str, Tensor]) -> dict[int, Tensor]:
        if self.config.guidance != "raw":
            return {int(k): _per_pixel(guide, images[f"diffusion_{k}"]) for k, guide in self.guides.items()}
        stacked = torch.cat(
            [F.avg_pool2d(images[n], m.zoom) if m.zoom > 1 else images[n] for n, m in self.seen.items()], dim=1
        )
        return {int(number): _per_pixel(guide, stacked) for number, guide in self.guides.items()}

    def _logits(self, scores: Scores) -> Tensor:
        logits = _mean(torch.cat([scores.branches, scores.final[None]])) if self.config.ensemble else scores.final
        if scores.linear is not None:
            logits = _mean(torch.stack([logits, scores.linear]))
        return self._on_core(logits)

    def _on_core(self, values: Tensor) -> Tensor:
        """(B, P, K) -> (B, K, core, core)."""
        return values.transpose(1, 2).unflatten(2, (self.core, self.core))


def _mean(logits: Tensor) -> Tensor:
    """The logarithm of the mean probabilities of several heads, (J, B, P, K) -> (B, P, K)."""
    return F.log_softmax(logits.float(), dim=-1).logsumexp(dim=0) - torch.tensor(float(len(logits))).log()


def _per_pixel(guide: nn.Module, image: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, D, H, W)."""
    guided: Tensor = guide(image.permute(0, 2, 3, 1))
    return guided.permute(0, 3, 1, 2)


def _seen(modalities: Mapping[str, Modality]) -> dict[str, Modality]:
    """The modalities that are no diffusion features."""
    seen = {name: modality for name, modality in modalities.items() if not DIFFUSION_LEVEL.fullmatch(name)}
    if not seen:
        raise ModelError(
            f"`bdgf` got only diffusion features: {', '.join(modalities)}",
            "at least one modality that they were computed from",
            "add it to `modalities:`",
        )
    return seen


def _levels(modalities: Mapping[str, Modality], timesteps: int) -> dict[int, int]:
    """Level -> channels at each timestep, of the diffusion features."""
    levels = {}
    for name, modality in modalities.items():
        match = DIFFUSION_LEVEL.fullmatch(name)
        if match is None:
            continue
        if modality.channels % timesteps or modality.zoom != 1:
            raise ModelError(
                f"`{name}` has {modality.channels} channels at zoom {modality.zoom}",
                f"features at {timesteps} timesteps, side by side, at zoom 1",
                "set `timesteps` of the model to the number of timesteps in `features:`",
            )
        levels[int(match.group(1))] = modality.channels // timesteps
    return levels


def _chosen(config: BdgfSettings, levels: list[int]) -> list[list[int | None]]:
    """For every branch, the level that guides each stage; None where it is not guided."""
    stages = range(1, STAGES + 1)
    if config.guidance == "none" or (not levels and config.guidance != "raw"):
        return [[None] * STAGES for _ in config.branches]
    if config.guidance == "one_level_each":
        return [[levels[i % len(levels)]] * STAGES for i in range(len(config.branches))]
    return [[s if s in levels or config.guidance == "raw" else None for s in stages] for _ in config.branches]


def _operator(kind: str, config: BdgfSettings) -> nn.Module:
    name = getattr(config.operators, kind)
    if name == "fusion":
        return guidance.FeatureFusion(config.width)
    if name == "group_attention":
        return guidance.GroupChannelAttention(config.width, config.groups)
    return guidance.CrossAttention(config.width, config.heads)


def _numbered(kinds: tuple[str, ...]) -> list[str]:
    """Names of the branches: cnn, mamba, ...; cnn_2 where a kind comes again."""
    names: list[str] = []
    for i, kind in enumerate(kinds):
        before = kinds[:i].count(kind)
        names.append(f"{kind}_{before + 1}" if before else kind)
    return names
