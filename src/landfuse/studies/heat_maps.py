"""Where each modality's features speak for a class, as a picture of one view of the test pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from landfuse.bundles.bundle_files import load_bundle
from landfuse.errors import ModelError, SettingsError, nearest
from landfuse.figures import figures
from landfuse.figures.overview import closeups
from landfuse.legend import UNLABELLED
from landfuse.models.mfnet import MFNet
from landfuse.models.placeholders import WithPlaceholders
from landfuse.rasters.windows import Window, blocks
from landfuse.scenes.split_rules import TEST
from landfuse.studies.modalities import test_data

_COLOUR = np.array([215, 25, 28])


def save_heat_maps(run: str | Path, name: str) -> Path:
    """Draws the heat maps of a run's model for a class, in the view whose core has most test pixels of it.

    Args:
        run: a finished run of MFNet.

    Returns:
        The path of the picture, `heat_maps-CODE.png` in the run folder.

    Raises:
        MissingFileError: if the run has not ended.
        ModelError: if its model has no heat maps.
        SettingsError: if there is no such class, or no test pixel of it.
        OutputError: if it cannot be written.
    """
    run = Path(run)
    classifier = load_bundle(run).eval()
    model, legend = classifier.model, classifier.legend
    network = model.network if isinstance(model, WithPlaceholders) else model
    if not isinstance(network, MFNet):
        raise ModelError(
            f"the model of {run} is `{classifier.spec.name}`", "mfnet, which has heat maps", "choose another run"
        )
    if name not in legend.names:
        raise SettingsError(
            f"there is no class {name!r}", ", ".join(legend.names), nearest(name, legend.names, cutoff=0)
        )
    kind = legend.names.index(name)
    data, core = test_data(run), network.core
    truths = data.targets(TEST)
    places = [
        (int((truth[block.within(scene.grid.window)] == kind).sum()), number, block)
        for number, (scene, truth) in enumerate(zip(data.scenes, truths, strict=True))
        for block in blocks(scene.grid.height, scene.grid.width, core)
    ]
    most, number, block = max(places)
    if most == 0:
        raise SettingsError(f"no test pixel of {run} is {name}", "a class that the test split has", "name another")
    scene = data.scenes[number]
    truth = np.full((core, core), UNLABELLED, np.uint8)
    truth[: block.height, : block.width] = truths[number][block.within(scene.grid.window)]
    view = Window(block.row, block.col, core, core).padded(network.halo)
    images = classifier.mapped({one: torch.from_numpy(scene.read(one, view))[None] for one in classifier.maps})
    if isinstance(model, WithPlaceholders):
        images = model.filled(images)
    wanted = torch.zeros(1, len(legend), *truth.shape)
    wanted[0, kind] = torch.from_numpy(truth == kind)
    shown = {}
    for one, heat in zip(images, network.heat_maps(images, wanted), strict=True):
        (image,) = closeups([(scene, view)], one, network.view)
        shown[one] = image
        shown[f"{one}: speaks for {name}"] = _over(image, heat[0].numpy())
    shown["labels that test"] = figures.class_image(truth, legend)
    return figures.save(figures.map_figure(shown, legend, [truth]), run / f"heat_maps-{legend.codes[kind]}.png")


def _over(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A picture, (h, w, 3), with heat, 0 to 1 and of any size, drawn over it."""
    rows, cols = (np.arange(n) * size // n for n, size in zip(image.shape[:2], heat.shape, strict=True))
    alpha = 0.8 * heat[np.ix_(rows, cols)][..., None]
    return np.round(image * (1 - alpha) + _COLOUR * alpha).astype(np.uint8)
