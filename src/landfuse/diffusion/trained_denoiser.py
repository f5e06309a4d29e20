"""A denoiser with all that it needs to be used again: its own pixel maps, and the folder that holds both.

The folder has two files, `denoiser.safetensors` and `denoiser.json`, like a bundle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse.diffusion.denoiser import Denoiser
from landfuse.diffusion.noise import add_noise
from landfuse.diffusion.settings import FeatureSettings
from landfuse.diffusion.tiles import noise_of
from landfuse.errors import BundleError, LandfuseError
from landfuse.files import unwritable, whole_file
from landfuse.kernels.gpu import default_device, gpu_kernels
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene
from landfuse.views.mapped_pixels import fit_pixel_maps, read_mapped_pixels
from landfuse.views.pixel_map import PixelMap
from landfuse.views.settings import PixelMapSettings

FORMAT = 1
"""Version of the folder's layout; a newer one is refused."""

_PLAIN_BANDS = 16
"""Modalities with more bands are reduced to principal components."""

_FEWEST, _MOST = 3, 16
"""How many components at least and at most: whitened noise of many weak ones would outweigh the strong."""

_EXPLAINED = 0.999
"""Fraction of the variance that the components hold, within these limits."""

_LIMIT = 3.0
"""Values are limited to this many standard deviations, and divided by it: -1..1."""


def own_maps(scenes: Sequence[Scene], wanted: Sequence[NDArray[np.bool_]], names: Sequence[str]) -> dict[str, PixelMap]:
    """The denoiser's own statistics: standardised bands or principal components, within -1..1, and a last channel
    that is 1 where there is data and 0 where there is none.

    Args:
        wanted: (H, W) per scene, true where a pixel may be looked at.

    Returns:
        name -> map of C bands to D + 1 channels.

    Raises:
        ModelError: if a modality has no data in the wanted pixels.
    """
    bands = {name: scenes[0].modalities[name].raster.bands for name in names}
    settings = {
        name: PixelMapSettings(kind="pca", components=count)
        if count > _PLAIN_BANDS
        else PixelMapSettings(kind="standardise")
        for name, count in bands.items()
    }
    return {name: _noted(fitted) for name, fitted in fit_pixel_maps(scenes, wanted, settings).items()}


def _noted(fitted: PixelMap) -> PixelMap:
    """Cuts the components, scales to -1..1, and adds the channel that marks data.

    A row of zeros with a bias of 1 gives 1 for a pixel with data; NaN times 0 is NaN, which the map turns into 0.
    """
    weight, bias = fitted.weight, fitted.bias
    if weight.dim() == 1:
        weight = torch.diag(weight)
    else:
        variances = 1 / weight.double().square().sum(dim=1)  # whitened: a row is an axis over its deviation
        explained = variances.cumsum(0) / variances.sum()
        kept = min(max(int((explained < _EXPLAINED).sum()) + 1, _FEWEST), _MOST)
        centre = (weight.double().T * variances) @ -bias.double()  # the axes are orthonormal
        if float(variances.sum()) <= 1e-14 * float(centre.square().sum()):
            weight, bias = torch.zeros_like(weight), torch.zeros_like(bias)  # constant: rounding noise otherwise
        weight, bias = weight[:kept], bias[:kept]
    known = torch.zeros(1, weight.shape[1])
    return PixelMap(torch.cat([weight / _LIMIT, known]), torch.cat([bias / _LIMIT, torch.ones(1)]), 1.0)


def constant(maps: Mapping[str, PixelMap]) -> list[str]:
    """The modalities that never change: their maps give 0 everywhere."""
    return [name for name, own in maps.items() if not bool(own.weight.any())]


class _Description(pydantic.BaseModel):
    base: int = pydantic.Field(ge=8)
    zooms: dict[str, int]
    pixel_maps: dict[str, tuple[int, ...]]
    facts: dict[str, Any]


def _damaged(error: object) -> BundleError:
    return BundleError(f"the denoiser is broken: {str(error)[:300]}", "a whole folder", "copy it again, or train again")


class TrainedDenoiser(nn.Module):
    """A denoiser and its pixel maps; a `Denoising`.

    Args:
        maps: as `own_maps` gives them.
        zooms: name -> how many times finer than the scene's grid.
        facts: what is known of its training, as plain values.
    """

    def __init__(
        self,
        network: Denoiser,
        maps: Mapping[str, PixelMap],
        zooms: Mapping[str, int],
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.pixel_maps = network, nn.ModuleDict(maps)
        self.zooms, self.facts = dict(zooms), dict(facts or {})
        self.requires_grad_(False)

    @classmethod
    def untrained(cls, maps: Mapping[str, PixelMap], zooms: Mapping[str, int], base: int) -> TrainedDenoiser:
        """One with the weights that training starts from, drawn from torch's generator."""
        return cls(Denoiser({name: own.channels - 1 for name, own in maps.items()}, base), maps, zooms)

    @property
    def maps(self) -> dict[str, PixelMap]:
        """The pixel maps by name, in the order of the modalities."""
        return {name: module for name, module in self.pixel_maps.items() if isinstance(module, PixelMap)}

    def images(self, views: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Mapped views as the network takes them, on the scene's own grid; finer modalities are averaged.

        Args:
            views: name -> (B, D + 1, H * zoom, W * zoom), from `maps`.

        Returns:
            Images, (B, D, H, W), 0 without data, and masks, (B, 1, H, W), 1 where there is no data.
        """
        images, missing = {}, {}
        for name, view in views.items():
            whole = F.avg_pool2d(view, self.zooms[name]) if self.zooms[name] > 1 else view
            known = (whole[:, -1:] > 1 - 1e-6).to(whole.dtype)
            images[name], missing[name] = whole[:, :-1] * known, 1 - known
        return images, missing

    @property
    def inputs(self) -> dict[str, tuple[int, int]]:
        """What it looks at: name -> bands and zoom."""
        return {name: (own.bands, self.zooms[name]) for name, own in self.maps.items()}

    @property
    def widths(self) -> tuple[int, int, int]:
        """Features of the levels, fine to deep."""
        return self.network.widths

    def levels(
        self, scene: Scene, window: Window, settings: FeatureSettings
    ) -> Iterator[tuple[Sequence[NDArray[np.float32]], NDArray[np.bool_]]]:
        """See `Denoising.levels`."""
        device = default_device()
        network = self.network.to(device).eval()
        mapped = read_mapped_pixels(scene, window, self.maps)
        views = {
            name: table.T.reshape(1, -1, window.height * mapped.zooms[name], window.width * mapped.zooms[name])
            for name, table in mapped.tables.items()
        }
        with torch.inference_mode():
            images, missing = self.images(views)
            nothing = (torch.stack(list(missing.values())).amin(dim=0)[0, 0] == 1).numpy()
            noise = noise_of(settings.seed, network.channels, window)
            alpha, dark = network.alpha.cpu(), {name: mask.to(device) for name, mask in missing.items()}
        for timestep in settings.timesteps:
            with torch.inference_mode(), gpu_kernels(device, tf32=False, same=True):
                noisy = {
                    name: add_noise(image, torch.from_numpy(noise[name]), alpha[timestep][None]).to(device)
                    for name, image in images.items()
                }
                levels = network.levels(noisy, dark, torch.tensor([timestep], device=device))
            yield [level[0].cpu().numpy() for level in levels], nothing

    @property
    def digest(self) -> str:
        """A hash of all its numbers: two denoisers with one digest give the same features."""
        known = hashlib.sha256()
        for name, tensor in sorted(self._tensors().items()):
            known.update(name.encode())
            known.update(tensor.numpy().tobytes())
        return known.hexdigest()

    def _tensors(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.state_dict().items()}

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Its tensors, and the rest in words and numbers: what `unpacked` takes."""
        description = {
            "base": self.network.base,
            "zooms": self.zooms,
            "pixel_maps": {name: list(own.weight.shape) for name, own in self.maps.items()},
            "facts": self.facts,
        }
        return self._tensors(), description

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> TrainedDenoiser:
        """Builds the denoiser that `packed` described.

        Raises:
            BundleError: if the description or the tensors are damaged.
        """
        try:
            known = _Description.model_validate(dict(description))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            raise _damaged(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        maps = {name: PixelMap(torch.empty(shape), torch.empty(shape[0])) for name, shape in known.pixel_maps.items()}
        made = cls.untrained(maps, known.zooms, known.base)
        made.facts = known.facts
        try:
            # Former versions had heads that estimated masked images; nothing reads them.
            made.load_state_dict({name: value for name, value in tensors.items() if ".image_heads." not in name})
        except RuntimeError as error:  # tensors of other names or shapes
            raise _damaged(error) from None
        return made.eval()

    def save(self, folder: str | Path) -> None:
        """Writes the folder, whole or not at all.

        Raises:
            OutputError: if it cannot be written.
        """
        folder = Path(folder)
        tensors, description = self.packed()
        with whole_file(folder / "denoiser.safetensors") as weights, whole_file(folder / "denoiser.json") as words:
            try:
                safetensors.torch.save_file(tensors, weights)
            except SafetensorError as error:
                raise unwritable(folder / "denoiser.safetensors", error) from None
            text = json.dumps({"format": FORMAT, **description}, indent=2, ensure_ascii=False)
            words.write_text(text + "\n", encoding="utf-8")


def load_denoiser(folder: str | Path) -> TrainedDenoiser:
    """Loads what `TrainedDenoiser.save` wrote.

    Args:
        folder: the denoiser's, or that of a run which holds one in `denoiser/`.

    Raises:
        BundleError: if it is missing, broken, or written by a newer version.
    """
    folder = Path(folder)
    if not (folder / "denoiser.json").exists() and (folder / "denoiser" / "denoiser.json").exists():
        folder = folder / "denoiser"
    try:
        description = json.loads((folder / "denoiser.json").read_text(encoding="utf-8"))
        if description["format"] > FORMAT:
            raise BundleError(
                f"the denoiser {folder} has format {description['format']}",
                f"format {FORMAT} or older",
                "update landfuse: pip install -U landfuse",
            )
        return TrainedDenoiser.unpacked(safetensors.torch.load_file(folder / "denoiser.safetensors"), description)
    except LandfuseError:
        raise
    except FileNotFoundError:
        raise BundleError(
            f"{folder} holds no denoiser",
            "a folder with denoiser.json and denoiser.safetensors, or a run folder that holds it in `denoiser/`",
            "check the path, or whether the pre-training ended",
        ) from None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise BundleError(
            f"the denoiser {folder} is broken: {str(error)[:300]}", "a whole folder", "train it again"
        ) from None
