"""Diffusion features of each view by itself, within the model: the way of the field, to compare `features` with.

The denoiser looks at the view alone, with one fixed noise for all views. What lies beyond the view is not seen, and
every pixel is computed once for each view that holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse.diffusion.denoiser import Denoiser
from landfuse.diffusion.features import FACTORS, PREFIX, SHOWN, DiffusionFeatures, place_noise
from landfuse.diffusion.noise import add_noise
from landfuse.models.base import FusionModel, Modality
from landfuse.rasters.windows import Window, mirrored


def built_with(
    features: DiffusionFeatures | None,
    modalities: Mapping[str, Modality],
    build: Callable[[Mapping[str, Modality]], FusionModel],
) -> FusionModel:
    """A model, with the denoiser before it where features are computed from views.

    Args:
        features: what is appended to scenes, if anything.
        modalities: what images come, with what is appended.
        build: makes the model for the modalities that it sees: levels in the place of what the denoiser looks at.
    """
    if features is None or features.settings.mode == "scene":
        return build(modalities)
    plain = {name: modality for name, modality in modalities.items() if not name.startswith(SHOWN)}
    return WithPatchFeatures(build(plain | {n: Modality(c) for n, c in features.channels.items()}), features)


class WithPatchFeatures(FusionModel):
    """A model whose diffusion features are computed from its view.

    Args:
        network: the model, which takes the features as modalities; its view, core and loss are kept.
        features: the denoiser and what is taken from it.
    """

    def __init__(self, network: FusionModel, features: DiffusionFeatures) -> None:
        super().__init__(network.modalities, network.classes, view=network.view, core=network.core)
        self.network, self.denoiser, self.settings = network, features.denoiser, features.settings
        self.layers = network.layers
        self.denoiser.train()  # nothing in it depends on the mode, and Lightning warns of parts left in the other
        # The features' mean and deviation are not known beforehand, as those of a whole scene are.
        self.norms = nn.ModuleDict({name: nn.BatchNorm2d(c, affine=False) for name, c in features.channels.items()})
        side = -(-network.view // Denoiser.SIDES) * Denoiser.SIDES
        index = mirrored(np.arange(side, dtype=np.int64), network.view)
        self.register_buffer("_index", torch.from_numpy(index), persistent=False)
        for name, noise in place_noise(self.settings.seed, self.denoiser, Window(0, 0, side, side)).items():
            self.register_buffer(f"_noise_{name}", noise, persistent=False)

    def guided(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Images with the features in the place of what the denoiser looks at."""
        shown = {name.removeprefix(SHOWN): view for name, view in images.items() if name.startswith(SHOWN)}
        plain = {name: image for name, image in images.items() if not name.startswith(SHOWN)}
        found: dict[str, list[Tensor]] = {name: [] for name in self.norms}
        with torch.no_grad():
            clean, missing = self.denoiser.images(shown)
            index: Tensor = self.get_buffer("_index")
            clean, missing = (
                {name: image[:, :, index][:, :, :, index] for name, image in group.items()}
                for group in (clean, missing)
            )
            for timestep in self.settings.timesteps:
                times = torch.full((len(next(iter(clean.values()))),), timestep, device=index.device)
                share = self.denoiser.network.share[times]
                noisy = {
                    name: add_noise(image, self.get_buffer(f"_noise_{name}"), share) for name, image in clean.items()
                }
                levels = self.denoiser.network.levels(noisy, missing, times)
                for level in self.settings.levels:
                    fine = levels[level - 1]
                    if FACTORS[level] > 1:
                        fine = F.interpolate(fine, scale_factor=float(FACTORS[level]), mode="bilinear")
                    found[f"{PREFIX}{level}"].append(fine[:, :, : self.view, : self.view])
        return plain | {name: self.norms[name](torch.cat(parts, dim=1)) for name, parts in found.items()}

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        """See `FusionModel.forward`."""
        logits: Tensor = self.network(self.guided(images))
        return logits

    def map_layers(self, images: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `FusionModel.map_layers`."""
        return self.network.map_layers(self.guided(images))

    def loss(self, images: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        """The network's own; see `FusionModel.loss`."""
        self.network.progress = self.progress
        return self.network.loss(self.guided(images), target)

    def frozen_reference(self) -> dict[str, str] | None:
        """See `FusionModel.frozen_reference`."""
        return self.network.frozen_reference()

    def trained_state(self) -> dict[str, Tensor]:
        """See `FusionModel.trained_state`; the bundle stores the denoiser by itself."""
        own = {f"norms.{name}": value for name, value in self.norms.state_dict().items()}
        return own | {f"network.{name}": value for name, value in self.network.trained_state().items()}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """See `FusionModel.load_trained_state`."""
        parts = {
            prefix: {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
            for prefix in ("norms.", "network.")
        }
        self.norms.load_state_dict(parts["norms."])
        self.network.load_trained_state(parts["network."])
