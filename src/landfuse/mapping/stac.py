"""A map as an item of a SpatioTemporal Asset Catalog (STAC): place, classes, files and the model that made it.

pystac writes the item and its relative links. Extension fields are plain values: pystac has none of raster 2.0, and
those of the others would only be named twice.

Source:
    STAC 1.1.0, https://stacspec.org, with its extensions Machine Learning Model (mlm) 1.4.0, projection 2.0.0,
    raster 2.0.0, classification 2.0.0 and file 2.1.0, https://stac-extensions.github.io.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyproj
import shapely

from landfuse.bundles.description import Description
from landfuse.bundles.predictor import About, Predictor
from landfuse.extras import missing_extra
from landfuse.files import sha256_of, to_json, write_text
from landfuse.legend import UNLABELLED, Legend
from landfuse.mapping.map_extras import polygons_beside
from landfuse.mapping.map_layers import Layer
from landfuse.rasters.grid import Grid, degrees_box, footprint
from landfuse.scenes.land_cover_map import beside

if TYPE_CHECKING:
    import pystac

_EXTENSIONS = ("mlm/v1.4.0", "projection/v2.0.0", "raster/v2.0.0", "classification/v2.0.0", "file/v2.1.0")


def check_item(grid: Grid) -> None:
    """Checks that an item can be written, before the map is made.

    Raises:
        MissingExtraError: if pystac is not installed.
        GridError: if the grid cannot be placed on the globe.
    """
    _pystac()
    footprint(grid)


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
        path: of the map, which exists, as do its other layers.
        grid: of the map.
        predictor: what made it.
        bundle: its folder; hrefs are relative to the item.
        layers: the files of the map.
        taken: when the scene was taken, in UTC; by default the time at which the map was made stands in.

    Returns:
        The item's path.

    Raises:
        MissingExtraError: if pystac is not installed.
        GridError: if the grid cannot be placed on the globe.
        OutputError: if it cannot be written.
    """
    stac = _pystac()
    path = Path(path).absolute()
    place = path.with_suffix(".stac.json")
    made = datetime.fromtimestamp(path.stat().st_mtime, UTC).replace(microsecond=0)
    model = model_fields(predictor.description, predictor.about)
    item = stac.Item(
        path.stem,
        geometry=json.loads(shapely.to_geojson(footprint(grid))),
        bbox=list(degrees_box(grid)),
        datetime=taken or made,
        properties={
            "title": f"Land cover: {path.stem}",
            **_projection(grid),
            "bands": [{"name": band} for one in model["mlm:input"] for band in one["bands"]],
            **model,
            "landfuse:bundle": predictor.identity["the model"],
        },
        stac_extensions=[f"https://stac-extensions.github.io/{name}/schema.json" for name in _EXTENSIONS],
        href=str(place),
    )
    item.common_metadata.created = made
    assets = _layers(path, grid, predictor.description.legend, layers) | _further_files(path, Path(bundle).absolute())
    for name, asset in assets.items():
        item.add_asset(name, asset)
    item.make_asset_hrefs_relative()
    write_text(place, to_json(item.to_dict(include_self_link=False)))
    return place


def _pystac() -> Any:
    try:
        import pystac
    except ImportError as error:
        raise missing_extra(error) from None
    return pystac


def model_fields(known: Description, about: About) -> dict[str, Any]:
    """The fields of the Machine Learning Model extension."""
    view, core, classes = known.view, known.core, len(known.legend)
    axes, tasks = ["height", "width"], ["semantic-segmentation"]
    inputs = [
        {
            "name": name,
            "bands": [f"{name}_{band + 1}" for band in range(info.bands)],
            "input": {
                "shape": [-1, info.bands, view * info.zoom, view * info.zoom],
                "dim_order": ["batch", "bands", *axes],
                "data_type": "float32",
            },
            "description": f"in {info.units or 'the units of the file'}; the bundle standardises it",
        }
        for name, info in known.modalities.items()
    ]
    output = {
        "name": "scores",
        "tasks": tasks,
        "result": {
            "shape": [-1, classes, core, core],
            "dim_order": ["batch", "class", *axes],
            "data_type": "float32",
        },
        "description": f"logits of the core in the middle of the view; cores are {known.stride} px apart",
        "classification:classes": _classes(known.legend, list(range(classes))),
    }
    release = re.match(r"\d+\.\d+\.\d+", about.framework_version)
    return {
        "mlm:name": f"landfuse-{known.spec.name}",
        "mlm:architecture": about.architecture,
        "mlm:framework": about.framework,
        **({"mlm:framework_version": release.group()} if release else {}),
        "mlm:tasks": tasks,
        "mlm:total_parameters": about.parameters,
        "mlm:input": inputs,
        "mlm:output": [output],
    }


def _classes(legend: Legend, values: Sequence[int]) -> list[dict[str, Any]]:
    """The classes with their values: the codes of the map, or the places in the model's output."""
    found: list[dict[str, Any]] = []
    for value, one in zip(values, legend, strict=True):
        name = re.sub(r"[^0-9A-Za-z_-]+", "_", one.name).strip("_") or "class"
        if any(name == other["name"] for other in found):
            name = f"{name}_{value}"
        colour = one.colour.removeprefix("#").upper()
        found.append({"value": value, "name": name, "title": one.name, "description": one.name, "color_hint": colour})
    return found


def _projection(grid: Grid) -> dict[str, Any]:
    coded = grid.crs is not None and grid.crs.upper().startswith("EPSG:")
    return {
        "proj:code": grid.crs if coded else None,
        **({} if coded else {"proj:wkt2": pyproj.CRS.from_user_input(grid.crs).to_wkt()}),
        "proj:shape": [grid.height, grid.width],
        "proj:transform": [*map(float, grid.transform), 0.0, 0.0, 1.0],
    }


def _layers(path: Path, grid: Grid, legend: Legend, layers: Sequence[Layer]) -> dict[str, pystac.Asset]:
    stac = _pystac()
    across, down = grid.pixel_size
    fields: dict[str, Any] = {"data_type": "uint8", "nodata": UNLABELLED, "raster:sampling": "area"}
    if abs(across - down) <= 1e-9 * across:
        fields["raster:spatial_resolution"] = across
    assets = {}
    for layer in layers:
        codes = layer.values is None
        scale = {} if layer.scale == 1 else {"raster:scale": layer.scale, "raster:offset": 0.0}
        bands = {"bands": [{"name": band, **scale} for band in layer.bands]}
        classes = {"classification:classes": _classes(legend, [one.code for one in legend])} if codes else {}
        assets[layer.name or "map"] = _asset(
            beside(path, layer.name), layer.name or "land cover", stac.MediaType.COG, ["data"], fields | bands | classes
        )
    return assets


def _further_files(path: Path, bundle: Path) -> dict[str, pystac.Asset]:
    """Those of the files beside the map and of the bundle that exist."""
    weights = {"mlm:artifact_type": "onnx" if bundle.is_file() else "safetensors.torch.save_file"}
    files: dict[str, tuple[Path, str, str, list[str], dict[str, Any]]] = {
        "style": (path.with_suffix(".qml"), "style for QGIS", "application/xml", ["metadata"], {}),
        "polygons": (polygons_beside(path), "polygons", "application/geopackage+sqlite3", ["data"], {}),
        "model": (
            bundle if bundle.is_file() else bundle / "model.safetensors", "weights", "application/octet-stream",
            ["mlm:model", "mlm:weights"], weights,
        ),
        "model-description": (bundle / "model.json", "the model's settings", "application/json", ["metadata"], {}),
    }  # fmt: skip
    return {name: _asset(*file) for name, file in files.items() if file[0].exists()}


def _asset(place: Path, title: str, kind: str, roles: list[str], fields: dict[str, Any]) -> pystac.Asset:
    """A file with its size, and its SHA-256 with the prefix that multihash gives it."""
    size = {"file:size": place.stat().st_size, "file:checksum": f"1220{sha256_of(place)}"}
    return _pystac().Asset(str(place), title, media_type=kind, roles=roles, extra_fields=size | fields)
