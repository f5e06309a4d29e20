"""The fusion models, one file each, and the door to them: by name, imported when they are looked up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from landfuse.models import settings as _settings
from landfuse.settings import Settings

if TYPE_CHECKING:
    from landfuse.models.base import FusionModel

SETTINGS: dict[str, type[Settings]] = {
    "bdgf": _settings.BdgfSettings,
    "forest": _settings.ForestSettings,
    "mfnet": _settings.MFNetSettings,
    "refnet": _settings.RefNetSettings,
    "stacked": _settings.StackedSettings,
    "two_branch": _settings.TwoBranchSettings,
}
"""What a recipe may say of each model, by the model's name; imports no torch."""


class _Models(Mapping[str, "type[FusionModel]"]):
    """Name -> class; torch and the model's file are imported when the class is asked for."""

    def __init__(self) -> None:
        self._homes: dict[str, str | type[FusionModel]] = {
            "bdgf": "bdgf:Bdgf",
            "forest": "forest:Forest",
            "mfnet": "mfnet:MFNet",
            "refnet": "refnet:RefNet",
            "stacked": "stacked:Stacked",
            "two_branch": "two_branch:TwoBranch",
        }

    def __getitem__(self, name: str) -> type[FusionModel]:
        home = self._homes[name]
        if not isinstance(home, str):
            return home
        module, _, kind = home.partition(":")
        found: type[FusionModel] = getattr(import_module(f"{__name__}.{module}"), kind)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._homes

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)


MODELS = _Models()
"""Every model by the name that recipes use."""


def register(name: str, kind: type[FusionModel]) -> None:
    """Makes a model of one's own known by a name, for recipes and bundles of this process."""
    MODELS._homes[name] = kind
    SETTINGS[name] = kind.Settings
