"""Land-cover maps from rasters of several sensors and a few labels, with honest estimates of accuracy.

import landfuse as lf
scene = lf.open_scene("scene.yaml")                    # from files
classifier = lf.train("recipe.yaml")
lf.predict(classifier, scene, "map.tif")
classifier = lf.Classifier("refnet", view=64)          # from arrays, DataArrays or paths
classifier.fit({"s2": s2, "s1": s1}, labels).predict({"s2": s2, "s1": s1})
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from landfuse.extras import OwnModules

if TYPE_CHECKING:
    from landfuse import models as models
    from landfuse.accuracy.certify import certify as certify
    from landfuse.accuracy.change import change as change
    from landfuse.accuracy.confusion import Confusion as Confusion
    from landfuse.accuracy.draw_sample import draw_sample as draw_sample
    from landfuse.accuracy.evaluate import evaluate as evaluate
    from landfuse.accuracy.from_sample import evaluate_sample as evaluate_sample
    from landfuse.api import Classifier as Classifier
    from landfuse.api import load as load
    from landfuse.api import plot as plot
    from landfuse.api import predict as predict
    from landfuse.api import train as train
    from landfuse.bundles.bundle import Bundle as Bundle
    from landfuse.bundles.bundle_files import load_bundle as load_bundle
    from landfuse.errors import LandfuseError as LandfuseError
    from landfuse.interop.hub import pull as pull
    from landfuse.interop.hub import push as push
    from landfuse.legend import UNLABELLED as UNLABELLED
    from landfuse.legend import LandClass as LandClass
    from landfuse.legend import Legend as Legend
    from landfuse.mapping.engine import map_array as map_array
    from landfuse.models import MODELS as MODELS
    from landfuse.models.base import FusionModel as FusionModel
    from landfuse.models.base import Modality as Modality
    from landfuse.rasters.grid import Grid as Grid
    from landfuse.rasters.windows import Window as Window
    from landfuse.reporting.page import report as report
    from landfuse.scenes.check import check as check
    from landfuse.scenes.land_cover_map import LandCoverMap as LandCoverMap
    from landfuse.scenes.land_cover_map import open_map as open_map
    from landfuse.scenes.scene import Scene as Scene
    from landfuse.scenes.scene_file import open_scene as open_scene
    from landfuse.scenes.scene_file import open_scenes as open_scenes
    from landfuse.series.cubes import with_dates as with_dates
    from landfuse.studies.label_audit import audit as audit
    from landfuse.studies.next_labels import next_labels as next_labels
    from landfuse.training.recipe import Recipe as Recipe
    from landfuse.training.recipe import read_recipe as read_recipe

# Before torch is imported: threads that wait by spinning take the cores that others need. On a shared machine of two
# cores that made training 3 to 15 times slower (docs/results.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

sys.meta_path.insert(0, OwnModules)

_HOMES = {
    "MODELS": "models",
    "UNLABELLED": "legend",
    "Bundle": "bundles.bundle",
    "Classifier": "api",
    "Confusion": "accuracy.confusion",
    "FusionModel": "models.base",
    "Grid": "rasters.grid",
    "LandClass": "legend",
    "LandCoverMap": "scenes.land_cover_map",
    "LandfuseError": "errors",
    "Legend": "legend",
    "Modality": "models.base",
    "Recipe": "training.recipe",
    "Scene": "scenes.scene",
    "Window": "rasters.windows",
    "audit": "studies.label_audit",
    "certify": "accuracy.certify",
    "change": "accuracy.change",
    "check": "scenes.check",
    "draw_sample": "accuracy.draw_sample",
    "evaluate": "accuracy.evaluate",
    "evaluate_sample": "accuracy.from_sample",
    "load": "api",
    "load_bundle": "bundles.bundle_files",
    "map_array": "mapping.engine",
    "next_labels": "studies.next_labels",
    "open_map": "scenes.land_cover_map",
    "open_scene": "scenes.scene_file",
    "open_scenes": "scenes.scene_file",
    "plot": "api",
    "predict": "api",
    "pull": "interop.hub",
    "push": "interop.hub",
    "read_recipe": "training.recipe",
    "report": "reporting.page",
    "train": "api",
    "with_dates": "series.cubes",
}
"""Where each name is defined, in this package."""

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    """Imports what a name needs when it is first used: `landfuse --help` and shell completion need no torch."""
    if name == "models":
        return import_module(f"{__name__}.models")
    if name == "__version__":
        return import_module("importlib.metadata").version("landfuse")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "models"})
