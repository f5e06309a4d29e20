"""Zarr groups of versions 2 and 3, read by xarray and zarr, optional dependencies.

The driver of GDAL 3.10, which comes with rasterio, reads neither the final version 3 nor shards.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import zarr  # noqa: F401  isort: skip  (first, since its extra brings xarray, which opens groups by it)
import xarray

from landfuse.errors import MissingFileError, SceneError


def open_zarr(path: str) -> Any:
    """A Zarr group as an xarray.Dataset of the numbers as they are stored; no pixel is read."""
    if re.match(r"[a-z0-9+]+://|/vsi", path):
        raise SceneError(f"{path} is a Zarr store at an address", "one on this machine", "copy it, or mount it")
    if not Path(path).is_dir():
        raise MissingFileError(f"there is no folder {path}", "a Zarr group", "check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that are not consolidated
            return xarray.open_dataset(
                path, engine="zarr", chunks=None, cache=False, mask_and_scale=False, decode_coords="all"
            )
    except Exception as error:  # whatever xarray and zarr raise
        raise SceneError(
            f"{path} cannot be opened as a Zarr group: {error}",
            "a whole group of Zarr 2 or 3, with names of dimensions",
            "check or fetch it again; of an array name the group that it is in, and the array by `variable`",
        ) from None
