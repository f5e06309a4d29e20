"""Co-registered rasters of several sensors and some labels in, a defended land-cover map out.

import landfuse as lf
scene = lf.open_scene("scene.yaml")
classifier = lf.train("recipe.yaml")
classifier.predict(scene, "map.tif")
print(lf.evaluate("map.tif", "scene.yaml").confusion.scores())
"""

import os
from importlib.metadata import version

# Before torch is imported: threads that wait by spinning take the cores that others need. On a shared machine of two
# cores that made training 3 to 15 times slower (docs/results.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

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
