"""A map as an item of a SpatioTemporal Asset Catalog (STAC): place, classes, files and the model that made it.

Source:
    STAC 1.1.0, https://stacspec.org, with its extensions Machine Learning Model (mlm) 1.4.0, projection 2.0.0,
    raster 2.0.0, classification 2.0.0 and file 2.1.0, https://stac-extensions.github.io.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyproj

from landfuse.bundles.description import Description
from landfuse.bundles.predictor import About, Predictor
from landfuse.files import write_text
from landfuse.legend import UNLABELLED, Legend
from landfuse.mapping.map_extras import polygons_beside
from landfuse.mapping.map_layers import PROBABILITY_STEPS, Layer
from landfuse.rasters.grid import Grid
from landfuse.rasters.vector_map import footprint
from landfuse.scenes.land_cover_map import beside

_EXTENSIONS = ("mlm/v1.4.0", "projection/v2.0.0", "raster/v2.0.0", "classification/v2.0.0", "file/v2.1.0")

_GEOTIFF = "image/tiff; application=geotiff; profile=cloud-optimized"


def write_item(
    path: str | Path,
    grid: Grid,
    predictor: Predictor,
    bundle: str | Path,
    layers: Sequence[Layer],
    taken: datetime | None = None,
) -> Path:
    """Writes a map's STAC item: `map.tif` -> `map.stac.json`.

    Args:
        path: of the map, which is there, as are its other layers.
        grid: of the map.
        predictor: what made it.
        bundle: its folder, or the run folder that holds it.
        layers: the files of the map.
        taken: when the scene was taken; by default the time at which the map was made stands in.

    Returns:
        The item's path.

    Raises:
        GridError: if the grid cannot be placed on the globe.
        OutputError: if it cannot be written.
    """
    path = Path(path)
    place = path.with_suffix(".stac.json")
    item = item_of(path, place.parent, grid, predictor, Path(bundle), layers, taken)
    write_text(place, json.dumps(item, indent=2, ensure_ascii=False) + "\n")
    return place


def item_of(
    path: Path,
    home: Path,
    grid: Grid,
    predictor: Predictor,
    bundle: Path,
    layers: Sequence[Layer],
    taken: datetime | None,
) -> dict[str, Any]:
    """The item itself; as in `write_item`.

    Args:
        home: folder of the item; hrefs are relative to it.
        bundle: folder of the bundle.
    """
    ring = footprint(grid)
    longitudes, latitudes = [x for x, _ in ring], [y for _, y in ring]
    made = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    known = predictor.description
    model = model_fields(known, predictor.about)
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [f"https://stac-extensions.github.io/{name}/schema.json" for name in _EXTENSIONS],
        "id": path.stem,
        "geometry": {"type": "Polygon", "coordinates": [[list(place) for place in ring]]},
        "bbox": [min(longitudes), min(latitudes), max(longitudes), max(latitudes)],
        "properties": {
            "title": f"Land cover: {path.stem}",
            "datetime": _time(taken or made),
            "created": _time(made),
            **_projection(grid),
            "bands": [{"name": band} for one in model["mlm:input"] for band in one["bands"]],
            **model,
            "landfuse:bundle": predictor.identity["the model"],
        },
        "links": [],
        "assets": _assets(path, home, grid, known.legend, bundle, layers),
    }


def model_fields(known: Description, about: About) -> dict[str, Any]:
    """The fields of the Machine Learning Model extension."""
    view, core, classes = known.view, known.core, len(known.legend)
    axes, tasks = ["height", "width"], ["semantic-segmentation"]
    inputs = []
    for name, info in known.modalities.items():
        side = view * info.zoom
        inputs.append(
            {
                "name": name,
                "bands": [f"{name}_{band + 1}" for band in range(info.bands)],
                "input": {
                    "shape": [-1, info.bands, side, side],
                    "dim_order": ["batch", "bands", *axes],
                    "data_type": "float32",
                },
                "description": f"in {info.units or 'the units of the file'}; the bundle standardises it",
            }
        )
    release = re.match(r"\d+\.\d+\.\d+", about.framework_version)
    version = {"mlm:framework_version": release.group()} if release else {}
    return {
        "mlm:name": f"landfuse-{known.spec.name}",
        "mlm:architecture": about.architecture,
        "mlm:framework": about.framework,
        **version,
        "mlm:tasks": tasks,
        "mlm:total_parameters": about.parameters,
        "mlm:input": inputs,
        "mlm:output": [
            {
                "name": "scores",
                "tasks": tasks,
                "result": {
                    "shape": [-1, classes, core, core],
                    "dim_order": ["batch", "class", *axes],
                    "data_type": "float32",
                },
                "description": f"logits of the core in the middle of the view; cores are {known.stride} px apart",
                "classification:classes": _classes(known.legend, codes=False),
            }
        ],
    }


def _classes(legend: Legend, *, codes: bool) -> list[dict[str, Any]]:
    """The classes by code, as the map holds them, or by place, as the model's output does."""
    found: list[dict[str, Any]] = []
    for place, one in enumerate(legend):
        plain = re.sub(r"[^0-9A-Za-z_-]+", "_", one.name).strip("_") or "class"
        number = one.code if codes else place
        name = plain if plain not in {other["name"] for other in found} else f"{plain}_{number}"
        found.append(
            {
                "value": number,
                "name": name,
                "title": one.name,
                "description": one.name,
                "color_hint": one.colour.removeprefix("#").upper(),
            }
        )
    return found


def _projection(grid: Grid) -> dict[str, Any]:
    crs = pyproj.CRS.from_user_input(grid.crs)
    coded = grid.crs is not None and grid.crs.upper().startswith("EPSG:")
    return {
        "proj:code": grid.crs if coded else None,
        **({} if coded else {"proj:wkt2": crs.to_wkt()}),
        "proj:shape": [grid.height, grid.width],
        "proj:transform": [*map(float, grid.transform), 0.0, 0.0, 1.0],
    }


def _assets(
    path: Path, home: Path, grid: Grid, legend: Legend, bundle: Path, layers: Sequence[Layer]
) -> dict[str, dict[str, Any]]:
    across, down = grid.pixel_size
    size = {"raster:spatial_resolution": across} if abs(across - down) <= 1e-9 * across else {}
    assets = {}
    for layer in layers:
        scale = {} if layer.values is None else {"raster:scale": 1 / PROBABILITY_STEPS, "raster:offset": 0.0}
        assets[layer.name or "map"] = {
            **_file(beside(path, layer.name), home),
            "title": layer.name or "land cover",
            "type": _GEOTIFF,
            "roles": ["data"],
            "data_type": "uint8",
            "nodata": UNLABELLED,
            "bands": [{"name": band, **scale} for band in layer.bands],
            "raster:sampling": "area",
            **size,
            **({"classification:classes": _classes(legend, codes=True)} if layer.values is None else {}),
        }
    extra = {
        "style": (path.with_suffix(".qml"), "style for QGIS", "application/xml", ["metadata"]),
        "polygons": (polygons_beside(path), "polygons", "application/geopackage+sqlite3", ["data"]),
        "model": (bundle / "model.safetensors", "weights", "application/octet-stream", ["mlm:model", "mlm:weights"]),
        "model-description": (bundle / "model.json", "the model's settings", "application/json", ["metadata"]),
    }
    for name, (place, title, kind, roles) in extra.items():
        if place.exists():
            assets[name] = {**_file(place, home), "title": title, "type": kind, "roles": roles}
    if "model" in assets:
        assets["model"]["mlm:artifact_type"] = "safetensors.torch.save_file"
    return assets


def _file(place: Path, home: Path) -> dict[str, Any]:
    """Where a file is, its size, and its SHA-256 with the prefix that multihash gives it."""
    try:
        href = Path(os.path.relpath(place, home)).as_posix()
    except ValueError:  # on another drive
        href = place.resolve().as_uri()
    with place.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "href": href if href.startswith(("..", "file:")) else f"./{href}",
        "file:size": place.stat().st_size,
        "file:checksum": f"1220{found}",
    }


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")
