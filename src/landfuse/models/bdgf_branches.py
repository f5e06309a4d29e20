"""The branches of BDGF: a stem, guided stages of one kind, and a read-out.

Between its parts a branch holds pixels as tokens, (B, L, D), so that any operator of `layers/guidance.py` serves any
kind. A stage is what mixes the tokens, then the operator, then what works on each token alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from landfuse.layers.token_mixers import Attention, BidirectionalScan, spiral
from landfuse.models.base import Modality

SPECTRAL = 8
"""A modality of more channels is mixed pixel by pixel before its 3x3 convolution, which then is one per channel."""


@dataclass(frozen=True)
class Size:
    """The sizes of a branch."""

    view: int  # side of the images on the grid, px
    core: int  # side of the centred square that is read out, px
    width: int  # D
    embedding: int  # Z, features that are read out
    states: int  # N of the scans
    heads: int  # of the attention


@dataclass(frozen=True)
class Kind:
    """What makes a branch a CNN, a Mamba or a transformer."""

    mix: Callable[[Size], nn.Module]  # mixes the tokens at the start of a stage
    alone: Callable[[Size], nn.Module] | None = None  # works on each token at its end
    # side of the view -> the pixels in the order of the tokens, (view * view,) int64
    order: Callable[[int], Tensor] = lambda view: torch.arange(view * view)
    class_token: bool = False  # whether one that stands for the whole view precedes them, and all have positions


class Stem(nn.Module):
    """Images of several modalities become one map.

    Args:
        modalities: name -> channels and zoom; finer ones are averaged to the grid.
        width: D.
    """

    def __init__(self, modalities: Mapping[str, Modality], width: int) -> None:
        super().__init__()
        self.enter = nn.ModuleDict()
        joined = 0
        for name, modality in modalities.items():
            spectral = modality.channels > SPECTRAL
            out = width if spectral else width // 2
            layers: list[nn.Module] = [nn.Conv2d(modality.channels, out, 1, bias=False)] if spectral else []
            channels, groups = (out, out) if spectral else (modality.channels, 1)
            layers += [nn.Conv2d(channels, out, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(out)]
            to_grid = [nn.AvgPool2d(modality.zoom)] if modality.zoom > 1 else []
            self.enter[name] = nn.Sequential(*layers, nn.GELU(), *to_grid)
            joined += out
        self.join = nn.Conv2d(joined, width, 1)

    def forward(self, images: Mapping[str, Tensor]) -> Tensor:
        """name -> (B, C, H * zoom, W * zoom) becomes (B, D, H, W)."""
        joined: Tensor = self.join(torch.cat([enter(images[name]) for name, enter in self.enter.items()], dim=1))
        return joined


class Branch(nn.Module):
    """Images in, features of the core's pixels out.

    Args:
        kind: one of `KINDS`.
        modalities: of the images.
        operators: one per stage; None where a stage is not guided.
        size: its sizes.
    """

    walk: Tensor  # (view * view,) the pixel of each token
    core_places: Tensor  # (core * core,) the token of each pixel of the core, row by row

    def __init__(
        self, kind: Kind, modalities: Mapping[str, Modality], operators: Sequence[nn.Module | None], size: Size
    ) -> None:
        super().__init__()
        self.stem = Stem(modalities, size.width)
        self.begin = _ClassToken(size.view**2, size.width) if kind.class_token else None
        self.stages = nn.ModuleList(_Stage(kind, operator, size) for operator in operators)
        self.read = nn.Sequential(nn.LayerNorm(2 * size.width), nn.Linear(2 * size.width, size.embedding))
        walk, halo = kind.order(size.view), (size.view - size.core) // 2
        self.in_rows = bool((walk == torch.arange(len(walk))).all())
        inside = torch.arange(size.view**2).view(size.view, size.view)
        inside = inside[halo : halo + size.core, halo : halo + size.core].flatten()
        self.register_buffer("walk", walk, persistent=False)
        self.register_buffer("core_places", walk.argsort()[inside], persistent=False)

    def forward(self, images: Mapping[str, Tensor], guides: Sequence[Tensor | None]) -> Tensor:
        """Features of the core's pixels.

        Args:
            images: as in `Stem`.
            guides: for each stage (B, D, H, W), or None.

        Returns:
            (B, core * core, Z).
        """
        tokens = self._tokens(self.stem(images))
        tokens = tokens if self.begin is None else self.begin(tokens)
        for stage, guide in zip(self.stages, guides, strict=True):
            tokens = stage(tokens, None if guide is None else self._tokens(guide))
        whole = tokens.mean(dim=1) if self.begin is None else tokens[:, 0]
        pixels = tokens[:, -len(self.walk) :].index_select(1, self.core_places)
        features: Tensor = self.read(torch.cat([whole[:, None].expand_as(pixels), pixels], dim=-1))
        return features

    def _tokens(self, image: Tensor) -> Tensor:
        tokens = image.flatten(2).transpose(1, 2)
        return tokens if self.in_rows else tokens.index_select(1, self.walk)


class _Stage(nn.Module):
    def __init__(self, kind: Kind, operator: nn.Module | None, size: Size) -> None:
        super().__init__()
        self.mix, self.operator = kind.mix(size), operator
        self.alone = kind.alone(size) if kind.alone else None

    def forward(self, tokens: Tensor, guide: Tensor | None) -> Tensor:
        tokens = self.mix(tokens)
        if self.operator is not None:
            tokens = self.operator(tokens, guide)
        return tokens if self.alone is None else self.alone(tokens)


class _ClassToken(nn.Module):
    """Puts a learned token before those of the pixels, and adds learned positions."""

    def __init__(self, pixels: int, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.empty(1 + pixels, width))
        nn.init.trunc_normal_(self.token, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat([self.token.expand(tokens.shape[0], 1, -1).to(tokens.dtype), tokens], dim=1) + self.positions


class _Convolutions(nn.Module):
    """A residual block of two 3x3 convolutions, over tokens in rows."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.view, width = size.view, size.width
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.activation = nn.GELU()

    def forward(self, tokens: Tensor) -> Tensor:
        image = tokens.transpose(1, 2).unflatten(2, (self.view, self.view))
        mixed: Tensor = self.activation(image + self.body(image))
        return mixed.flatten(2).transpose(1, 2)


class _Scans(nn.Module):
    """A residual block of scans from both ends."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.norm, self.scan = nn.LayerNorm(size.width), BidirectionalScan(size.width, size.states)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed: Tensor = tokens + self.scan(self.norm(tokens))
        return mixed


class _SelfAttention(nn.Module):
    """A residual block of attention among the tokens."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(size.width), Attention(size.width, size.heads)

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm(tokens)
        mixed: Tensor = tokens + self.attention(normed, normed)
        return mixed


class _Perceptron(nn.Module):
    """A residual perceptron of one hidden layer on each token."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width = size.width
        self.body = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        mixed: Tensor = tokens + self.body(tokens)
        return mixed


KINDS: dict[str, Kind] = {
    "cnn": Kind(mix=_Convolutions),
    "mamba": Kind(mix=_Scans, order=spiral),
    "transformer": Kind(mix=_SelfAttention, alone=_Perceptron, class_token=True),
}
"""Every kind of branch by the name that recipes use."""
