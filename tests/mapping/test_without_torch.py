"""Mapping asks a predictor for logits and imports no torch, whoever predicts, and nothing that one model needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import sys
for name in ("torch", "lightning", "timm", "sklearn", "scipy", "pandas", "geopandas", "matplotlib"):
    sys.modules[name] = None  # importing it fails
from pathlib import Path
import numpy as np
from landfuse.bundles.description import Description, ModelSpec
from landfuse.bundles.predictor import About
from landfuse.bundles.table_bundle import load_model
from landfuse.mapping import cluster, destination, map_extras, memory, stac
from landfuse.mapping.predict import plan_map, predict
from landfuse.simulate.scene import simulate_flat

scene = simulate_flat(50, 70, {"a": 3})
infos = {name: part.info for name, part in scene.modalities.items()}


class Means:
    # A view's class is that of its centre pixel's largest band.
    description = Description(ModelSpec("means"), infos, (), scene.legend, view=5, core=3, stride=2)
    stand_ins, channels, nbytes, view, marks_missing, on_gpu = {}, {"a": 3}, 0, 5, False, False
    about = About("Means", 0, "NumPy", np.__version__)
    identity = {"the model": "means"}

    def predictor(self, options):
        return self

    def complete(self, scene):
        return scene

    def prepare(self, name, values):
        return values

    def logits(self, window, prepared, batches):
        for corners in batches:
            found = np.full((len(corners), len(scene.legend), 3, 3), -9, np.float32)
            for number, (row, col) in enumerate(corners - (window.row, window.col)):
                found[number, :3] = prepared["a"][:, row : row + 3, col : col + 3]
            yield found


folder = Path(sys.argv[1])
assert plan_map(Means(), scene, folder / "map.tif").blocks == 1
one = predict(Means(), scene, folder / "one.tif", confidence=True)
two = predict(Means(), scene, folder / "two.tif", confidence=True, block=13)
assert one.read_bytes() == two.read_bytes()
from landfuse.scenes.land_cover_map import open_map
values = scene.read("a", scene.grid.window)
np.testing.assert_array_equal(open_map(one, scene).classes, values.argmax(axis=0))
print("mapped")
"""


def test_a_map_is_made_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout == "mapped\n", done.stderr


OF_TORCH = """
import sys
for name in ("lightning", "timm", "torchvision", "segmentation_models_pytorch", "sklearn", "scipy", "pandas"):
    sys.modules[name] = None
import landfuse.mapping.destination
from landfuse.bundles.bundle_files import load_bundle
from landfuse.models import MODELS
print(MODELS["two_branch"].__name__, MODELS["temporal"].__name__)
"""


def test_a_model_without_an_encoder_imports_torch_alone() -> None:
    done = subprocess.run([sys.executable, "-c", OF_TORCH], capture_output=True, text=True, check=False)
    assert done.stdout == "TwoBranch Temporal\n", done.stderr
