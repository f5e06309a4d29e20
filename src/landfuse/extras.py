"""The optional dependencies, and the one message of those that are missing."""

from __future__ import annotations

from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

from landfuse.errors import MissingExtraError

_EXTRAS = {
    "train": ("torch", "lightning", "timm", "segmentation_models_pytorch", "sklearn", "onnx", "onnxscript"),
    "hub": ("huggingface_hub",),
    "matlab": ("h5py",),
    "cluster": ("distributed",),
    "stac": ("pystac", "pystac_client"),
    "torchgeo": ("torchgeo",),
    "indices": ("spyndex",),
    "zarr": ("zarr",),
    "xarray": ("xarray", "rioxarray"),
}
"""Extra -> the packages that it installs, by the name that is imported."""


def missing_extra(error: ImportError) -> ImportError:
    """The error that names the extra to install; the same error where the package belongs to none."""
    package = (error.name or "").partition(".")[0]
    for extra, packages in _EXTRAS.items():
        if package in packages:
            return MissingExtraError(
                f"{package} is not installed",
                f"landfuse with its extra `{extra}`" + ", which training and networks need" * (extra == "train"),
                f'pip install "landfuse[{extra}]"',
            )
    return error


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        try:
            super().exec_module(module)
        except ModuleNotFoundError as error:
            raise missing_extra(error) from None


class OwnModules(PathFinder):
    """Finds the modules of landfuse, which import their libraries at the top, wherever they are first imported."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`; None for the modules of others."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname.startswith("landfuse.") else None
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec
