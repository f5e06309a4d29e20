"""The house rules: which way imports run, how long files are, what is not written, what is documented."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "landfuse"
FILES = sorted(path for path in SOURCE.rglob("*.py"))

FLOORS = [
    {"errors"},
    {"legend", "settings", "files", "locks", "palette", "places"},
    {"scenes", "layers"},
    {"models", "scores", "accuracy", "intervals", "class_map", "reference_sample", "pictures", "calibration"},
    {"patchwork", "placeholder", "modality_dropout"},
    {"trained_denoiser", "denoising", "feature_raster", "features", "patch_features"},
    {"samples", "classifier", "recipe", "check", "fetch", "torchgeo_bridge", "sampling", "sampled_accuracy"},
    {"shares", "engine", "products", "parts", "plan"},
    {
        "ground",
        "predict",
        "cluster",
        "map_files",
        "destination",
        "stac",
        "task",
        "evaluate",
        "export",
        "run_folder",
        "run_record",
        "compare",
        "comparison_files",
    },
    {"land_cover_map"},
    {"fit", "pretrain", "map_intervals", "series", "modality_table", "report"},
    {"train", "ablation"},
    {"demo", "reproduce"},
    {"cli"},
]
"""Lowest first; a file may import from its own floor and those below, a wing only from below and from itself."""

WINGS = [{"scenes", "layers"}]

UPWARDS = {("classifier", "landfuse.predict"), ("scenes", "landfuse.pictures")}
"""Imports inside a function that run upwards: `Classifier.predict` is a door to the mapping engine, `Scene.plot` one to
the pictures."""

LONGEST = 400  # lines
LONGER: dict[str, str] = {}
"""Files above the limit, and why."""

ONLY_IN = {
    "rasterio": {
        "scenes/geotiff.py",
        "scenes/geotiff_writer.py",
        "scenes/geotiff_patches.py",
        "scenes/cloud_geotiff.py",
    },
    "scipy.io": {"scenes/matfile.py"},
    "h5py": {"scenes/matfile.py"},
    "geopandas": {"scenes/polygons.py", "scenes/vector_map.py"},
    "pyogrio": {"scenes/polygons.py", "scenes/vector_map.py"},
    "matplotlib": {"pictures.py"},
    "sklearn": {"models/forest.py"},
    "segmentation_models_pytorch": {"models/stacked.py"},
    "distributed": {"cluster.py"},
    "fsspec": {"destination.py"},
    "PIL": {"report/images.py"},
    "jinja2": {"report/page.py"},
    "pooch": {"fetch.py", "scenes/data_folder.py"},
    "torchgeo": {"torchgeo_bridge.py"},
    "typer": {"cli"},
    "rich": {"cli"},
}


def name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unit(dotted: str) -> str:
    return dotted.split(".")[1]


def floor(of: str) -> int:
    found = [number for number, units in enumerate(FLOORS) if of in units]
    assert found, f"`{of}` has no floor yet: add it to FLOORS"
    return found[0]


def faults_of_imports(path: str, source: str) -> list[str]:
    here = path.split("/")[0].removesuffix(".py")
    if here == "__init__":
        return []
    faults = []
    for target in imported(ast.parse(source)):
        if not target.startswith("landfuse.") or any(here == a and target.startswith(b) for a, b in UPWARDS):
            continue
        there = unit(target)
        if floor(there) > floor(here):
            faults.append(f"{path} imports {target} from above")
        if any(here in wing and there in wing and here != there for wing in WINGS):
            faults.append(f"{path} imports {target} from the other wing")
        # A model's own parts (converters, its authors' format) carry its name: mfnet, mfnet_weights.
        stem = path.removeprefix("models/").removesuffix(".py").split("_")[0]
        if here == "models" and there == "models" and path != "models/__init__.py":
            module = target.split(".")[2] if target.count(".") > 1 else ""
            if module not in ("", "base", "FusionModel") and module.split("_")[0] != stem:
                faults.append(f"{path} imports another model, {target}")
    return faults


def test_imports_run_downwards() -> None:
    assert [fault for path in FILES for fault in faults_of_imports(name(path), path.read_text())] == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("scenes/grid.py", "import landfuse.layers.pixel_map"),
        ("layers/pixel_map.py", "from landfuse.scenes import grid"),
        ("scenes/grid.py", "from landfuse.samples import Sample"),
        ("models/two_branch.py", "from landfuse.models.stacked import Stacked"),
        ("models/two_branch.py", "from landfuse.models import stacked"),
        ("predict.py", "def f():\n    from landfuse.train import train"),
        ("legend.py", "from landfuse.scenes.grid import Grid"),
    ],
)
def test_an_import_that_is_forbidden_is_found(path: str, line: str) -> None:
    assert faults_of_imports(path, line)
    assert not faults_of_imports("cli.py", "from landfuse.train import train")


def test_the_wings_keep_to_their_trade() -> None:
    for path in FILES:
        tops = {target.split(".")[0] for target in imported(ast.parse(path.read_text()))}
        if name(path).startswith("scenes/"):
            assert not tops & {"torch", "lightning", "timm"}, name(path)
        if name(path).startswith("layers/"):
            assert not tops & {"rasterio", "h5py", "geopandas", "yaml"}, name(path)


def test_no_file_is_long() -> None:
    lengths = {name(path): len(path.read_text().splitlines()) for path in FILES}
    assert {path: length for path, length in lengths.items() if length > LONGEST and path not in LONGER} == {}
    assert [path for path in LONGER if lengths.get(path, 0) <= LONGEST] == [], "exceptions that are none any more"


def test_no_print_no_assert_no_drawer_of_leftovers() -> None:
    for path in FILES:
        assert path.stem not in {"utils", "helpers", "common", "misc", "util", "helper"}, name(path)
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Assert), f"{name(path)}:{node.lineno}"
            called = node.func if isinstance(node, ast.Call) else None
            assert not (isinstance(called, ast.Name) and called.id == "print"), f"{name(path)}:{called}"


def undocumented(body: list[ast.stmt], path: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            overload = any("overload" in ast.unparse(d) or ".setter" in ast.unparse(d) for d in node.decorator_list)
            if not ast.get_docstring(node) and not overload:
                yield f"{path}:{node.lineno} {node.name}"
            if isinstance(node, ast.ClassDef):
                yield from undocumented(node.body, path)


def test_what_is_public_is_documented() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), name(path)
        assert list(undocumented(tree.body, name(path))) == []
    assert list(undocumented(ast.parse("class A:\n    'a'\n    def b(self): pass").body, "x")) == ["x:3 b"]


def test_each_library_has_one_door() -> None:
    for path in FILES:
        for target in imported(ast.parse(path.read_text())):
            for library, doors in ONLY_IN.items():
                if target == library or target.startswith(f"{library}."):
                    assert {name(path), name(path).split("/")[0]} & doors, f"{name(path)} imports {target}"
