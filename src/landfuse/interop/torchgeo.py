"""torchgeo's data in landfuse, and landfuse's models in torchgeo; only its trainer needs `landfuse[torchgeo]`.

torchgeo stacks all sensors of a sample along the channels of one `image`. Naming the channels of each modality is all
it takes to cross over: `{"sar": range(0, 2), "optical": range(2, 14)}`.

- `write_scene` writes a data set's samples as tiles with a scene file, for everything that landfuse does.
- `scenes` yields them as scenes in memory, to map or to look at.
- `StackedImages` lets a landfuse model take stacked images of any size; `segmentation_task` puts it into torchgeo's
  trainer, and so into its data modules.

Source: Stewart et al. 2022, TorchGeo, doi 10.1145/3557915.3560953.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from landfuse.errors import ModelError, SceneError
from landfuse.extras import missing_extra
from landfuse.files import not_ours, write_text
from landfuse.legend import UNLABELLED, Legend
from landfuse.models.base import FusionModel
from landfuse.rasters.arrays import ArrayRaster
from landfuse.rasters.decoding import Decoding
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import mirrored
from landfuse.scenes.scene import Scene, SceneModality

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


Channels = Mapping[str, Sequence[int]]
"""Modality -> its channels in a stacked image, from 0."""


class Samples(Protocol):
    """A torchgeo data set: samples are dictionaries with `image` (C, H, W), and `mask` (H, W) if labelled."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, query: Any, /) -> Mapping[str, Any]:
        """One sample: by number, or by place and time for a `GeoDataset`."""


def scenes(
    samples: Samples,
    channels: Channels,
    legend: Legend,
    queries: Iterable[Any] | None = None,
    ignored: Iterable[int] = (),
) -> Iterator[Scene]:
    """Yields samples as scenes, one at a time.

    Args:
        legend: codes are the mask's numbers.
        queries: which samples; all by number if left out. A `GeoDataset` needs them, e.g. a sampler of torchgeo.
        ignored: numbers of the mask that mean unlabelled, beside 255.

    Raises:
        SceneError: if a sample has no image, or fewer channels than are named, or its mask holds other numbers.
    """
    for number, query in enumerate(range(len(samples)) if queries is None else queries):
        yield _scene(f"s{number:05d}", samples[query], channels, legend, ignored)


def _scene(name: str, sample: Mapping[str, Any], channels: Channels, legend: Legend, ignored: Iterable[int]) -> Scene:
    if "image" not in sample or np.ndim(sample["image"]) != 3:
        found = tuple(np.shape(sample["image"])) if "image" in sample else "no `image`"
        raise SceneError(
            f"the sample {name} has {found}", "an `image` of (C, H, W)", "join a data set's rasters into one image"
        )
    image = np.asarray(sample["image"])
    most = max(max(numbers) for numbers in channels.values())
    if most >= len(image):
        raise SceneError(
            f"the sample {name} has {len(image)} channels, and channel {most} is named",
            "channels from 0",
            "correct `channels`",
        )
    grid = _grid(sample, image.shape[1], image.shape[2])
    modalities = {
        # NaN is how torchgeo's tensors say that there is no data.
        modality: SceneModality(
            ArrayRaster(image[list(numbers)], "CHW", grid, f"{modality} of {name}", Decoding(math.nan))
        )
        for modality, numbers in channels.items()
    }
    if "mask" not in sample:
        return Scene(name, grid, modalities, legend)
    mask = np.asarray(sample["mask"]).reshape(grid.height, grid.width)
    classes = legend.to_classes(mask, ignored, where=f"the mask of {name}")
    return Scene(name, grid, modalities, legend, lambda: classes)


def _grid(sample: Mapping[str, Any], height: int, width: int) -> Grid:
    """The place of a sample, if it says so: torchgeo's `bounds` are slices of x, y and time."""
    bounds, crs = sample.get("bounds"), sample.get("crs")
    if crs is None or not isinstance(bounds, tuple) or len(bounds) < 2:
        return Grid(height, width)
    x, y = bounds[0], bounds[1]
    affine = ((x.stop - x.start) / width, 0.0, float(x.start), 0.0, -(y.stop - y.start) / height, float(y.stop))
    return Grid(height, width, affine, crs.to_wkt())


def write_scene(
    samples: Samples,
    folder: str | Path,
    channels: Channels,
    legend: Legend,
    *,
    name: str = "torchgeo",
    queries: Iterable[Any] | None = None,
    ignored: Iterable[int] = (),
    split: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes samples as tiles: a GeoTIFF per modality and sample, labels, and a scene file.

    Args:
        samples: as in `scenes`; so are `channels`, `legend`, `queries` and `ignored`.
        folder: gets `MODALITY/s00000.tif`, ..., `labels/` and `scene.yaml`.
        name: of the scene.
        split: of the scene file; by default whole samples, drawn at random.
        overwrite: write into a folder that holds a scene file already.

    Returns:
        The scene file.

    Raises:
        SceneError: as in `scenes`, or if there is no sample.
        OutputError: if the folder cannot be written, or holds a scene file.
    """
    folder = Path(folder)
    if (folder / "scene.yaml").exists() and not overwrite:
        raise not_ours(folder / "scene.yaml", "its folder holds a scene")
    labelled, placed, count = False, True, 0
    for scene in scenes(samples, channels, legend, queries, ignored):
        count += 1
        placed &= scene.grid.crs is not None
        for modality, part in scene.modalities.items():
            values = part.raster.read(scene.grid.window)
            write_raster(folder / modality / f"{scene.name}.tif", scene.grid, values, nodata=float("nan"))
        if scene.read_labels is not None:
            labelled = True
            codes = legend.to_codes(scene.labels)
            write_raster(folder / "labels" / f"{scene.name}.tif", scene.grid, codes, legend=legend)
    if not count:
        raise SceneError("the data set has no sample", "at least one", "check `queries`")
    text: dict[str, Any] = {
        "name": name,
        "georeferenced": placed,
        "modalities": {modality: {"path": f"{modality}/{{tile}}.tif"} for modality in channels},
    }
    if labelled:
        text["labels"] = {"path": "labels/{tile}.tif"}
        text["legend"] = [asdict(c) for c in legend]
        text["split"] = dict(split or {"kind": "tiles", "test": 0.3, "validation": 0.2})
    write_text(folder / "scene.yaml", yaml.safe_dump(text, sort_keys=False, allow_unicode=True))
    return folder / "scene.yaml"


class StackedImages(nn.Module):
    """A landfuse model that takes stacked images of any size and labels every pixel of them.

    Windows are laid as in mapping, with a stride of one core; beyond the image a view holds its mirror image.

    Args:
        model: the model; its channels are those of the data module, standardised.

    Raises:
        ModelError: if the channels are not those of the model, or it wants a modality at another zoom.
    """

    def __init__(self, model: FusionModel, channels: Channels) -> None:
        super().__init__()
        wanted = {name: m.channels for name, m in model.modalities.items()}
        named = {name: len(numbers) for name, numbers in channels.items()}
        if wanted != named or any(m.zoom != 1 for m in model.modalities.values()):
            raise ModelError(
                f"channels of {named} are named", f"those of the model, all at zoom 1: {wanted}", "correct the ranges"
            )
        self.model = model
        self.channels = {name: list(numbers) for name, numbers in channels.items()}

    @property
    def classes(self) -> int:
        """K."""
        return self.model.classes

    @property
    def in_channels(self) -> int:
        """Channels that a stacked image has at least."""
        return 1 + max(max(numbers) for numbers in self.channels.values())

    def forward(self, image: Tensor) -> Tensor:
        """Logits of every pixel: (B, C, H, W) float -> (B, K, H, W)."""
        view, core, halo = self.model.view, self.model.core, self.model.halo
        height, width = image.shape[-2:]
        rows, cols = -(-height // core), -(-width // core)
        for axis, (size, cores) in enumerate(((height, rows), (width, cols)), start=2):
            places = mirrored(np.arange(-halo, cores * core + halo), size)
            image = image.index_select(axis, torch.from_numpy(places).to(image.device))
        views = image.unfold(2, view, core).unfold(3, view, core)  # (B, C, rows, cols, view, view)
        views = views.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        logits = self.model({name: views[:, numbers] for name, numbers in self.channels.items()})
        logits = logits.unflatten(0, (-1, rows, cols)).permute(0, 3, 1, 4, 2, 5)  # (B, K, rows, core, cols, core)
        return logits.flatten(4, 5).flatten(2, 3)[:, :, :height, :width]


def segmentation_task(model: StackedImages, **settings: Any) -> LightningModule:
    """torchgeo's `SemanticSegmentationTask` around a landfuse model, for Lightning and torchgeo's data modules.

    Args:
        settings: of the task: `loss`, `lr`, `class_weights`, ... Unlabelled pixels, 255, are ignored unless another
            `ignore_index` is named.

    Raises:
        MissingExtraError: if torchgeo is not installed.
    """
    try:
        from torchgeo.trainers import SemanticSegmentationTask as Segmentation
    except ImportError as error:
        raise missing_extra(error) from None
    with suppress(ImportError):  # what torchgeo 0.10 calls it
        from torchgeo.tasks import SemanticSegmentation as Segmentation

    class Task(Segmentation):  # type: ignore[misc]
        """The task, with a model that is there already."""

        def configure_models(self) -> None:
            self.model = model

    known = {"task": "multiclass", "num_classes": model.classes, "in_channels": model.in_channels}
    task: LightningModule = Task(**{**known, "ignore_index": UNLABELLED, **settings})
    return task
