"""Maps and the plug-in in QGIS itself, without windows, where QGIS is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

import landfuse as lf

PLUGIN = Path(__file__).resolve().parents[2] / "qgis" / "landfuse_qgis"

OLD = Path(__file__).resolve().parents[1] / "data" / "old"
MODEL = OLD / "runs" / "forest" / "seed-0" / "bundle"

# Debian's `qgis_process` of 3.22 is a script that passes an option on which the program does not know.
PROCESS = shutil.which("qgis_process.bin") or shutil.which("qgis_process")

PYTHON = "/usr/bin/python3"
"""The Python that distributions install QGIS's modules for."""

pytestmark = pytest.mark.skipif(PROCESS is None, reason="QGIS is not installed: there is no qgis_process")


class Qgis:
    """QGIS with a profile of its own that has the plug-in, and a scene."""

    def __init__(self, folder: Path) -> None:
        self.scene = shutil.copytree(OLD / "scene", folder / "scene")  # QGIS writes beside what it opens
        self.layers = ["optical", f"{self.scene}/optical.tif", "scale: 0.0001", "sar", f"{self.scene}/sar.tif", ""]
        shutil.copytree(PLUGIN, folder / "profiles" / "default" / "python" / "plugins" / PLUGIN.name)
        self.variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
            "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "QGIS_CUSTOM_CONFIG_PATH": str(folder),
            "QT_QPA_PLATFORM": "offscreen", "GDAL_DRIVER_PATH": "/of/qgis",
        }  # fmt: skip
        self.command = folder / "landfuse"
        self.command.write_text(
            f'#!/bin/sh\ntest -z "$GDAL_DRIVER_PATH" || exit 9\n'
            f'PYTHONPATH="{Path(lf.__file__).parents[1]}" exec "{sys.executable}" -m landfuse "$@"\n'
        )
        self.command.chmod(0o755)

    def process(self, *words: object) -> str:
        """Runs qgis_process, which has to succeed."""
        done = subprocess.run(
            [str(PROCESS), *map(str, words)],
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def python(self, code: str, *words: object) -> Any:
        """Runs code in the Python that has QGIS's modules; returns the JSON that it prints last."""
        start = "import json, sys\nsys.path[:0] = ['/usr/share/qgis/python/plugins', sys.argv[1]]\n"
        start += "from qgis.core import QgsApplication\napp = QgsApplication([], True)\napp.initQgis()\n"
        done = subprocess.run(
            [PYTHON, "-c", start + code, str(PLUGIN.parent), *map(str, words)],
            env=self.variables, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def qgis(tmp_path_factory: pytest.TempPathFactory) -> Qgis:
    words = [PYTHON, "-c", "import qgis.core"]
    if not Path(PYTHON).exists() or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip(f"there is no PyQGIS: {PYTHON} has no module qgis")
    return Qgis(tmp_path_factory.mktemp("qgis"))


OPEN = """
from qgis.core import QgsRasterLayer
layer = QgsRasterLayer(sys.argv[2], "map")
classes = [(int(c.value), c.label, c.color.name()) for c in layer.renderer().classes()]
block = layer.renderer().block(1, layer.extent(), layer.width(), layer.height())
rows, columns = range(layer.height()), range(layer.width())
alpha = [[block.color(row, column) >> 24 for column in columns] for row in rows]
found = {"classes": classes, "nodata": layer.dataProvider().sourceNoDataValue(1), "alpha": alpha}
print(json.dumps(found))
"""


def test_a_map_has_its_names_colours_and_transparent_nodata(
    qgis: Qgis, tmp_path: Path, landfuse: Callable[..., Any]
) -> None:
    ended = landfuse("predict", MODEL, qgis.scene, "-o", tmp_path / "map.tif", "--quiet")
    assert ended.code == 0, ended.err
    found = qgis.python(OPEN, tmp_path / "map.tif")
    assert found["classes"] == [
        [c.code, c.name, c.colour.lower()] for c in lf.open_scene(qgis.scene / "scene.yaml").legend
    ]
    assert found["nodata"] == 255
    with rasterio.open(tmp_path / "map.tif") as file:
        codes = file.read(1)
    assert 0 < (codes == 255).mean() < 1
    np.testing.assert_array_equal(np.array(found["alpha"]), np.where(codes == 255, 0, 255))


def test_qgis_process_maps_with_a_model_file(qgis: Qgis, tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    qgis.process("plugins", "enable", PLUGIN.name)
    printed = qgis.process(
        "run", "landfuse:map", f"--MODEL={MODEL / 'model.json'}", f"--LAYERS={','.join(qgis.layers)}",
        f"--COMMAND={qgis.command}", f"--OUTPUT={tmp_path / 'map.tif'}",
    )  # fmt: skip
    assert "100 - done" in printed
    assert landfuse("predict", MODEL, qgis.scene, "-o", tmp_path / "right.tif", "--quiet").code == 0
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "right.tif").read_bytes()
    assert sorted(path.name for path in tmp_path.glob("map*")) == ["map.qml", "map.tif", "map.tif.aux.xml"]


LOADED = """
from processing.core.Processing import Processing
Processing.initialize()
import processing
from landfuse_qgis import classFactory
plugin = classFactory(None)
plugin.initProcessing()
"""

DIALOG = """
from processing.core.ProcessingConfig import ProcessingConfig
from processing.gui.AlgorithmDialog import AlgorithmDialog
from qgis.core import QgsProject, QgsRasterLayer
model, command, *layers = sys.argv[2:]
ProcessingConfig.setSettingValue("LANDFUSE_COMMAND", command)
layer = QgsRasterLayer(layers[1], "an image")
QgsProject.instance().addMapLayer(layer)
dialog = AlgorithmDialog(QgsApplication.processingRegistry().createAlgorithmById("landfuse:map"), False, None)
wrapper = dialog.mainWidget().wrappers["LAYERS"]
found = [list(wrapper.rows)]
dialog.setParameters({"MODEL": model, "LAYERS": [layers[0], layer.id(), *layers[2:]]})
print(json.dumps([*found, list(wrapper.rows), wrapper.value()]))
"""


@pytest.mark.slow  # QGIS and landfuse are started
def test_each_modality_of_a_chosen_model_has_an_input(qgis: Qgis) -> None:
    before, after, value = qgis.python(LOADED + DIALOG, MODEL / "model.json", qgis.command, *qgis.layers)
    assert (before, after) == ([], ["optical", "sar"])
    assert value == qgis.layers  # by their files, not by the project's ids


ALGORITHMS = """
from qgis.core import QgsProcessingContext, QgsProcessingFeedback, QgsVectorLayer
model, out, command, *layers = sys.argv[2:]


class Feedback(QgsProcessingFeedback):
    def __init__(self, cancel_at):
        super().__init__()
        self.cancel_at, self.errors = cancel_at, []

    def setProgress(self, percent):
        if percent >= self.cancel_at:
            self.cancel()

    def reportError(self, error, fatalError=False):
        self.errors.append(error)


def run(name, cancel_at=200, **values):
    feedback, context = Feedback(cancel_at), QgsProcessingContext()
    try:
        values = processing.run(f"landfuse:{name}", {**values, "COMMAND": command}, feedback=feedback, context=context)
    except Exception as error:
        return str(error), feedback.errors
    return values, feedback.errors


found = {
    "cancelled": run("map", 1, MODEL=model, LAYERS=layers, OUTPUT=f"{out}/cancelled/map.tif", OPTIONS="--block 8"),
    "missing": run("map", MODEL=model, LAYERS=layers[:3], OUTPUT=f"{out}/missing.tif"),
    "bands": run("map", MODEL=model, LAYERS=[*layers[:2], "bands: [1, 2]", *layers[3:]], OUTPUT=f"{out}/bands.tif"),
    "there": run("map", MODEL=model, LAYERS=layers, OUTPUT=f"{out}/there.tif"),
    "map": run("map", MODEL=model, LAYERS=layers, ALSO=[1], POLYGONS=True, OUTPUT=f"{out}/map.tif"),
    "sample": run("sample", MAP=f"{out}/map.tif", POINTS=40, MINIMUM=5, OUTPUT=f"{out}/sample.gpkg"),
}
sample = QgsVectorLayer(f"{out}/sample.gpkg", "sample")
sample.startEditing()
column = sample.fields().indexOf("reference")
for point in sample.getFeatures():
    sample.changeAttributeValue(point.id(), column, point["map_class"])
asked = {"MAP": f"{out}/map.tif", "SAMPLE": sample, "OUTPUT": f"{out}/scores", "REPORT": f"{out}/report.html"}
found["unsaved"] = run("accuracy", **asked)
sample.commitChanges()
found["accuracy"] = run("accuracy", **asked)
print(json.dumps(found, default=str))
"""


@pytest.mark.slow  # 20 s: eight commands
def test_the_algorithms_in_qgis(qgis: Qgis, tmp_path: Path) -> None:
    (tmp_path / "cancelled").mkdir()
    (tmp_path / "there.tif").write_text("mine")
    found = qgis.python(LOADED + ALGORITHMS, MODEL, tmp_path, qgis.command, *qgis.layers)
    for name, words in {
        "cancelled": "cancelled; nothing half-written is left",
        "missing": "has no modality `sar`",
        "bands": "4 bands of `optical`, this scene has 2",
        "there": "there.tif is there already",
        "unsaved": "the sample has edits that are not saved",
    }.items():
        assert words in str(found[name]), (name, found[name])
    assert not list((tmp_path / "cancelled").iterdir())
    assert (tmp_path / "there.tif").read_text() == "mine"
    assert not list(tmp_path.glob("*.parts"))
    made, errors = found["map"]
    assert not errors
    assert {name: Path(path).name for name, path in made.items()} == {
        "OUTPUT": "map.tif", "CONFIDENCE": "map_confidence.tif", "POLYGONS": "map_polygons.gpkg",
    }  # fmt: skip
    assert all(Path(path).exists() for path in made.values())
    assert found["accuracy"][1] == []
    estimate = json.loads((tmp_path / "scores" / "accuracy.json").read_text())
    assert "overall accuracy 1.0000" in (tmp_path / "report.html").read_text()
    assert estimate
