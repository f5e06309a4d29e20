"""The models, and the door to them: by name, imported when they are looked up.

Further models come from other packages, by the entry points of the group `landfuse.models` (name -> class), or from the
user: by `register`, `load_bundle(..., model=Class)` or `--model package.module:Class`. What a file names is never
imported.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from typing import TYPE_CHECKING, NamedTuple

from landfuse.errors import ModelError, nearest
from landfuse.models import settings as _settings
from landfuse.settings import Settings

if TYPE_CHECKING:
    from landfuse.models.base import DirectFit, FusionModel, Modality
    from landfuse.models.bdgf import Bdgf
    from landfuse.models.mfnet import MFNet
    from landfuse.models.pixel_models import Boosted, Forest, Logistic
    from landfuse.models.refnet import RefNet
    from landfuse.models.stacked import Stacked
    from landfuse.models.temporal import Temporal
    from landfuse.models.two_branch import TwoBranch

__all__ = [
    "MODELS",
    "SETTINGS",
    "Bdgf",
    "Boosted",
    "DirectFit",
    "Forest",
    "FusionModel",
    "Logistic",
    "MFNet",
    "Modality",
    "RefNet",
    "Stacked",
    "Temporal",
    "TwoBranch",
    "register",
]

log = logging.getLogger(__name__)

GROUP = "landfuse.models"
"""The group of entry points by which other packages offer models."""


class _Own(NamedTuple):
    """A model of landfuse's own: its file, its class and its settings."""

    file: str
    kind: str
    settings: type[Settings]


_OWN: dict[str, _Own] = {
    "bdgf": _Own("bdgf", "Bdgf", _settings.BdgfSettings),
    "boosted": _Own("pixel_models", "Boosted", _settings.BoostedSettings),
    "forest": _Own("pixel_models", "Forest", _settings.ForestSettings),
    "logistic": _Own("pixel_models", "Logistic", _settings.LogisticSettings),
    "mfnet": _Own("mfnet", "MFNet", _settings.MFNetSettings),
    "refnet": _Own("refnet", "RefNet", _settings.RefNetSettings),
    "stacked": _Own("stacked", "Stacked", _settings.StackedSettings),
    "temporal": _Own("temporal", "Temporal", _settings.TemporalSettings),
    "two_branch": _Own("two_branch", "TwoBranch", _settings.TwoBranchSettings),
}
"""By name."""

_HOMES = {own.kind: own.file for own in _OWN.values()}
_HOMES |= dict.fromkeys(("DirectFit", "FusionModel", "Modality"), "base")
"""Where each class is defined, in this package."""

_registered: dict[str, type[FusionModel]] = {}


def __getattr__(name: str) -> object:
    """Imports a class when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


class Package(NamedTuple):
    """What a model is installed with."""

    name: str
    version: str


@cache
def _offered() -> dict[str, list[EntryPoint]]:
    """What other packages offer, by name."""
    offered: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        if point.name in _OWN:
            log.warning(
                "%s offers a model `%s`, which is landfuse's own name: it is not used; its package has to name it "
                "otherwise",
                _source(point),
                point.name,
            )
        elif point not in offered.setdefault(point.name, []):
            offered[point.name].append(point)
    return offered


def _source(point: EntryPoint) -> str:
    return f"the package {point.dist.name} {point.dist.version}" if point.dist is not None else point.value


def _load(name: str) -> type[FusionModel]:
    points = _offered()[name]
    if len(points) > 1:
        raise ModelError(
            f"several packages offer a model `{name}`: {', '.join(sorted(map(_source, points)))}",
            "one",
            "uninstall the others",
        )
    try:
        kind = points[0].load()
    except Exception as error:  # whatever another package's import may raise
        raise ModelError(
            f"the model `{name}` cannot be imported from {points[0].value}: {type(error).__name__}: {error}",
            f"a class in {_source(points[0])}",
            "correct or reinstall that package",
        ) from error
    return checked(name, kind)


def checked(name: str, kind: object) -> type[FusionModel]:
    """Refuses what is no class of a model.

    Raises:
        ModelError: saying what it is instead.
    """
    from landfuse.models.base import FusionModel

    if not (isinstance(kind, type) and issubclass(kind, FusionModel)):
        raise ModelError(
            f"the model `{name}` is {kind!r}", "a class that derives from landfuse.FusionModel", "see add-a-model.md"
        )
    if not (isinstance(getattr(kind, "Settings", None), type) and issubclass(kind.Settings, Settings)):
        raise ModelError(
            f"the model `{name}` ({kind.__qualname__}) has no `Settings`",
            "a class in it that derives from landfuse.settings.Settings",
            "see add-a-model.md",
        )
    return kind


class _Models(Mapping[str, "type[FusionModel]"]):
    """Name -> class; torch and the model's file are imported when the class is asked for.

    Examples:
        >>> import landfuse as lf
        >>> sorted(lf.MODELS)[:3]
        ['bdgf', 'boosted', 'forest']
        >>> lf.MODELS["two_branch"].__name__
        'TwoBranch'
    """

    def __getitem__(self, name: str) -> type[FusionModel]:
        if name in _OWN:
            own = _OWN[name]
            found: type[FusionModel] = getattr(import_module(f"{__name__}.{own.file}"), own.kind)
            return found
        if name in _registered:
            return _registered[name]
        if name in _offered():
            return _load(name)
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return name in _OWN or name in _registered or name in _offered()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*_OWN, *_registered, *_offered()}))

    def __len__(self) -> int:
        return len({*_OWN, *_registered, *_offered()})


class _Settings(Mapping[str, type[Settings]]):
    """Name -> settings class; those of landfuse's own models without torch."""

    def __getitem__(self, name: str) -> type[Settings]:
        return _OWN[name].settings if name in _OWN else MODELS[name].Settings

    def __contains__(self, name: object) -> bool:
        return name in MODELS

    def __iter__(self) -> Iterator[str]:
        return iter(MODELS)

    def __len__(self) -> int:
        return len(MODELS)


MODELS = _Models()
"""Every model by the name that recipes use: landfuse's own, those of other packages, and those registered."""

SETTINGS = _Settings()
"""What a recipe may say of each model, by the model's name."""


def register(name: str, kind: type[FusionModel]) -> None:
    """Makes a model of one's own known by a name, for recipes and bundles of this process.

    Args:
        name: as recipes will have it; a class registered before under this name is replaced.
        kind: the class.

    Raises:
        ModelError: if the name is that of one of landfuse's own models, or the class is no model.

    >>> import landfuse as lf
    >>> class Wide(lf.models.TwoBranch):
    ...     pass
    >>> lf.models.register("wide", Wide)
    >>> lf.MODELS["wide"].__name__
    'Wide'
    """
    if name in _OWN:
        raise ModelError(
            f"a model is to be registered as `{name}`, the name of one of landfuse's own",
            f"another name than {', '.join(_OWN)}",
            "choose another name",
        )
    _registered[name] = checked(name, kind)


def is_own(name: str) -> bool:
    """Whether a name is that of one of landfuse's own models."""
    return name in _OWN


def registered(name: str) -> type[FusionModel] | None:
    """The class that was registered by a name in this process, which other processes cannot find by it."""
    return _registered.get(name)


def name_of(model: str | type[FusionModel]) -> str:
    """The name of a model for recipes and bundles of this process.

    Args:
        model: a name of `MODELS`, or a class; one that no name is known for is registered as `package.module:Class`.

    Raises:
        ModelError: if there is no such model, naming the nearest one, or the class is none.
    """
    if isinstance(model, str):
        if model not in MODELS:
            raise ModelError(f"there is no model `{model}`", ", ".join(MODELS), unknown(model))
        return model
    place = f"{model.__module__}:{model.__qualname__}"
    known = {f"{__name__}.{own.file}:{own.kind}": name for name, own in _OWN.items()}
    if place in known:
        return known[place]
    point = _point_of(model)
    if point is not None:
        return point.name
    for name, kind in _registered.items():
        if kind is model:
            return name
    register(place, model)
    return place


def _point_of(kind: type[FusionModel]) -> EntryPoint | None:
    """The entry point that offers a class, among those of its package, which has been imported before."""
    top = kind.__module__.partition(".")[0]
    points = [points[0] for points in _offered().values() if len(points) == 1]
    near = (point for point in points if point.module.partition(".")[0] == top)
    return next((point for point in near if _load(point.name) is kind), None)


def unknown(name: str) -> str:
    """What to do where a model's name is not known."""
    if ":" in name:
        return f"name its class, if you trust it: --model {name}, or landfuse.models.register"
    return nearest(name, MODELS, "correct the name, or install the package of the model")


def imported(place: str) -> type[FusionModel]:
    """Imports a class that the user names, `package.module:Class`; never what a file names.

    Raises:
        ModelError: if there is no such module or class, or it is no model.
    """
    if not re.fullmatch(r"[\w.]+:[\w.]+", place):
        raise ModelError(f"the model is named {place!r}", "package.module:Class", "name module and class")
    try:
        kind = EntryPoint(place, place, GROUP).load()
    except Exception as error:  # whatever another module's import may raise
        raise ModelError(
            f"the model {place} cannot be imported: {type(error).__name__}: {error}",
            "a class of a module in the working directory, on PYTHONPATH or installed",
            "correct the name or the module, or install its package",
        ) from error
    return checked(place, kind)


def package_of(kind: type[FusionModel]) -> Package | None:
    """The package that a model of one's own is installed with; None for landfuse's own, and for a mere file."""
    top = kind.__module__.partition(".")[0]
    if top == __name__.partition(".")[0]:
        return None
    point = _point_of(kind)
    if point is not None and point.dist is not None:
        return Package(point.dist.name, point.dist.version)
    found = packages_distributions().get(top, ())
    return Package(found[0], version(found[0])) if found else None
