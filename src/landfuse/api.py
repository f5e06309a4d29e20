"""The face: what people call, above everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from landfuse.accuracy.confusion import Confusion
from landfuse.errors import SettingsError
from landfuse.figures.figures import by_pyplot, classes_figure, confusion_figure, curves_figure, scene_figure
from landfuse.scenes.land_cover_map import LandCoverMap, open_map
from landfuse.scenes.scene import Scene
from landfuse.training.run import Run, read_run


def plot(
    shown: Scene | LandCoverMap | Confusion | Run | str | Path,
    *,
    modalities: Sequence[str] | None = None,
    bands: Mapping[str, Sequence[int]] | None = None,
    names: Sequence[str] = (),
) -> Any:
    """Draws a scene, a map, a confusion matrix or a run with matplotlib's pyplot.

    Args:
        shown: what is drawn: a scene (modalities and labels side by side), a map or the path of one (over its legend),
            a confusion matrix (counts, shaded by the fraction of their row), a run or its folder (loss and validation
            scores over the epochs).
        modalities: of a scene: which, in order; all by default.
        bands: of a scene: modality -> the bands to show, from 1: three for red, green and blue, or one for grey.
        names: of a confusion matrix: K names; by default the numbers 0..K-1.

    Returns:
        Axes of matplotlib; an array of them where there are several.

    Raises:
        SettingsError: if `shown` is something else.
        SceneError: if the scene or map cannot be read, or lacks a band.

    Example:
        >>> lf.plot(lf.open_scene("scene.yaml"))[0].get_title()
        'a: bands 1, 2, 3'
        >>> lf.plot("map.tif").get_title()
        'map'
    """
    if isinstance(shown, str | Path):
        shown = read_run(shown) if Path(shown).is_dir() else open_map(shown)
    with by_pyplot():
        if isinstance(shown, Scene):
            figure = scene_figure(shown, modalities, bands)
        elif isinstance(shown, LandCoverMap):
            figure = classes_figure(shown.classes, shown.legend, shown.path.stem)
        elif isinstance(shown, Confusion):
            figure = confusion_figure(shown.matrix, list(names) or [str(number) for number in range(shown.classes)])
        elif isinstance(shown, Run):
            figure = curves_figure(shown.history, shown.scores.get("epoch"))
        else:
            raise SettingsError(
                f"plot was called with {type(shown).__name__}",
                "a scene, a map (landfuse.open_map), a confusion matrix, or a run",
                "open the file first",
            )
    drawn = [axis for axis in figure.axes if axis.has_data()]
    return drawn[0] if len(drawn) == 1 else np.array(drawn)
