"""How the QGIS plug-in runs the `landfuse` command; QGIS itself is not needed."""

from __future__ import annotations

import configparser
import importlib.util
import os
import stat
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from landfuse.scenes.scene_keys import SceneSettings
from landfuse.settings import parse

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the commands that stand for landfuse are shell scripts")

PLUGIN = Path(__file__).resolve().parents[2] / "qgis" / "landfuse_qgis"


@pytest.fixture(scope="module")
def command() -> ModuleType:
    spec = importlib.util.spec_from_file_location("landfuse_qgis_command", PLUGIN / "command.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., str]:
    """Makes a command of lines of shell."""

    def make(*lines: str, name: str = "bin/landfuse") -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


class Feedback:
    """Has the methods of QGIS's."""

    def __init__(self, cancel_at: float = 101) -> None:
        self.said: list[tuple[str, Any]] = []
        self.cancel_at = cancel_at

    def __getattr__(self, name: str) -> Callable[[Any], None]:
        return lambda value: self.said.append((name, value))

    def isCanceled(self) -> bool:
        return any(name == "setProgress" and value >= self.cancel_at for name, value in self.said)


def test_the_variables_of_qgis_are_removed(command: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    of_qgis = (
        "PYTHONHOME", "PYTHONPATH", "GDAL_DATA", "GDAL_DRIVER_PATH", "PROJ_LIB", "PROJ_DATA", "LD_LIBRARY_PATH",
        "QT_PLUGIN_PATH", "QGIS_PREFIX_PATH", "DYLD_LIBRARY_PATH", "FORCE_COLOR",
    )  # fmt: skip
    for name in of_qgis:
        monkeypatch.setenv(name, "/qgis")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("OSGEO4W_ROOT", "/OSGeo4W")
    monkeypatch.setenv("PATH", os.pathsep.join(["/osgeo4w/bin", "/usr/bin"]))
    found = command.environment()
    assert not set(of_qgis) & set(found)
    assert (found["OMP_NUM_THREADS"], found["PATH"]) == ("3", "/usr/bin")


def test_the_command_is_found_by_its_environment(
    command: ModuleType, script: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = script("echo 1.10.0.dev3")
    monkeypatch.setattr(command, "OLDEST", "1.9")
    monkeypatch.setenv("PATH", str(Path(path).parent))
    assert command.program(path) == command.program(str(Path(path).parents[1])) == command.program("") == path


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("echo 0.0.9", "landfuse 0.0.9\n  expected: landfuse 0.1.0 or newer"),
        ("echo a list of files", "is no landfuse command: a list of files"),
        ("exit 1", "is no landfuse command"),
        (None, "there is no landfuse command at"),
    ],
)
def test_another_program_is_refused(
    command: ModuleType, script: Callable[..., str], tmp_path: Path, line: str | None, found: str
) -> None:
    named = script(line) if line is not None else str(tmp_path / "none")
    with pytest.raises(command.CommandError, match=found):
        command.program(named)


def test_progress_notes_and_results_go_to_their_places(command: ModuleType, script: Callable[..., str]) -> None:
    feedback = Feedback()
    path = script(
        """echo '{"event": "progress", "pixels": 5, "of": 20}'""",
        """echo '{"event": "polygons", "path": "a.gpkg"}'""",
        "echo 'overall accuracy 0.8'",
        "echo 'landfuse predict: starting' >&2",
        "echo 'drawing, blocks: 40%, 0:00:03 left' >&2",
        "echo 'WARNING  values are unusual      ' >&2",
        "echo 'INFO     4 MB of weights' >&2",
    )
    ended = command.run([path, "x y"], feedback)
    assert ended.lines == ["overall accuracy 0.8"]
    assert ended.events[1] == {"event": "polygons", "path": "a.gpkg"}
    assert sorted(feedback.said) == sorted([
        ("pushCommandInfo", f'{path} "x y"'), ("setProgress", 25.0), ("pushConsoleInfo", "overall accuracy 0.8"),
        ("setProgressText", "drawing, blocks"), ("setProgress", 40), ("pushWarning", "values are unusual"),
        ("pushInfo", "4 MB of weights"),
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "code", "message"),
    [
        (
            ("error no modality `s1`", "  expected: s1", "  do this:  add it"),
            2,
            "no modality `s1`\n  expected: s1\n  do",
        ),
        (("Usage: landfuse", "Try -h", "╭─ Error ─╮", "│ No such option: --x  │", "╰────╯"), 2, "No such option: --x"),
        (("error two blocks are not mapped",), 3, "two blocks are not mapped"),
    ],
)
def test_a_fault_is_the_commands_own_message(
    command: ModuleType, script: Callable[..., str], lines: tuple[str, ...], code: int, message: str
) -> None:
    path = script(*(f"echo '{line}' >&2" for line in lines), f"exit {code}")
    if code == 3:  # the rest is mapped
        assert command.run([path], Feedback()).warning == message
        return
    with pytest.raises(command.CommandError) as fault:
        command.run([path], Feedback())
    assert str(fault.value).startswith(message)


@pytest.mark.parametrize("obeys", [True, False])
def test_a_cancelled_command_ends_with_all_that_it_started(
    command: ModuleType, script: Callable[..., str], tmp_path: Path, obeys: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "PATIENCE", 30.0 if obeys else 0.3)
    path = script(
        "sleep 60 >/dev/null 2>&1 &",
        f"echo $! > {tmp_path / 'worker'}",
        """echo '{"event": "progress", "pixels": 1, "of": 2}'""",
        f"cat > /dev/null; touch {tmp_path / 'tidied'}" if obeys else "sleep 60",  # cat ends with its input
    )
    start = time.monotonic()
    with pytest.raises(command.CommandError, match="cancelled"):
        command.run([path], Feedback(cancel_at=50))
    assert time.monotonic() - start < 10
    assert (tmp_path / "tidied").exists() == obeys
    worker = int((tmp_path / "worker").read_text())
    for _ in range(100):  # until its new parent has noticed
        try:
            state = (
                Path(f"/proc/{worker}/stat").read_text().split()[2] if Path("/proc").is_dir() else os.kill(worker, 0)
            )
        except (FileNotFoundError, ProcessLookupError):
            break
        if state == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the worker is still running")


def test_a_scene_file_is_written_of_layers(command: ModuleType) -> None:
    known = {
        "modalities": {
            "s1": {"units": "dB", "zoom": 1, "decode": ""},
            "on": {"units": "m", "zoom": 4, "decode": "signed_square 127.5"},
        }
    }
    layers = {
        "s1": ('C:\\Karten\\Größe "1".tif', "bands: [1, 2], scale: 0.5", "EPSG:32632"),
        "on": ("/a b.tif", " units: cm", ""),
    }
    read = yaml.safe_load(command.scene_text("map: 1", layers, known))
    assert read == {
        "name": "map: 1",
        "modalities": {
            "s1": {
                "path": 'C:\\Karten\\Größe "1".tif', "units": "dB", "zoom": 1, "crs": "EPSG:32632", "bands": [1, 2],
                "scale": 0.5,
            },
            "on": {
                "path": "/a b.tif", "zoom": 4, "units": "cm", "decode": {"kind": "signed_square", "divide": 127.5},
            },
        },
    }  # fmt: skip
    parse(SceneSettings, read, "the scene file")
    with pytest.raises(command.CommandError, match="is a pattern"):
        command.scene_text("map", {"s1": ("/a*.tif", "", "")}, known)


def test_further_options_are_split_as_by_a_shell(command: ModuleType) -> None:
    assert command.split_words("--mean-for s1 --scene '/a b.yaml'") == ["--mean-for", "s1", "--scene", "/a b.yaml"]
    with pytest.raises(command.CommandError, match="quotation"):
        command.split_words("'a")
    with pytest.raises(command.CommandError, match="makes no map"):
        command.split_words("--block 64 --dry-run")
    assert command.split_words(r'--scene "C:\a b\c.yaml" -q', windows=True) == ["--scene", r"C:\a b\c.yaml", "-q"]


def test_a_models_folder_can_be_chosen_by_a_file(command: ModuleType) -> None:
    assert command.model_place("/runs/a/bundle/model.json") == "/runs/a/bundle"
    assert command.model_place("/runs/a/model.onnx") == "/runs/a/model.onnx"


def test_the_plugin_has_the_version_of_the_package(command: ModuleType) -> None:
    known = configparser.ConfigParser()
    known.read(PLUGIN / "metadata.txt", encoding="utf-8")
    project = tomllib.loads((PLUGIN.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    plugin = known["general"]
    assert plugin["version"] == project["version"]
    assert plugin["hasProcessingProvider"] == "yes"  # else qgis_process does not load it
    assert plugin["homepage"] == project["urls"]["Homepage"]
    assert (PLUGIN / plugin["icon"]).exists()
    release = [int(part) for part in command.OLDEST.split(".")]
    assert release <= [int(part) for part in project["version"].split(".")]
