"""Co-registered rasters of several sensors and some labels in, a defended land-cover map out.

import landfuse as lf
scene = lf.open_scene("scene.yaml")
classifier = lf.train("recipe.yaml")
classifier.predict(scene, "map.tif")
print(lf.evaluate("map.tif", "scene.yaml").confusion.scores())
"""

import os
import sys
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from landfuse.check import check
    from landfuse.classifier import Classifier, load_bundle
    from landfuse.errors import LandfuseError
    from landfuse.evaluate import evaluate
    from landfuse.land_cover_map import LandCoverMap, open_map
    from landfuse.legend import UNLABELLED, LandClass, Legend
    from landfuse.models import MODELS
    from landfuse.models.base import FusionModel, Modality
    from landfuse.predict import map_array, predict
    from landfuse.recipe import Recipe, read_recipe
    from landfuse.report import report
    from landfuse.scenes.grid import Grid, Window
    from landfuse.scenes.scene import Scene
    from landfuse.scenes.scene_file import open_scene, open_scenes
    from landfuse.scores import Confusion
    from landfuse.train import train

# Before torch is imported: threads that wait by spinning take the cores that others need. On a shared machine of two
# cores that made training 3 to 15 times slower (docs/results.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = version("landfuse")

__all__ = [
    "MODELS",
    "UNLABELLED",
    "Classifier",
    "Confusion",
    "FusionModel",
    "Grid",
    "LandClass",
    "LandCoverMap",
    "LandfuseError",
    "Legend",
    "Modality",
    "Recipe",
    "Scene",
    "Window",
    "check",
    "evaluate",
    "load_bundle",
    "map_array",
    "open_map",
    "open_scene",
    "open_scenes",
    "predict",
    "read_recipe",
    "report",
    "train",
]

_HOMES = {
    "MODELS": "models",
    "UNLABELLED": "legend",
    "Classifier": "classifier",
    "Confusion": "scores",
    "FusionModel": "models.base",
    "Grid": "scenes.grid",
    "LandClass": "legend",
    "LandCoverMap": "land_cover_map",
    "LandfuseError": "errors",
    "Legend": "legend",
    "Modality": "models.base",
    "Recipe": "recipe",
    "Scene": "scenes.scene",
    "Window": "scenes.grid",
    "check": "check",
    "evaluate": "evaluate",
    "load_bundle": "classifier",
    "map_array": "predict",
    "open_map": "land_cover_map",
    "open_scene": "scenes.scene_file",
    "open_scenes": "scenes.scene_file",
    "predict": "predict",
    "read_recipe": "recipe",
    "report": "report",
    "train": "train",
}
"""Where each name is defined, in this package."""


class _Package(ModuleType):
    """Imports what a name needs when it is first asked for: `landfuse --help` and the shell's completion need no torch.

    Some functions are defined in modules of their own name; importing such a module does not put it in their place.
    """

    def __getattr__(self, name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{self.__name__}.{_HOMES[name]}"), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOMES})


sys.modules[__name__].__class__ = _Package
