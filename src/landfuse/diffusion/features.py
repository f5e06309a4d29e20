"""What a trained denoiser sees in a scene, as further modalities of it: computed once by tiles, then read like a file.

The tiles lie on the scene's own lattice, whoever asks and for whatever block, and the noise is a function of the
pixel's place; so the features of a pixel are one and the same (P1). Each level of the decoder is kept at its own
resolution in half precision, and brought to the scene's grid when it is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from landfuse.diffusion.denoiser import Denoiser
from landfuse.diffusion.feature_raster import FeatureRaster, close_files
from landfuse.diffusion.noise import STEPS, add_noise
from landfuse.diffusion.trained_denoiser import TrainedDenoiser
from landfuse.errors import OutputError
from landfuse.files import unwritable
from landfuse.rasters.grid import Grid
from landfuse.rasters.place_noise import normal
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.settings import Settings
from landfuse.views.mapped_pixels import read_patchwork
from landfuse.views.pixel_map import PixelMap

log = logging.getLogger("landfuse")

PREFIX = "diffusion_"
"""The names of the appended modalities: this and the level's number."""

SHOWN = "shown_"
"""The names of modalities that are handed on for a denoiser within the model: this and their own name."""

FACTORS = {1: 1, 2: 2, 3: 4}
"""By level: how many times coarser than the scene's grid."""


class FeatureSettings(Settings):
    """What of a denoiser is handed to the model, as further modalities `diffusion_1`, `diffusion_2`, `diffusion_3`.

    Args:
        kind: `diffusion`, the only one.
        timesteps: how much noise the scene is looked at through, 0 (none) to 999 (nothing else).
        levels: of the decoder, 1 (fine) to 3 (deep); each becomes one modality of timesteps x its width channels.
        mode: `scene` computes them once per scene and keeps them; `patch` anew for each view, from that view alone,
            much slower, for comparison.
        tile: side of the tiles that features are computed by, px; a multiple of 8.
        overlap: of neighbouring tiles, px; a multiple of 8. Only a tile's centre is kept.
        seed: of the noise.
        cache: folder of the features; by default $LANDFUSE_CACHE/features, else ~/.cache/landfuse/features.
    """

    kind: Literal["diffusion"] = "diffusion"
    timesteps: tuple[int, ...] = (50, 150, 300)
    levels: tuple[int, ...] = (1, 2, 3)
    mode: Literal["scene", "patch"] = "scene"
    tile: int = Field(default=256, ge=16, multiple_of=8)
    overlap: int = Field(default=32, ge=0, multiple_of=8)
    seed: int = Field(default=0, ge=0)
    cache: str | None = None

    @field_validator("timesteps", "levels")
    @classmethod
    def _some_once(cls, value: tuple[int, ...], info: Any) -> tuple[int, ...]:
        known = range(STEPS) if info.field_name == "timesteps" else FACTORS
        if not value or len(set(value)) < len(value) or any(one not in known for one in value):
            raise ValueError(f"name at least one, each once, of {min(known)} to {max(known)}")
        return value

    @field_validator("overlap")
    @classmethod
    def _below_tile(cls, value: int, info: Any) -> int:
        if value >= info.data.get("tile", 256):
            raise ValueError("the overlap must be less than the tile")
        return value

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities that it appends."""
        return tuple(f"{PREFIX}{level}" for level in self.levels)

    @property
    def folder(self) -> Path:
        """Where features are kept."""
        if self.cache is not None:
            return Path(self.cache)
        return Path(os.environ.get("LANDFUSE_CACHE") or Path.home() / ".cache" / "landfuse") / "features"


@dataclass(frozen=True)
class DiffusionFeatures:
    """A denoiser, and what of it is handed to the model.

    Args:
        denoiser: what looks at scenes.
        settings: at what noise, and which levels.
    """

    denoiser: TrainedDenoiser
    settings: FeatureSettings

    def append(self, scenes: Sequence[Scene], *, progress: bool = False) -> list[Scene]:
        """Scenes with the features as further modalities; see `with_features`.

        Where they are computed from views, they get what the denoiser looks at a second time, for its own maps.
        """
        if self.settings.mode == "scene":
            return with_features(scenes, self.denoiser, self.settings, progress=progress)
        for scene in scenes:
            self.denoiser.check(scene)
        return [
            dataclasses.replace(
                scene,
                modalities={
                    **scene.modalities,
                    **{f"{SHOWN}{name}": scene.modalities[name] for name in self.denoiser.maps},
                },
            )
            for scene in scenes
        ]

    @property
    def maps(self) -> dict[str, PixelMap]:
        """Pixel maps of appended modalities that are not to be fitted: the denoiser's own."""
        own = {f"{SHOWN}{name}": pixel_map for name, pixel_map in self.denoiser.maps.items()}
        return own if self.settings.mode == "patch" else {}

    @property
    def appended(self) -> tuple[str, ...]:
        """The names that `append` adds."""
        return tuple(self.maps) if self.settings.mode == "patch" else self.settings.names

    @property
    def channels(self) -> dict[str, int]:
        """Name of each level's modality -> its channels."""
        widths, count = self.denoiser.network.widths, len(self.settings.timesteps)
        return {f"{PREFIX}{level}": count * widths[level - 1] for level in self.settings.levels}


def with_features(
    scenes: Sequence[Scene], denoiser: TrainedDenoiser, settings: FeatureSettings, *, progress: bool = False
) -> list[Scene]:
    """Appends a denoiser's features to scenes as modalities; what is cached is not computed again.

    Args:
        scenes: with the denoiser's modalities.
        denoiser: what looks at them.
        settings: which features.
        progress: show a progress bar.

    Raises:
        BundleError: if a scene lacks a modality of the denoiser, or has another number of bands in it.
        OutputError: if the cache cannot be written.
    """
    digest = denoiser.digest
    jobs = []
    for scene in scenes:
        denoiser.check(scene)
        key = _key(scene, denoiser, digest, settings)
        jobs.append((scene, settings.folder / key[:24], key))
    missing = [job for job in jobs if not _whole(job, denoiser, settings)]
    if missing:
        size = sum(_bytes(scene.grid, denoiser, settings) for scene, _, _ in missing)
        log.info("computing diffusion features: %.3g GB in %s", size / 1e9, settings.folder)
        _has_room(settings.folder, size)
        tiles = [(job, tile) for job in missing for tile in _tiles(job[0].grid, settings)]
        with tqdm(total=len(tiles), desc="features", disable=not progress, leave=False) as bar:
            for scene, folder, key in missing:
                _compute(scene, denoiser, settings, folder, key, bar)
    return [
        dataclasses.replace(
            scene,
            modalities={
                **scene.modalities,
                **{
                    f"{PREFIX}{level}": SceneModality(raster, units="activation")
                    for level, raster in zip(
                        settings.levels, _rasters(scene.grid, folder, denoiser, settings), strict=True
                    )
                },
            },
        )
        for scene, folder, _ in jobs
    ]


def _rasters(grid: Grid, folder: Path, denoiser: TrainedDenoiser, settings: FeatureSettings) -> list[FeatureRaster]:
    return [
        FeatureRaster(
            str(folder / f"level_{level}.f16"),
            grid,
            DiffusionFeatures(denoiser, settings).channels[f"{PREFIX}{level}"],
            FACTORS[level],
        )
        for level in settings.levels
    ]


def _bytes(grid: Grid, denoiser: TrainedDenoiser, settings: FeatureSettings) -> int:
    return sum(2 * int(np.prod(raster.shape)) for raster in _rasters(grid, Path(), denoiser, settings))


def _has_room(folder: Path, size: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise unwritable(folder, error) from None
    if free < size:
        raise OutputError(
            f"the features take {size / 1e9:.3g} GB, and {folder} has {free / 1e9:.3g} GB left",
            "room for the features",
            "set features.cache to another disk, or take fewer features.timesteps or features.levels",
        )


# ---- which features these are ----------------------------------------------------------------------------------------


def fingerprint(scene: Scene, names: Sequence[str]) -> str:
    """A hash of what a scene shows: its files' sizes and times, and pixels of 16 places."""
    known = hashlib.sha256(str(scene.grid).encode())
    height, width = scene.grid.height, scene.grid.width
    for name in names:
        part = scene.modalities[name]
        known.update(f"{name} {part.raster.bands} {part.raster.dtype} {part.zoom} {part.raster.path}".encode())
        file = Path(part.raster.path)
        if file.is_file():
            known.update(f"{file.stat().st_size} {file.stat().st_mtime_ns}".encode())
        for place in range(16):
            row, col = height * (place // 4) // 4, width * (place % 4) // 4
            window = Window(row, col, min(8, height - row), min(8, width - col))
            known.update(np.ascontiguousarray(scene.read(name, window)).tobytes())
    return known.hexdigest()


def _key(scene: Scene, denoiser: TrainedDenoiser, digest: str, settings: FeatureSettings) -> str:
    used = {**settings.model_dump(mode="json", exclude={"cache"}), "scene": fingerprint(scene, list(denoiser.maps))}
    return hashlib.sha256(json.dumps({**used, "denoiser": digest}, sort_keys=True).encode()).hexdigest()


def _whole(job: tuple[Scene, Path, str], denoiser: TrainedDenoiser, settings: FeatureSettings) -> bool:
    """Whether a cache is there and of this denoiser and scene; what is not is told, and made again."""
    scene, folder, key = job
    if not folder.exists():
        return False
    try:
        found = json.loads((folder / "features.json").read_text(encoding="utf-8"))["key"]
        sizes = [Path(raster.path).stat().st_size for raster in _rasters(scene.grid, folder, denoiser, settings)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("the features in %s are broken (%s) and made again", folder, error)
        return False
    if found != key:
        log.warning("the features in %s are of another denoiser or scene and made again", folder)
    elif sum(sizes) != _bytes(scene.grid, denoiser, settings):
        log.warning("the features in %s are not whole and made again", folder)
    else:
        return True
    return False


# ---- computing -------------------------------------------------------------------------------------------------------


def _tiles(grid: Grid, settings: FeatureSettings) -> Iterator[Window]:
    """The centres of the tiles, row by row; those at the far edges reach beyond the scene to a multiple of 4."""
    side = settings.tile - settings.overlap
    for row in range(0, grid.height, side):
        for col in range(0, grid.width, side):
            tall, wide = (min(side, -(-left // 4) * 4) for left in (grid.height - row, grid.width - col))
            yield Window(row, col, tall, wide)


def _compute(
    scene: Scene, denoiser: TrainedDenoiser, settings: FeatureSettings, folder: Path, key: str, bar: Any
) -> None:
    """Fills one scene's cache under another name, which it takes off when it is whole."""
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = denoiser.network.to(device).eval()
    try:
        partial.mkdir(parents=True)
        stored = [
            np.memmap(raster.path, dtype=np.float16, mode="w+", shape=raster.shape)
            for raster in _rasters(scene.grid, partial, denoiser, settings)
        ]
        for tile in _tiles(scene.grid, settings):
            for number, levels in enumerate(_tile_features(scene, denoiser, network, settings, tile)):
                for file, level, values in zip(stored, settings.levels, levels, strict=True):
                    factor, count = FACTORS[level], values.shape[-1]
                    row, col = tile.row // factor, tile.col // factor
                    place = file[row : row + len(values), col : col + values.shape[1]]
                    place[..., number * count : (number + 1) * count] = values[: len(place), : place.shape[1]]
            bar.update()
        for file in stored:
            file.flush()
        del stored
        notes = {"key": key, "scene": scene.name, **settings.model_dump(mode="json", exclude={"cache"})}
        (partial / "features.json").write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
        close_files()
        shutil.rmtree(folder, ignore_errors=True)
        try:
            partial.rename(folder)
        except OSError:
            if not (folder / "features.json").exists():  # else another process was as quick
                raise
    except OSError as error:
        raise unwritable(folder, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@torch.inference_mode()
def _tile_features(
    scene: Scene, denoiser: TrainedDenoiser, network: Denoiser, settings: FeatureSettings, tile: Window
) -> Iterator[list[NDArray[np.float16]]]:
    """The features of a tile's centre, timestep by timestep: per level (height, width, channels)."""
    halo = settings.overlap // 2
    window = tile.padded(halo)
    patchwork = read_patchwork(scene, window, denoiser.maps)
    views = {
        name: table.T.reshape(1, -1, window.height * denoiser.zooms[name], window.width * denoiser.zooms[name])
        for name, table in patchwork.tables.items()
    }
    images, missing = denoiser.images(views)
    noise = place_noise(settings.seed, denoiser, window)
    nothing = torch.stack(list(missing.values())).amin(dim=0)[0, 0, halo : halo + tile.height, halo : halo + tile.width]
    device = next(network.parameters()).device
    share, dark = network.share.cpu(), {name: mask.to(device) for name, mask in missing.items()}
    for timestep in settings.timesteps:
        noisy = {
            name: add_noise(image, noise[name], share[timestep][None]).to(device) for name, image in images.items()
        }
        levels = network.levels(noisy, dark, torch.tensor([timestep], device=device))
        cut = [_cut(levels[level - 1], halo // FACTORS[level]).cpu() for level in settings.levels]
        if 1 in settings.levels:  # features of nothing would pass for data
            cut[settings.levels.index(1)][:, nothing == 1] = torch.nan
        yield [level.movedim(0, -1).to(torch.float16).numpy() for level in cut]


def _cut(level: Tensor, halo: int) -> Tensor:
    inside: Tensor = level[0, :, halo : level.shape[2] - halo, halo : level.shape[3] - halo]
    return inside.clamp(-65_504, 65_504)  # half precision's largest number


def place_noise(seed: int, denoiser: TrainedDenoiser, window: Window) -> dict[str, Tensor]:
    """Standard normal noise that is a function of the pixel's place: name -> (1, D, height, width)."""
    rows = np.arange(window.row, window.row + window.height, dtype=np.int64)
    cols = np.arange(window.col, window.col + window.width, dtype=np.int64)
    noise, stream = {}, 0
    for name, channels in denoiser.network.channels.items():
        noise[name] = torch.from_numpy(
            np.stack([normal(seed, stream + channel, rows, cols) for channel in range(channels)])[None]
        )
        stream += channels
    return noise
