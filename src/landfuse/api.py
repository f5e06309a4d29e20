"""The face: what people call, above everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from landfuse.accuracy.confusion import Confusion
from landfuse.errors import SettingsError
from landfuse.figures.figures import Picture, classes_figure, confusion_figure, scene_figure
from landfuse.scenes.land_cover_map import LandCoverMap
from landfuse.scenes.scene import Scene


def plot(
    shown: Scene | LandCoverMap | Confusion,
    *,
    modalities: Sequence[str] | None = None,
    bands: Mapping[str, Sequence[int]] | None = None,
    names: Sequence[str] = (),
) -> Picture:
    """Draws a scene, a map or a confusion matrix with matplotlib.

    Args:
        shown: what is drawn: a scene (modalities and labels side by side), a map (over its legend), or a confusion
            matrix (counts, shaded by the fraction of their row).
        modalities: of a scene: which, in order; all by default.
        bands: of a scene: modality -> the bands to show, from 1: three for red, green and blue, or one for grey.
        names: of a confusion matrix: K names; by default the numbers 0..K-1.

    Raises:
        SettingsError: if `shown` is something else.
        SceneError: if the scene or map cannot be read, or lacks a band.
    """
    if isinstance(shown, Scene):
        return scene_figure(shown, modalities, bands)
    if isinstance(shown, LandCoverMap):
        return classes_figure(shown.classes, shown.legend, shown.path.stem)
    if isinstance(shown, Confusion):
        return confusion_figure(shown.matrix, list(names) or [str(number) for number in range(shown.classes)])
    raise SettingsError(
        f"plot was called with {type(shown).__name__}",
        "a scene, a map (landfuse.open_map) or a confusion matrix",
        "open the file first",
    )
