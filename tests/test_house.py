"""The house rules: the order of packages, one importing file per outside format, no print or assert, docstrings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "landfuse"
FILES = {path.relative_to(SOURCE).as_posix(): path.read_text() for path in sorted(SOURCE.rglob("*.py"))}

PACKAGES = """
    rasters series scenes catalogs kernels layers models views diffusion bundles accuracy mapping figures training
    studies reporting interop simulate api cli
"""
GROUND = {"errors", "extras", "legend", "settings", "files", "markup", "palette", "download", "progress"}
ORDER = [GROUND, *({package} for package in PACKAGES.split())]
"""Lowest first: a package imports from itself and from those before it; the ground's files from each other."""

NO_TORCH = {"rasters", "series", "scenes", "catalogs", "figures"}
"""Packages that know files and arrays, and no tensors."""

NO_FILES = {"kernels", "layers", "models"}
"""Packages that know tensors, and no files of pixels."""

ONLY_IN = {
    "rasterio": {"rasters/geotiff.py", "rasters/geotiff_writer.py", "rasters/vector_map.py"},
    "scipy.io": {"rasters/matlab.py"},
    "h5py": {"rasters/matlab.py"},
    "geopandas": {"rasters/polygons.py", "rasters/vector_map.py"},
    "pyogrio": {"rasters/polygons.py"},
    "matplotlib": {"figures/figures.py"},
    "sklearn": {"models/pixel_models.py", "training/linear_probe.py"},
    "segmentation_models_pytorch": {"models/stacked.py"},
    "distributed": {"mapping/cluster.py"},
    "filelock": {"mapping/locks.py"},
    "fsspec": {"mapping/destination.py"},
    "pystac": {"mapping/stac.py", "catalogs/stac.py"},
    "pystac_client": {"catalogs/stac.py"},
    "pandas": {"studies/tables.py"},
    "PIL": {"figures/images.py"},
    "huggingface_hub": {"interop/hub.py"},
    "jinja2": {"reporting/page.py"},
    "platformdirs": {"scenes/scene_keys.py"},
    "spyndex": {"series/indices.py"},
    "onnx": {"interop/onnx_export.py", "interop/onnx_tables.py"},
    "onnx_ir": {"interop/onnx_networks.py"},
    "onnxruntime": {"bundles/onnx_model.py", "interop/onnx_export.py"},
    "onnxscript": {"interop/onnx_networks.py"},
    "torchgeo": {"interop/torchgeo.py"},
    "xarray": {"rasters/arrays.py", "series/zarr_store.py"},
    "zarr": {"series/zarr_store.py"},
    "rioxarray": {"rasters/arrays.py"},
    "typer": {"cli"},
    "rich": {"cli", "progress.py"},
}


def imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rank(package: str) -> int:
    return next(number for number, packages in enumerate(ORDER) if package in packages)


def faults_of_imports(path: str, source: str) -> list[str]:
    here, faults = path.split("/")[0].removesuffix(".py"), []
    for target in imported(source):
        top, *inside = target.split(".")
        if top == "landfuse" and here not in ("__init__", "__main__") and rank(inside[0]) > rank(here):
            faults.append(f"{path} imports {target} from above")
        # A model's own parts (its weights' reader, its authors' format) carry its name: mfnet, mfnet_weights.
        own = path.removeprefix("models/").removesuffix(".py").split("_")[0]
        ours = top == "landfuse" and inside[:1] == ["models"]
        if here == "models" and path != "models/__init__.py" and ours:
            module = inside[1] if len(inside) > 2 else ""
            if module not in ("", "base", "settings") and module.split("_")[0] != own:
                faults.append(f"{path} imports another model, {target}")
        if here in NO_TORCH and top in ("torch", "lightning", "timm"):
            faults.append(f"{path} imports {top}")
        if here in NO_FILES and top in ("rasterio", "h5py", "geopandas", "yaml"):
            faults.append(f"{path} imports {top}")
    return faults


def test_imports_run_one_way() -> None:
    assert [fault for path, source in FILES.items() for fault in faults_of_imports(path, source)] == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("rasters/grid.py", "import landfuse.views.pixel_map"),
        ("scenes/scene.py", "import torch"),
        ("layers/lora.py", "import rasterio"),
        ("models/two_branch.py", "from landfuse.models.stacked import Stacked"),
        ("mapping/predict.py", "def f():\n    from landfuse.training.train import train"),
        ("legend.py", "from landfuse.rasters.grid import Grid"),
    ],
)
def test_an_import_that_is_forbidden_is_found(path: str, line: str) -> None:
    assert faults_of_imports(path, line)
    assert not faults_of_imports("cli/train.py", "from landfuse.training.train import train")


def test_each_outside_format_has_one_importing_file() -> None:
    for path, source in FILES.items():
        for target in imported(source):
            for library, doors in ONLY_IN.items():
                if target == library or target.startswith(f"{library}."):
                    assert {path, path.split("/")[0]} & doors, f"{path} imports {target}"


def test_a_package_is_a_room_with_a_door() -> None:
    for folder in {Path(path).parent for path in FILES if "/" in path}:
        files = [path for path in FILES if Path(path).parent == folder]
        assert len(files) <= 15, f"{folder} has {len(files)} files"
        assert ast.get_docstring(ast.parse(FILES[f"{folder}/__init__.py"])), f"{folder}/__init__.py says no purpose"


def test_no_print_no_assert() -> None:
    for path, source in FILES.items():
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}"
            called = node.func if isinstance(node, ast.Call) else None
            assert not (isinstance(called, ast.Name) and called.id == "print"), f"{path}:{node.lineno}"


def test_the_public_face_is_documented() -> None:
    import landfuse

    assert sorted(set(landfuse.__all__)) == sorted(landfuse.__all__)
    for name in landfuse.__all__:
        assert name.isupper() or getattr(landfuse, name).__doc__, name
