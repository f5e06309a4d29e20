"""Windows of scenes as arrays: the one place where it is decided which pixels can be mapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from landfuse.rasters.windows import Window
from landfuse.scenes.scene import ModalityInfo, Scene, validity


def read_window(
    scene: Scene,
    window: Window,
    modalities: Mapping[str, ModalityInfo],
    stand_ins: Mapping[str, float],
    receive: Callable[[str, NDArray[np.float32]], None],
    *,
    mirror: bool = True,
) -> NDArray[np.bool_]:
    """Reads a window modality by modality, so that only one is held as raw values at a time.

    Args:
        scene: in whose pixels `window` is; a modality with a stand-in may be missing from it.
        window: what is read; it may reach beyond the scene's edges.
        modalities: what is read, in this order.
        stand_ins: modality -> what takes the place of its mapped values where it has no data: NaN for the model's
            placeholder, 0 for the training mean. A modality without a stand-in must have data.
        receive: called with each modality's name and its values, (C, height * zoom, width * zoom), NaN without data.
        mirror: beyond the scene's edges is its mirror image; else no data.

    Returns:
        (height, width), true where a pixel can be mapped: every modality without a stand-in has data, and at least
        one of all.
    """
    valid = np.ones((window.height, window.width), dtype=bool)
    seen, beyond, inside = np.zeros_like(valid), None, window.intersection(scene.grid.window)
    if not mirror and inside != window:
        beyond = np.ones_like(valid)
        beyond[inside.within(window)] = False
    for name, info in modalities.items():
        if name in scene.modalities:
            values = scene.read(name, window)
            if beyond is not None:
                values[:, beyond.repeat(info.zoom, axis=0).repeat(info.zoom, axis=1)] = np.nan
            known = validity(values, info)
        else:
            shape = (info.bands, window.height * info.zoom, window.width * info.zoom)
            values, known = np.full(shape, np.nan, np.float32), np.zeros_like(valid)
        seen |= known
        if name not in stand_ins:
            valid &= known
        receive(name, values)
    return valid & seen
