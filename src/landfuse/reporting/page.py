"""The report: one HTML file that shows a run's map, how good it is, and where it came from.

The page needs nothing but itself: no network, no other file. It stays below `LARGEST` bytes whatever the scene's size.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from landfuse.accuracy.bootstrap import Interval
from landfuse.errors import OutputError, SettingsError
from landfuse.files import write_text
from landfuse.legend import UNLABELLED, Legend
from landfuse.palette import TOO_CLOSE, close_pairs
from landfuse.rasters.grid import Grid
from landfuse.reporting.charts import HEIGHT, WIDTH, reliability_chart, training_charts
from landfuse.reporting.images import data_uris
from landfuse.reporting.layers import CONFIDENCE, RIGHT_WRONG, ROLE_COLOURS, Layer, tile_layers
from landfuse.reporting.provenance import (
    commands,
    cost,
    data_rows,
    modality_rows,
    recipe_words,
    split_rows,
    split_words,
    versions,
)
from landfuse.reporting.scores import OF_CLASS, MapScores, Tally, area_rows, findings, warnings
from landfuse.reporting.tiles import Progress, Run, find_maps, open_tiles, read_roles, read_run
from landfuse.scenes.land_cover_map import open_map, pixel_area
from landfuse.scenes.scene import Scene
from landfuse.scenes.split_rules import TEST, Roles

LARGEST = 15_000_000
"""Bytes of a report, at most."""

MOST_TILES = 100
"""Tiles that a report shows, at most; the scores count all."""

MOST_CLASSES = 40
"""Classes of which a report shows the whole confusion matrix, at most; above it shows the commonest mistakes."""

_ROOM = 12_000_000  # characters of pictures; the rest is for text
_FINEST, _COARSEST = 1400, 64  # pixels along the longer side of a picture
_BYTES_PER_PIXEL = 0.5  # of a picture, about


def report(
    run: str | Path,
    output: str | Path | None = None,
    *,
    maps: str | Path | None = None,
    scene: str | Path | None = None,
    bands: Mapping[str, Sequence[int]] | None = None,
    block: int = 64,
    progress: Progress = lambda what, done, total: None,
) -> Path:
    """Writes the report of a run.

    Args:
        run: the run folder.
        output: the page; by default `report.html` in the run folder.
        maps: the map, or the folder of the tiles' maps; by default `maps` in the run folder, where missing ones are
            made.
        scene: where the scene file lies now, if it has moved.
        bands: modality -> the bands to show it by, from 1: three for red, green and blue, or one for grey.
        block: side of the blocks of ground that the intervals come from, px.
        progress: told (what is done, done, total).

    Returns:
        The page's path.

    Raises:
        MissingFileError: if the folder is no run, the run has not ended, or its scene is not there any more.
        LandfuseError: whatever is wrong with the scene, the maps or the output.
    """
    if block < 1:
        raise SettingsError(f"blocks of {block} px", "a side of at least 1 px", "mend --block")
    read = read_run(run, scene)
    page = Path(output) if output is not None else read.folder / "report.html"
    if page.is_dir():
        raise OutputError(f"{page} is a folder", "the name of a file, e.g. report.html", "name one by -o")
    scenes, left_out = open_tiles(read)
    shown_by = _from_zero(bands or {}, scenes[0])
    roles = read_roles(read, scenes)
    paths = find_maps(read, scenes, maps, progress)
    tally = Tally(read.legend, block)
    tiles = _tiles(read, scenes, roles, paths, tally, shown_by, progress)
    text = _page(read, scenes, roles, tally, tiles, left_out, maps)
    write_text(page, text)
    return page


def _from_zero(bands: Mapping[str, Sequence[int]], scene: Scene) -> dict[str, list[int]]:
    unknown = [name for name in bands if name not in scene.modalities]
    if unknown:
        raise SettingsError(
            f"there is no modality {', '.join(unknown)} whose bands could be shown",
            ", ".join(scene.modalities),
            "mend --bands",
        )
    return {name: [band - 1 for band in chosen] for name, chosen in bands.items()}


def _shown(roles: Sequence[Roles]) -> list[int]:
    """Which tiles are shown: at most `MOST_TILES`, first those that hold test labels."""
    tested = [index for index, role in enumerate(roles) if (role == TEST).any()]
    others = [index for index in range(len(roles)) if index not in set(tested)]
    return sorted([*tested, *others][:MOST_TILES])


def _tiles(
    run: Run,
    scenes: Sequence[Scene],
    roles: Sequence[Roles],
    paths: Sequence[Path],
    tally: Tally,
    bands: Mapping[str, Sequence[int]],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Counts every tile, and gives those that are shown with their layers."""
    shown = _shown(roles)
    count = len(shown) * (5 + len(scenes[0].modalities))
    side = int(np.clip(math.sqrt(_ROOM * 0.75 / (count * _BYTES_PER_PIXEL)), _COARSEST, _FINEST))
    room = _ROOM
    tiles: list[dict[str, Any]] = []
    for index, (scene, role, path) in enumerate(zip(scenes, roles, paths, strict=True)):
        progress("reading tiles", index, len(scenes))
        mapped = open_map(path, scene).classes
        truth = np.where(role == TEST, scene.labels, UNLABELLED).astype(np.uint8)
        accuracy, pixels, _ = tally.add(truth, mapped, pixel_area(scene.grid))
        if index not in shown:
            continue
        layers = tile_layers(scene, run.legend, mapped, role, path, run.used, side, bands)
        uris = data_uris([layer.picture for layer in layers], room // (len(shown) - len(tiles)))
        room -= sum(map(len, uris))
        tiles.append(
            {
                "name": scene.name,
                "tested": bool(pixels),
                "words": _tile_words(scene.grid, accuracy, pixels),
                "height": scene.grid.height,
                "width": scene.grid.width,
                "transform": list(scene.grid.transform) if scene.grid.georeferenced else None,
                "metres": None if (area := pixel_area(scene.grid)) is None else math.sqrt(area),
                "layers": [_layer(layer, uri) for layer, uri in zip(layers, uris, strict=True)],
            }
        )
    progress("reading tiles", len(scenes), len(scenes))
    return sorted(tiles, key=lambda tile: not tile["tested"])


def _layer(layer: Layer, uri: str) -> dict[str, Any]:
    colours = getattr(layer.picture, "colours", ())
    return {
        "key": layer.key,
        "title": layer.title,
        "how": layer.how,
        "sparse": layer.sparse,
        "classes": layer.classes,
        "names": {"#{:02x}{:02x}{:02x}".format(*c): name for c, name in zip(colours, layer.names, strict=False)},
        "uri": uri,
    }


def _without_pictures(tile: Mapping[str, Any]) -> dict[str, Any]:
    """A tile whose pictures stand elsewhere in the page."""
    return {**tile, "layers": [{**layer, "uri": ""} for layer in tile["layers"]]}


def _tile_words(grid: Grid, accuracy: float, pixels: int) -> str:
    tested = "no test label on this tile" if not pixels else f"OA {accuracy:.3f} on {pixels:,} test px"
    return f"{grid}; {tested}."


def _page(
    run: Run,
    scenes: Sequence[Scene],
    roles: Sequence[Roles],
    tally: Tally,
    tiles: Sequence[Mapping[str, Any]],
    left_out: Sequence[str],
    maps: str | Path | None,
) -> str:
    scores, legend = tally.scores(), run.legend
    leak = run.scores.get("leak_share")
    tiling = run.bundle.get("tiling", {})
    calibration = run.scores.get("calibration") or {}
    template = files("landfuse.reporting") / "template"
    script = (template / "report.js").read_text(encoding="utf-8")
    settings = run.file.settings
    context = {
        "title": settings.title or settings.name,
        "run": run.folder.resolve().name,
        "model": run.bundle["model"]["name"],
        "used": run.used,
        "style": (template / "report.css").read_text(encoding="utf-8"),
        "script": script,
        "script_hash": base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
        "findings": findings(scores, legend, leak),
        "warnings": [*warnings(scores, run.scores["test"]), *left_out],
        "overall": scores.overall,
        "blocks": scores.intervals.blocks if scores.intervals else None,
        "block": tally.block,
        "tiles": list(tiles),
        "kept": [_without_pictures(tiles[0]), *tiles[1:]],
        "all_tiles": len(scenes),
        "areas": area_rows(tally, legend),
        "unmapped": tally.unmapped,
        "legend_close": _close(legend),
        "too_close": TOO_CLOSE,
        "right_wrong": RIGHT_WRONG,
        "role_colours": ROLE_COLOURS,
        "ramp": CONFIDENCE[::5],
        "matrix": _matrix(scores, legend),
        "classes": _class_rows(scores, legend),
        "of_class": OF_CLASS,
        "unscored": [c.name for c in legend if not c.scored],
        "charts": training_charts(run.history, run.scores.get("epoch")),
        "reliability": reliability_chart(calibration),
        "temperature": calibration.get("temperature") if calibration.get("fitted_on") else None,
        "chart_size": (WIDTH, HEIGHT),
        "split": split_rows(scenes, roles, legend),
        "split_rule": split_words(run),
        "leak": leak,
        "tiling": tiling,
        "withheld": modality_rows(run.withheld) if run.withheld else [],
        "withheld_notes": (run.withheld or {}).get("notes", []),
        "data": data_rows(run, scenes),
        "settings": settings,
        "scene_path": run.file.path,
        "recipe": recipe_words(run),
        "hashes": run.hashes(),
        "versions": versions(run),
        "cost": cost(run),
        "commands": commands(run, maps, tally.block),
        "made": datetime.date.today().isoformat(),
        "version": version("landfuse"),
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("landfuse.reporting", "template"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"share": _share, "bounds": _bounds, "hex": _hex, "short": _short}
    return environment.get_template("report.html").render(context)


def _close(legend: Legend) -> list[dict[str, Any]]:
    return [
        {"first": legend[p.first], "second": legend[p.second], "vision": p.vision, "distance": p.distance}
        for p in close_pairs([c.rgb for c in legend])
    ]


def _matrix(scores: MapScores, legend: Legend) -> dict[str, Any]:
    confusion = scores.confusion
    counts = confusion.matrix
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(wrong, axis=None)[::-1][:MOST_CLASSES]
    mistakes = [
        {"truth": legend[int(t)], "mapped": legend[int(p)], "pixels": int(counts[t, p]), "share": float(shares[t, p])}
        for t, p in zip(*np.unravel_index(order, counts.shape), strict=True)
        if counts[t, p] and t != p
    ]
    whole = len(legend) <= MOST_CLASSES
    return {
        "names": legend.names if whole else [],
        "rows": [
            {
                "class": legend[t],
                "support": int(counts[t].sum()),
                "cells": [(int(n), float(s)) for n, s in zip(counts[t], shares[t], strict=True)],
            }
            for t in range(len(legend) if whole else 0)
        ],
        "mistakes": mistakes,
        "predicted": confusion.predicted.tolist(),
        "unmapped": confusion.unmapped,
    }


def _class_rows(scores: MapScores, legend: Legend) -> list[dict[str, Any]]:
    return [
        {
            "class": c,
            "support": int(scores.confusion.support[k]),
            "scores": {n: scores.of_class[n][k] for n in OF_CLASS},
        }
        for k, c in enumerate(legend)
    ]


def _share(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _bounds(one: Interval) -> str:
    return "no interval" if math.isnan(one.low) else f"{one.low:.3f} to {one.high:.3f}"


def _hex(colour: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _short(value: float) -> str:
    """A number of hectares or the like: three digits, but never less than whole ones."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
