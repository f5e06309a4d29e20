"""What a bundle says about itself, and what it requires of a scene; no torch."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from landfuse.bundles.settings import PredictorOptions
from landfuse.errors import BundleError, FaultsError, LandfuseError, SceneError, SettingsError
from landfuse.legend import Legend
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import CoreWeights, Window
from landfuse.scenes.scene import ModalityInfo, Scene
from landfuse.scenes.splits import ALL_LABELS

if TYPE_CHECKING:
    from landfuse.models.base import FusionModel

FORMAT = 2
"""Version of the files; a newer one is refused. 2: placeholders."""

_COMPARED = {"bands": "bands", "zoom": "as zoom", "units": "as units", "dtype": "as data type", "decode": "as `decode`"}
"""What a scene's modality must have in common with the training scene's, and how messages word it."""

_SAME_SIZE, _SAME_GRID = 0.01, 0.1
"""Fractions by which pixels may differ in size on the ground; the second where CRS and size in it are the same."""

_SIDE, _WINDOWS = 24, 6
"""Side of the windows whose values are compared with those of training, px, and how many along each side of a scene."""

_FAR, _OUTSIDE, _NARROW, _TINY, _SHOWN = 10, 0.05, 100, 200, 4
"""Medians may differ by so many times the range of training; a larger fraction outside that range is said, and a spread
that is smaller by this factor; all bands of a modality may not be so many times smaller; of so many bands."""


def _alike(found: object, known: object) -> bool:
    """Whether two of them are the same; values are read as float32 from floating-point numbers of any width."""
    return found == known or {found, known} <= {"float16", "float32", "float64"}


@dataclass(frozen=True)
class ModelSpec:
    """Which model, and its settings as plain values."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    kind: type[FusionModel] | None = None
    """Its class, where that was passed instead of found by the name."""


@dataclass(frozen=True)
class Description:
    """All of a bundle but its tensors.

    Args:
        inputs: modality -> what the pixel maps take: those of the training scene, then those that are computed from it.
        computed: those of `inputs` that are computed from the scene (diffusion features).
        view: side of the square that the model looks at, px.
        core: side of the centred square that it labels, px.
        stride: distance between windows in mapping, px; at most the core.
        weights: how much the pixels of a window count where cores overlap.
        temperature: logits are divided by it to obtain probabilities.
        droppable: modalities that the model was trained to do without; placeholders stand in for them.
        layers: names of what the model returns beside logits.
        roles: grid of a training tile -> digest of the roles of its pixels (`roles_digest`), or several, apart by
            spaces; None where they are not known.
        cross_validation: of a model that learnt from all labels: what its scores are, and how they were measured.
        attached: `subject.name` -> what else the bundle keeps, for what is not the model's own: numbers without NaN.
        notes: subject -> words and numbers about its `attached`.
    """

    spec: ModelSpec
    inputs: Mapping[str, ModalityInfo]
    computed: tuple[str, ...]
    legend: Legend
    view: int
    core: int
    stride: int
    weights: CoreWeights = "uniform"
    temperature: float = 1.0
    droppable: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    roles: Mapping[str, str] | None = None
    cross_validation: Mapping[str, Any] | None = None
    attached: Mapping[str, NDArray[Any]] = field(default_factory=dict, compare=False)
    notes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def halo(self) -> int:
        """Pixels that a view extends beyond its core, on each side."""
        return (self.view - self.core) // 2

    @property
    def modalities(self) -> dict[str, ModalityInfo]:
        """What a scene must have."""
        return {name: info for name, info in self.inputs.items() if name not in self.computed}

    def packed(self, shapes: Mapping[str, list[int]]) -> dict[str, Any]:
        """What `model.json` holds of any model.

        Args:
            shapes: modality -> shape of its pixel map's weight.
        """
        return {
            "format": FORMAT if self.droppable else 1,  # without placeholders, older versions read it right
            "landfuse": version("landfuse"),
            "model": {"name": self.spec.name, "settings": self.spec.settings},
            "modalities": {name: asdict(info) for name, info in self.inputs.items()},
            "pixel_maps": dict(shapes),
            "legend": [asdict(c) for c in self.legend],
            "frozen": None,
            "tiling": {"view": self.view, "core": self.core, "stride": self.stride, "weights": self.weights},
            "temperature": self.temperature,
            "droppable": list(self.droppable),
            "roles": self.roles,
            **({"cross_validation": self.cross_validation} if self.cross_validation is not None else {}),
            **({"notes": self.notes} if self.notes else {}),
        }

    def check_layers(self, options: PredictorOptions) -> None:
        """Raises a SettingsError if the options name layers that the model does not have."""
        unknown = sorted(set(options.layers) - set(self.layers))
        if unknown:
            raise SettingsError(
                f"the model `{self.spec.name}` has no layer {', '.join(unknown)}",
                ", ".join(self.layers) or "none, for this model",
                "ask for another, or none",
            )

    def stand_ins(self, options: PredictorOptions) -> dict[str, float]:
        """What takes the place of modalities without data: NaN for the model's placeholder, 0 for the training mean.

        Raises:
            SettingsError: if the options name a modality that the model does not have, or withhold one that it
                cannot do without.
        """
        named = (*options.mean_for, *options.withheld)
        unknown = [name for name in named if name not in self.modalities]
        found = dict.fromkeys(self.droppable, math.nan) | dict.fromkeys(options.mean_for, 0.0)
        unknown += [name for name in options.withheld if name not in found and name not in unknown]
        if unknown:
            raise SettingsError(
                f"the model has no modality {', '.join(dict.fromkeys(unknown))}"
                if any(name not in self.modalities for name in unknown)
                else f"the model cannot do without {', '.join(unknown)}",
                ", ".join(self.modalities),
                "correct the name, or let the training mean stand in by mean_for",
            )
        return found

    def check(self, scene: Scene, options: PredictorOptions) -> tuple[Scene, list[str]]:
        """Checks that a scene is of the kind that the model was trained on.

        Returns:
            The scene with its bands in the model's order, and what the user should know of it.

        Raises:
            FaultsError: naming every modality that is missing or differs in bands, data type, units, zoom or size of
                the pixels.
            SettingsError: if the options do not fit the model.
        """
        stand_ins = self.stand_ins(options)
        dispensable = {*options.mean_for, *(self.droppable if options.allow_missing else ()), *options.withheld}
        faults: list[LandfuseError] = []
        notes: list[str] = []
        modalities = dict(scene.modalities)
        for name, known in self.modalities.items():
            if name not in scene.modalities:
                if name not in dispensable:
                    faults.append(
                        BundleError(
                            f"the scene `{scene.name}` has no modality `{name}`",
                            f"the modalities of the training scene: {', '.join(self.modalities)}",
                            "name it so in the scene file; or map without it, for which the model was trained: "
                            "--allow-missing"
                            if name in stand_ins
                            else "name it so in the scene file; or train without it, or with samples.modality_dropout; "
                            f"or let its training mean stand in, at your own risk: --mean-for {name}",
                        )
                    )
                continue
            try:
                modalities[name], note = scene.modalities[name].like(known, f"`{name}`", "the model")
                notes += [note] if note else []
            except SceneError as error:
                faults.append(error)
            found = modalities[name].info
            for what, unit in _COMPARED.items():
                if not _alike(getattr(found, what), getattr(known, what)):
                    faults.append(
                        BundleError(
                            f"the model was trained on {getattr(known, what)!r} {unit} of `{name}`, this scene has "
                            f"{getattr(found, what)!r}",
                            "a scene of the same kind as the training scene",
                            f"correct `modalities: {name}:` in the scene file (bands, scale, decode, units), or train "
                            "again",
                        )
                    )
        pairs = [(modalities[name].info, known) for name, known in self.modalities.items() if name in modalities]
        fault = next((wrong for pair in pairs if (wrong := _other_size(*pair))), None)
        if fault and not faults and "pixel-size" not in options.allow:  # all modalities of a scene differ alike
            faults.append(fault)
        if faults:
            raise FaultsError(faults)
        return replace(scene, modalities=modalities), notes

    def learnt_at(self, grid: Grid) -> str | None:
        """What a map of a grid says of the pixels that the model learnt from; None where the bundle does not."""
        if self.roles is None:
            return None
        return self.roles.get(str(grid), "of other tiles") + (f" {ALL_LABELS}" if self.cross_validation else "")

    def check_values(self, scene: Scene, options: PredictorOptions) -> list[str]:
        """Compares the values of a sample of a scene's pixels with those that the model was trained on.

        Args:
            scene: as `check` returned it.

        Returns:
            What the user should know of it.

        Raises:
            BundleError: if the values are in another scale.
        """
        notes: list[str] = []
        for name, known in self.modalities.items():
            if name not in scene.modalities or name in options.withheld or not known.values:
                continue
            pixels = _sample(scene, name)
            if not pixels.size:
                continue
            low, first, _, middle, _, last, high = np.array(known.values).T
            outside = ((pixels < low) | (pixels > high)).mean(axis=0)
            start, median, end = np.quantile(pixels, (0.01, 0.5, 0.99), axis=0)
            names = known.names or [""] * known.bands
            bands = [f"band {place + 1}" + f" ({one})" * bool(one) for place, one in enumerate(names)]
            far = np.flatnonzero((np.abs(median - middle) > _FAR * (high - low)) & (high > low))
            # A single band may be 0 for good, as heights of the sea are; of several, all are divided by something.
            tiny = (start < end) & (np.maximum(np.abs(start), np.abs(end)) * _TINY < last - first)
            tiny &= (start < first) | (end > last)
            divided = known.bands > 1 and bool(tiny.all())
            if (far.size or divided) and "values" not in options.allow:
                band = 0 if divided else far[0]
                raise BundleError(
                    f"`{name}` of the scene `{scene.name}` is in another scale: {bands[band]} has the median "
                    f"{median[band]:.4g}, the training pixels {middle[band]:.4g} ({low[band]:.4g} to {high[band]:.4g})",
                    f"values that are not {_TINY} times smaller in all bands"
                    if divided
                    else f"a median that differs by less than {_FAR} times the range of the training pixels",
                    "correct `scale`, `offset` or `nodata` in the scene file; or map it all the same, at your own "
                    "risk: --allow values",
                )
            # Tiles of one kind of ground are narrow too: their values are among those that most training pixels have.
            usual = (start >= first) & (end <= last)
            narrow = ((end - start) * _NARROW < last - first) & ~usual
            shown = [
                f"{bands[band]} "
                + (f"{start[band]:.4g} to {end[band]:.4g} only" if narrow[band] else f"{outside[band]:.0%}")
                + f" (trained on {low[band]:.4g} to {high[band]:.4g})"
                for band in np.flatnonzero((outside > _OUTSIDE) | narrow)
            ]
            if shown:
                more = f" and {len(shown) - _SHOWN} more bands" if len(shown) > _SHOWN else ""
                notes.append(
                    f"`{name}` of `{scene.name}` has values that the model was not trained on, where the map may be "
                    f"wrong: {', '.join(shown[:_SHOWN])}{more}, in a sample of pixels"
                )
        return notes


def digest_of(words: Mapping[str, Any], tensors: Iterable[tuple[str, bytes | memoryview]]) -> str:
    """SHA-256 of all that a bundle holds: its words, and of each tensor its name, type, shape and values.

    The version of landfuse and what is empty are left out: a later version, with more fields, finds the same digest.
    """
    said = _filled({name: value for name, value in words.items() if name != "landfuse"})
    found = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for title, values in tensors:
        found.update(title.encode())
        found.update(values)
    return found.hexdigest()


def _filled(words: Any) -> Any:
    if isinstance(words, Mapping):
        return {name: _filled(value) for name, value in words.items() if value not in (None, "", 0, (), [], {})}
    return [_filled(value) for value in words] if isinstance(words, (list, tuple)) else words


def _sample(scene: Scene, name: str) -> NDArray[np.float32]:
    """Pixels of a modality in windows that are spread evenly over a scene, those that have data: (P, C)."""
    sides = scene.grid.height, scene.grid.width
    starts = [np.unique(np.linspace(0, max(0, side - _SIDE), _WINDOWS).astype(int)).tolist() for side in sides]
    found = [np.zeros((0, scene.modalities[name].raster.bands), np.float32)]
    for row, col in itertools.product(*starts):
        window = Window(row, col, min(_SIDE, sides[0]), min(_SIDE, sides[1]))
        with suppress(SceneError):  # a block that cannot be read is named by mapping
            values = scene.read(name, window).reshape(found[0].shape[1], -1).T
            found.append(values[np.isfinite(values).all(axis=1)])
    return np.concatenate(found)


def _other_size(found: ModalityInfo, known: ModalityInfo) -> BundleError | None:
    """The fault of a scene whose pixels are not as large as the model's."""
    if not found.metres or not known.metres:
        return None
    # In degrees or Web Mercator, grids of one size differ on the ground from latitude to latitude.
    tolerance = _SAME_GRID if found.pixel == known.pixel else _SAME_SIZE
    if abs(found.metres / known.metres - 1) <= tolerance:
        return None
    shown = [f"{one.metres:.4g} m" + (f" ({one.pixel})" if one.pixel else "") for one in (found, known)]
    return BundleError(
        f"the scene's pixels measure {shown[0]} on the ground, those that the model was trained on {shown[1]}",
        "pixels of one size, within 1%",
        "resample the scene, train on pixels of its size, or map it all the same, at your own risk: --allow pixel-size",
    )
