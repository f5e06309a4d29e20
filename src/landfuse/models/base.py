"""The contract that every fusion model keeps. A model is one file; `docs/add-a-model.md` walks through one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from operator import index
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse import settings
from landfuse.errors import ModelError, SettingsError
from landfuse.legend import UNLABELLED
from landfuse.settings import parse

S = TypeVar("S", bound=settings.Settings)

DIFFUSION_LEVEL = re.compile(r"diffusion_(\d+)")
"""Names of the modalities that are features of a denoiser, with the level."""


class Modality(NamedTuple):
    """What a model knows of one modality.

    Examples:
        >>> lf.Modality(channels=30)
        Modality(channels=30, zoom=1, days=(), per_day=0)
    """

    channels: int  # after the pixel map
    zoom: int = 1  # how many times finer than the scene's grid
    days: tuple[float, ...] = ()  # of a series, when its dates or periods are, counted from the first year's beginning
    per_day: int = 0  # channels of each of these, which come first, day by day

    @property
    def dated(self) -> int:
        """Channels that belong to days."""
        return self.per_day * len(self.days)


class FusionModel(nn.Module):
    """Looks at a view of every modality and labels the centred core.

    A subclass sets `Settings`, calls `super().__init__`, and defines `forward`; it overrides `loss` where it has
    auxiliary heads or its own objective, and `load_pretrained` where it starts from published weights.

    Args:
        modalities: name -> channels, or `Modality` for one that is finer than the others; in the order in which
            images come.
        classes: K, the number of classes.
        view: side of the square that is looked at, in pixels of the scene's grid.
        core: side of the centred square that is labelled; 1 for a model that classifies single pixels.

    Raises:
        ModelError: if there is no modality, a number is below 1, or the core is not centred in the view.

    Examples:
        >>> network = lf.models.TwoBranch({"hsi": 30, "height": 1}, classes=5, view=7)
        >>> isinstance(network, lf.FusionModel), network.view, network.core, network.halo
        (True, 7, 1, 3)
    """

    Settings: ClassVar[type[settings.Settings]]

    marks_missing: bool = False
    """Whether its images hold NaN where there is no data, and beyond the scene's edges, instead of 0 and a mirror
    image; may be set by instance."""

    takes_dropped: ClassVar[bool] = False
    """Whether it learns from modalities that are missing as they are (NaN), without placeholders."""

    images_per_view: int = 1
    """How many images it computes for each view, as one per date; batches are as much smaller. May be set by
    instance."""

    progress: float = 1.0
    """Fraction of the training's steps that are done, 0..1; set before each step, so that `loss` may ramp by it."""

    layers: tuple[str, ...] = ()
    """Names of what `map_layers` returns beside logits; may be set by instance."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Shows the settings as keywords, to `help` and to completion."""
        super().__init_subclass__(**options)
        own = inspect.signature(cls.__init__).parameters
        if "Settings" in vars(cls) and any(p.kind is inspect.Parameter.VAR_KEYWORD for p in own.values()):
            shown = [own["modalities"], own["classes"]]
            for name, field in cls.Settings.model_fields.items():
                value = field.get_default(call_default_factory=True)
                keyword = inspect.Parameter.KEYWORD_ONLY
                shown.append(inspect.Parameter(name, keyword, default=value, annotation=field.annotation))
            cls.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]

    def __init__(self, modalities: Mapping[str, int | Modality], classes: int, *, view: int, core: int) -> None:
        super().__init__()
        if not 1 <= core <= view or (view - core) % 2:
            raise ModelError(
                f"the model has a view of {view} px and a core of {core} px",
                "a core no larger than the view, both odd or both even, so that it is in the middle",
                f"set view to {core + 2 * max(0, -(-(view - core) // 2))}",
            )
        if classes < 1:
            raise ModelError(f"the model has {classes} classes", "at least one", "correct the number of classes")
        self.modalities = _checked(modalities)
        self.classes = classes
        self.view = view
        self.core = core

    def load_pretrained(self, *, missing_only: bool = False) -> None:
        """Reads the weights that training starts from, where the settings name any; fetches them if need be.

        Building a model reads nothing: its weights are random until they are loaded, by this or `load_state_dict`.

        Args:
            missing_only: read only those that bundles leave out (see `trained_state`), for the others come next.

        Raises:
            MissingFileError: if they are not there and cannot be fetched.
            ModelError: if they do not fit.
        """

    @property
    def halo(self) -> int:
        """Pixels that a view extends beyond its core, on each side."""
        return (self.view - self.core) // 2

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        """Scores the classes of every core pixel.

        Args:
            images: name -> (B, C, view * zoom, view * zoom) float, standardised; 0 where there is no data.

        Returns:
            Logits, (B, K, core, core). Models that label whole images take any size, (B, C, H * zoom, W * zoom), and
            return (B, K, H - 2 * halo, W - 2 * halo).

        Raises:
            ModelError: if a modality is missing, or has other channels or another size than the model takes.
        """
        raise NotImplementedError

    def size_of(self, images: Mapping[str, Tensor]) -> tuple[int, int]:
        """Height and width of the images, in pixels of the scene's grid.

        Raises:
            ModelError: if a modality is missing, has other channels, or another size than the first.
        """
        size: tuple[int, int] | None = None
        for name, (channels, zoom, *_) in self.modalities.items():
            image = images.get(name)
            whole = image is not None and image.ndim == 4
            if image is not None and whole and size is None and image.shape[2] % zoom == image.shape[3] % zoom == 0:
                size = image.shape[2] // zoom, image.shape[3] // zoom
            height, width = size or (self.view, self.view)
            if image is None or not whole or image.shape[1:] != (channels, height * zoom, width * zoom):
                found = f"only {', '.join(images) or 'none'}" if image is None else tuple(image.shape)
                raise ModelError(
                    f"the modality `{name}` came as {found}",
                    f"(batch, channels, height, width) with {(channels, height * zoom, width * zoom)} after the batch",
                    "give every modality that the model was made for, all of the same place",
                )
        height, width = size or (self.view, self.view)
        if min(height, width) <= 2 * self.halo:
            raise ModelError(
                f"the images are {height} x {width} px, and the model labels none of the {self.halo} px at their edges",
                f"images of more than {2 * self.halo} px on each side",
                "give larger images, or set a larger core",
            )
        return height, width

    def check_view(self, images: Mapping[str, Tensor]) -> None:
        """Refuses images of another size than the view, for models that take no other.

        Raises:
            ModelError: naming the size; also as `size_of`.
        """
        height, width = self.size_of(images)
        if (height, width) != (self.view, self.view):
            name = type(self).__name__
            raise ModelError(
                f"the images are {height} x {width} px; this {name} looks at {self.view} x {self.view} px and labels "
                f"the {self.core} x {self.core} px in their middle",
                f"images of {self.view} x {self.view} px (times the zoom of a finer modality)",
                f"cut them so, or build {name} with another `view`; whole scenes are mapped by landfuse.predict",
            )

    def map_layers(self, images: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """What a map can hold of every core pixel.

        Args:
            images: as in `forward`.

        Returns:
            Logits, as from `forward`, and (B, 1, core, core), 0..1, for each name in `layers`.
        """
        return self(images), {}

    def loss(self, images: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        """The quantity to minimise, and its parts for the log.

        Args:
            images: as in `forward`.
            target: (B, core, core) uint8, classes or `UNLABELLED`.

        Returns:
            Scalars: `loss`, which is minimised, and any further parts by name.
        """
        return {"loss": cross_entropy(self(images), target)}

    def frozen_reference(self) -> dict[str, str] | None:
        """What a bundle says of weights that it does not store: their name, address and SHA-256; None for nothing."""
        return None

    def trained_state(self) -> dict[str, Tensor]:
        """The tensors that a bundle stores: all, or those beside the frozen ones that `frozen_reference` names."""
        return self.state_dict()

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what `trained_state` returned."""
        self.load_state_dict(dict(state))


Batches = Iterable[tuple[dict[str, Tensor], Tensor]]
"""Images and target, as for `FusionModel.loss`."""


class DirectFit(FusionModel):
    """A model that is fitted in one pass over all samples instead of by gradient descent (a forest, say).

    Attributes:
        most: training windows at most, drawn at random where there are more; None for all.
    """

    most: int | None = None

    def fit(self, samples: Batches, seed: int, validation: Batches = (), epochs: int | None = None) -> dict[str, Any]:
        """Fits to batches; the same seed gives the same model.

        Args:
            samples: to learn from.
            seed: of all that is drawn.
            validation: to decide by when to stop, for a model that has rounds of training.
            epochs: how many rounds it takes instead, where that is known.

        Returns:
            Facts for the run's scores, e.g. `epochs`.
        """
        raise NotImplementedError


def _checked(modalities: Mapping[str, int | Modality]) -> dict[str, Modality]:
    if not modalities:
        raise ModelError("the model got no modality", "at least one", "name the modalities with their channels")
    found = {name: m if isinstance(m, Modality) else Modality(index(m)) for name, m in modalities.items()}
    for name, modality in found.items():
        if modality.zoom < 1 or modality.channels < 1:
            raise ModelError(
                f"the modality `{name}` has {modality.channels} channels at zoom {modality.zoom}",
                "at least one channel, and a zoom of 1 or more",
                f"correct `{name}`",
            )
        if bool(modality.days) != bool(modality.per_day) or not 0 <= modality.dated <= modality.channels:
            raise ModelError(
                f"the modality `{name}` has {modality.channels} channels, {modality.per_day} on each of "
                f"{len(modality.days)} days",
                "the channels of all days first, and perhaps others",
                f"correct `days` and `per_day` of `{name}`",
            )
        if not name.isidentifier():
            raise ModelError(
                f"a modality is named {name!r}", "letters, digits and underscores, e.g. `s2`", "choose another name"
            )
    return found


def settings_of(kind: type[S], config: S | None, keywords: Mapping[str, Any]) -> S:
    """The settings of a model that was called with its settings or with keywords.

    Args:
        kind: the class of the settings.
        config: the settings, or None.
        keywords: their values by name, or none.

    Raises:
        SettingsError: if a keyword is not known, naming the nearest one, or its value is wrong.
    """
    name = kind.__qualname__.removesuffix("Settings").removesuffix(".")
    if config is None:
        return parse(kind, keywords, name)
    if not isinstance(config, kind) or keywords:
        raise SettingsError(
            f"{name} got {type(config).__name__} after its classes" + (" and keywords too" if keywords else ""),
            f"{kind.__qualname__}, or its values as keywords",
            f"name the settings: {name}(modalities, classes, setting=value)",
        )
    return config


def cross_entropy(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the labelled pixels; 0, with zero gradients, where there are none.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W) uint8, classes or `UNLABELLED`.
        smoothing: fraction of each label that is spread over all classes.
    """
    labelled = target != UNLABELLED
    total = F.cross_entropy(
        logits.float(), target.long(), ignore_index=UNLABELLED, reduction="sum", label_smoothing=smoothing
    )
    return total / labelled.sum().clamp(min=1).to(torch.float32)


def refuse_zoom(model: str, modalities: Mapping[str, Modality]) -> None:
    """Refuses modalities that are finer than the scene's grid, for models that cannot use them.

    Raises:
        ModelError: naming the modality.
    """
    for name, modality in modalities.items():
        if modality.zoom != 1:
            raise ModelError(
                f"`{model}` cannot use the modality `{name}` at zoom {modality.zoom}",
                "modalities on the scene's own grid (zoom 1)",
                f"remove `zoom` from `{name}` in the scene file, or leave it out by `modalities:` in the recipe",
            )
