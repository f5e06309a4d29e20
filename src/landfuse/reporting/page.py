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
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from landfuse.accuracy.bootstrap import OF_CLASS, BlockIntervals, Interval
from landfuse.accuracy.conformal import METHODS, usual_level
from landfuse.accuracy.confusion import Confusion
from landfuse.accuracy.evaluate import Tally
from landfuse.errors import MissingFileError, OutputError, SceneError, SettingsError
from landfuse.figures.figures import (
    areas_figure,
    coverage_figure,
    curves_figure,
    dark_variables,
    dissimilarity_figure,
    reliability_figure,
    svg,
)
from landfuse.figures.images import Coded, data_uris, unlike
from landfuse.files import check_replaceable, log_replaced, write_text
from landfuse.legend import UNLABELLED, Legend
from landfuse.markup import decimals, percent
from landfuse.palette import TOO_CLOSE, close_pairs
from landfuse.rasters.grid import Grid, pixel_areas
from landfuse.reporting.layers import CONFIDENCE, GREY, RIGHT_WRONG, ROLE_COLOURS, Layer, tile_layers
from landfuse.reporting.mosaic import Mosaic
from landfuse.reporting.provenance import (
    as_yaml,
    bare,
    commands,
    cost,
    data_rows,
    from_here,
    hashes,
    modality_rows,
    split_rows,
)
from landfuse.reporting.rely import answers, certificate_of, places_to_visit, unlike_training
from landfuse.reporting.scores import area_rows, cross_validation_words, findings, warnings
from landfuse.scenes.land_cover_map import ClassArea, mosaics_in, open_map
from landfuse.scenes.leaks import calibration_leak_words, polygon_leak_words
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import SceneFile
from landfuse.scenes.split_rules import TEST, Roles
from landfuse.training.recipe import merged_split
from landfuse.training.run import Run, read_run
from landfuse.training.run_tiles import Progress, find_maps, open_tiles, read_roles, scene_file_of

if TYPE_CHECKING:
    from landfuse.accuracy.certify import Certificate
    from landfuse.accuracy.estimate import AccuracyEstimate

LARGEST = 15_000_000
"""Bytes of a report, at most."""

MOST_TILES = 100
"""Tiles that a report shows, at most; the scores count all."""

MOST_ROWS = 1000
"""Tiles whose accuracy a report lists, at most: the worst."""

MOST_CLASSES = 40
"""Classes of which a report shows the whole confusion matrix, at most; above it shows the commonest mistakes."""

_REPLICATES = 2000
_ROOM = 12_000_000  # characters of pictures; the rest is for text
_OVERVIEW = 600_000  # characters of the overview's picture
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
    sample: str | Path | None = None,
    visits: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Path:
    """Writes the report of a run.

    Args:
        run: the run folder.
        output: the page; by default `report.html` in the run folder.
        maps: the map, or the folder of the tiles' maps; by default `maps` in the run folder, where missing ones are
            made.
        scene: the scene file's place, if it has moved.
        bands: modality -> the bands to show it by, from 1: three for red, green and blue, or one for grey.
        block: side of the blocks of ground that the intervals come from, px.
        sample: a reference sample that is filled in, from which accuracy and areas of the whole map are estimated, and
            a part of it is certified.
        visits: places to label next, as `landfuse next` wrote them; by default `next.gpkg` beside the scene file.
        overwrite: replace a file that is no report.
        progress: called with (what is done, done, total).

    Returns:
        The page's path.

    Raises:
        MissingFileError: if the folder is no run, the run has not ended, or its scene is not there any more.
        LandfuseError: whatever is wrong with the scene, the maps or the output.

    Examples:
        >>> lf.report("runs/first").name
        'report.html'
    """
    read = read_run(run)
    file = scene_file_of(read, scene)
    tally = Tally(file.legend, block)
    page = Path(output) if output is not None else read.folder / "report.html"
    if page.is_dir():
        raise OutputError(f"{page} is a folder", "the name of a file, e.g. report.html", "name one by -o")
    check_replaceable(page, '<meta name="generator" content="landfuse', overwrite)
    scenes, left_out = open_tiles(read, file)
    shown_by = _from_zero(bands or {}, scenes[0])
    roles = read_roles(read, file, scenes)
    paths = find_maps(read, scenes, maps, progress)
    whole = (paths[0] if len(paths) == 1 else paths[0].parent).resolve()
    scene_name, map_name = from_here(file.path, read), from_here(whole, read)
    sampled = None if sample is None else _sampled(sample, whole, file.legend)
    certificate, refusal = (None, "") if sample is None else certificate_of(whole, sample)
    next_places = file.path.parent / "next.gpkg" if visits is None else Path(visits)
    if visits is not None and not next_places.is_file():
        raise MissingFileError(f"there is no file {visits}", "places that `landfuse next` wrote", "check the path")
    tiles, areas, overview, rely = _tiles(
        read, scenes, roles, paths, tally, shown_by, certificate, next_places, progress
    )
    pixels = sum(scene.grid.window.pixels for scene in scenes)
    # Errors of the folds' models say nothing exact of this map's areas.
    rows = area_rows(Tally(file.legend, block) if read.cross_validated else tally, areas, _REPLICATES, sampled)
    context = {
        **_scores(read, tally, left_out),
        "areas": rows,
        "sampled": sampled,
        "cross_validated": bool(read.cross_validated),
        "corrected": not math.isnan(rows[0]["corrected"].value),
        "area_chart": svg(areas_figure(rows), "chart-areas"),
        "unmapped": pixels - sum(one.pixels for of_tile in areas for one in of_tile.values()),
        **_curves(read),
        **_sets(read),
        **_applicability(read),
        **_origin(read, file, scenes, roles),
        "tiles": tiles,
        "kept": [{**tiles[0], "layers": [{**layer, "uri": ""} for layer in tiles[0]["layers"]]}, *tiles[1:]],
        "all_tiles": len(scenes),
        "overview": overview,
        "rely": rely,
        "answers": answers(
            read,
            tally.confusion,
            sampled,
            certificate,
            refusal,
            unlike_training(paths),
            rely["visits"],
            scene_name,
            map_name,
            maps is not None,
            scenes[0].name if len(mosaics_in(whole)) > 1 else "",
        ),
        "commands": commands(read, scene_name, map_name, block, with_maps=maps is not None, sample=sample),
    }
    log_replaced([page])
    write_text(page, _rendered(context))
    return page


def _sampled(sample: str | Path, whole: Path, legend: Legend) -> AccuracyEstimate:
    """What a reference sample says of the map."""
    from landfuse.accuracy.from_sample import evaluate_sample  # imports scipy.stats, which is slow

    found = evaluate_sample(whole, sample)
    unknown = set(legend.names) - {c.name for c in found.classes}
    if unknown:
        raise SceneError(
            f"the sample {sample} and the map have no class {', '.join(sorted(unknown))}",
            "a sample of the run's map",
            "draw one by `landfuse sample`",
        )
    return found


def _from_zero(bands: Mapping[str, Sequence[int]], scene: Scene) -> dict[str, list[int]]:
    unknown = [name for name in bands if name not in scene.modalities]
    if unknown:
        raise SettingsError(
            f"there is no modality {', '.join(unknown)} whose bands could be shown",
            ", ".join(scene.modalities),
            "correct --bands",
        )
    return {name: [band - 1 for band in chosen] for name, chosen in bands.items()}


def _shown(roles: Sequence[Roles]) -> list[int]:
    """Which tiles are shown: at most `MOST_TILES`, first those that hold test labels."""
    tested = [index for index, role in enumerate(roles) if (role == TEST).any()]
    others = [index for index in range(len(roles)) if index not in set(tested)]
    return sorted([*tested, *others][:MOST_TILES])


def _in_order(tiles: Sequence[dict[str, Any]], classes: Mapping[str, int]) -> list[dict[str, Any]]:
    """First the tested tile of most classes, since one of a single class shows nothing; then the others tested."""
    first = max(tiles, key=lambda tile: (tile["tested"], classes[tile["name"]]))
    return sorted(tiles, key=lambda tile: (tile is not first, not tile["tested"]))


def _tiles(
    run: Run,
    scenes: Sequence[Scene],
    roles: Sequence[Roles],
    paths: Sequence[Path],
    tally: Tally,
    bands: Mapping[str, Sequence[int]],
    certificate: Certificate | None,
    next_places: Path,
    progress: Progress,
) -> tuple[list[dict[str, Any]], list[dict[str, ClassArea]], dict[str, Any], dict[str, Any]]:
    """Counts every tile; returns those that are shown with their layers, the areas of all, an overview, and a picture
    of what can be relied on."""
    shown = _shown(roles)
    count = len(shown) * (5 + len(scenes[0].modalities))
    side = int(np.clip(math.sqrt(_ROOM * 0.75 / (count * _BYTES_PER_PIXEL)), _COARSEST, _FINEST))
    room = _ROOM
    tiles: list[dict[str, Any]] = []
    areas, accuracies, classes = [], [], dict[str, int]()
    mosaic, zone = (Mosaic([scene.grid for scene in scenes]) for _ in range(2))
    promised = certificate.zone if certificate is not None else None
    certified = promised is not None and promised.fraction < 1  # else nothing is left out
    for index, (scene, role, path) in enumerate(zip(scenes, roles, paths, strict=True)):
        progress("reading tiles", index, len(scenes))
        opened = open_map(path, scene)
        truth = np.where(role == TEST, scene.labels, UNLABELLED).astype(np.uint8)
        scored = opened.classes
        if run.cross_validated:
            truth = scene.labels
            scored = open_map(run.folder / "cross_validation" / f"{scene.name}.tif", scene).classes
        own, on_ground = tally.add(truth, scored), pixel_areas(scene.grid)
        areas.append(opened.areas())
        accuracies.append((own.overall_accuracy, own.pixels))
        mosaic.put(index, opened.classes)
        inside = certificate.of(opened) if certificate is not None and certified else None
        zone.put(index, opened.classes if inside is None else np.where(inside == 0, len(tally.legend), opened.classes))
        classes[scene.name] = len(np.unique(opened.classes))
        if index not in shown:
            continue
        layers = tile_layers(scene, tally.legend, opened.classes, role, path, run.modalities, side, bands, inside)
        uris = data_uris([layer.picture for layer in layers], room // (len(shown) - len(tiles)))
        room -= sum(map(len, uris))
        tiles.append(
            {
                "name": scene.name,
                "tested": bool(own.pixels),
                "words": _tile_words(scene.grid, own),
                "height": scene.grid.height,
                "width": scene.grid.width,
                "transform": list(scene.grid.transform) if scene.grid.georeferenced else None,
                "metres": on_ground and on_ground.side,
                "layers": [_layer(layer, uri) for layer, uri in zip(layers, uris, strict=True)],
            }
        )
    progress("reading tiles", len(scenes), len(scenes))
    tiles = _in_order(tiles, classes)
    at = {tile["name"]: number for number, tile in enumerate(tiles)}
    rows: list[dict[str, Any]] = [
        {"name": scene.name, "accuracy": accuracy, "pixels": pixels, "at": at.get(scene.name), "place": place}
        for scene, (accuracy, pixels), place in zip(scenes, accuracies, mosaic.places(), strict=True)
    ]
    colours = [c.rgb for c in tally.legend]
    picture = Coded(mosaic.values, unlike(colours))
    visits = places_to_visit(next_places, scenes, zone.at)
    rely = {
        "certified": certified,
        "visits": visits,
        "uri": data_uris([Coded(zone.values, unlike([*colours, GREY]))], _OVERVIEW)[0] if certified or visits else "",
        "ratio": zone.values.shape[1] / zone.values.shape[0],
    }
    overview = {
        "uri": data_uris([picture], _OVERVIEW)[0],
        "ratio": mosaic.values.shape[1] / mosaic.values.shape[0],
        "on_ground": mosaic.on_ground,
        "rows": rows,
        "tested": sorted((row for row in rows if row["pixels"]), key=lambda row: row["accuracy"]),
    }
    return tiles, areas, overview, rely


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


def _tile_words(grid: Grid, own: Confusion) -> str:
    if not own.pixels:
        return f"{grid}; no test label on this tile."
    return f"{grid}; OA {decimals(own.overall_accuracy)} on {own.pixels:,} test px."


def _scores(run: Run, tally: Tally, left_out: Sequence[str]) -> dict[str, Any]:
    """The accuracy of the map, as numbers and sentences."""
    reach = (run.scores.get("pretrain") or {}).get("reach", 0)
    legend, confusion, leak = tally.legend, tally.confusion, run.scores.get("leak_fraction")
    intervals = tally.intervals(_REPLICATES if len(tally.blocks) > 1 else 0)
    return {
        "findings": findings(confusion, intervals, legend, leak, run.cross_validated, reach),
        "warnings": [
            *cross_validation_words(run.cross_validated),
            *warnings(confusion, intervals, run.scores),
            *polygon_leak_words(run.scores.get("polygon_leak_fraction")),
            *calibration_leak_words(run.calibration_leak),
            *left_out,
        ],
        "overall": intervals.scores,
        "blocks": intervals.blocks if intervals.replicates else None,
        "block": tally.block,
        "legend_close": _close(legend),
        "too_close": TOO_CLOSE,
        "matrix": _matrix(confusion, legend),
        "classes": _class_rows(tally, intervals),
        "of_class": OF_CLASS,
        "unscored": [c.name for c in legend if not c.scored],
        "leak": leak,
    }


def _curves(run: Run) -> dict[str, Any]:
    """The pictures of training and of calibration, as SVG."""
    history, calibration = run.history, run.scores.get("calibration") or {}
    names = {name.startswith("val_") for row in history for name in row if name != "epoch"}
    figures = {
        kind: curves_figure(history, run.scores.get("epoch"), (kind,))
        for kind, there in (("loss", False in names), ("score", True in names))
        if there
    }
    measured = calibration.get("test") or {}
    reliability = {
        key: reliability_figure({title: measured[key]})
        for key, title in (("before", "As trained"), ("after", "In the bundle"))
        if measured.get(key) and measured[key].get("ECE") is not None
    }
    titles = [title for title, there in (("Training curves", figures), ("Calibration", reliability)) if there]
    return {
        "curves_title": " and ".join(titles).replace("and C", "and c"),
        "charts": [svg(figure, f"chart-{name}") for name, figure in figures.items()],
        "reliability": [svg(figure, f"chart-{name}") for name, figure in reliability.items()],
        "temperature": calibration.get("temperature") if calibration.get("fitted_on") else None,
        "fitted_on": calibration.get("fitted_on"),
    }


def _sets(run: Run) -> dict[str, Any]:
    """Coverage and sizes of class sets on the test blocks, where the run has some."""
    sets: dict[str, Any] = run.scores.get("sets") or {"test": {"levels": {}}}
    levels = sets["test"]["levels"]
    usual = levels.get(METHODS[0])
    if not usual:
        return {"sets": None}
    middle = usual_level(usual)
    worst = {name: min(v for v in of[middle]["classes"].values() if v is not None) for name, of in levels.items()}
    return {
        "sets": sets,
        "set_levels": usual,
        "set_middle": middle,
        "set_methods": {name: {**of[middle], "worst_class": worst[name]} for name, of in levels.items()},
        "set_chart": svg(coverage_figure(sets["test"]["curve"]), "chart-sets"),
    }


def _applicability(run: Run) -> dict[str, Any]:
    """Errors on the test by dissimilarity to the training pixels, where the run knows them."""
    found = (run.scores.get("applicability") or {}).get("test")
    chart = (
        found and found["together"]["pixels"] and svg(dissimilarity_figure(found["together"]), "chart-applicability")
    )
    return {"applicability": found or {}, "applicability_chart": chart or ""}


def _origin(run: Run, file: SceneFile, scenes: Sequence[Scene], roles: Sequence[Roles]) -> dict[str, Any]:
    """Where the map comes from: data, split, recipe, versions and cost."""
    withheld = modality_rows(run.withheld) if run.withheld else []
    rule = merged_split(file.settings.split, run.recipe.get("split"))
    return {
        "title": file.settings.title or file.settings.name,
        "run": run.folder.resolve().name,
        "model": run.bundle["model"]["name"],
        "used": run.modalities,
        "split": split_rows(scenes, roles, file.legend),
        "split_rule": "" if rule is None else as_yaml(rule.model_dump(mode="json")),
        "tiling": run.bundle.get("tiling", {}),
        "withheld": withheld,
        "withheld_known": any(one is not None and one.known for row in withheld for _, one in row["scores"].values()),
        "withheld_notes": [bare(note) for note in (run.withheld or {}).get("notes", [])],
        "data": data_rows(run, file, scenes),
        "settings": file.settings,
        "scene_path": file.path.name,
        "recipe": as_yaml(run.recipe),
        "hashes": hashes(run),
        "versions": {name: value for name, value in run.environment.items() if name != "command"},
        "cost": cost(run),
    }


def _rendered(context: Mapping[str, Any]) -> str:
    template = files("landfuse.reporting") / "template"
    script = (template / "report.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("landfuse.reporting", "template"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"decimals": decimals, "percent": percent, "hex": _hex, "short": _short}
    return environment.get_template("report.html").render(
        **context,
        style=(template / "report.css").read_text(encoding="utf-8"),
        dark=dark_variables(),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
        right_wrong=RIGHT_WRONG,
        role_colours=ROLE_COLOURS,
        decimals=decimals,
        percent=percent,
        most_rows=MOST_ROWS,
        ramp=CONFIDENCE[::5],
        made=datetime.date.today().isoformat(),
        version=version("landfuse"),
    )


def _close(legend: Legend) -> list[dict[str, Any]]:
    return [
        {"first": legend[p.first], "second": legend[p.second], "vision": p.vision, "distance": p.distance}
        for p in close_pairs([c.rgb for c in legend])
    ]


def _matrix(confusion: Confusion, legend: Legend) -> dict[str, Any]:
    counts = confusion.matrix
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(wrong, axis=None)[::-1][:MOST_CLASSES]
    mistakes = [
        {
            "truth": legend[int(t)],
            "mapped": legend[int(p)],
            "pixels": int(counts[t, p]),
            "fraction": float(fractions[t, p]),
        }
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
                "cells": list(zip(counts[t].tolist(), fractions[t].tolist(), strict=True)),
            }
            for t in range(len(legend) if whole else 0)
        ],
        "mistakes": mistakes,
        "predicted": confusion.predicted.tolist(),
        "unmapped": confusion.unmapped,
    }


def _class_rows(tally: Tally, intervals: BlockIntervals) -> list[dict[str, Any]]:
    blocks = (tally.blocks.sum(axis=2) > 0).sum(axis=0)  # that hold the class
    return [
        {
            "class": c,
            "support": int(tally.confusion.support[k]),
            "blocks": int(blocks[k]),
            "scores": {
                name: values[k] if blocks[k] > 1 else Interval(values[k].value, math.nan, math.nan)
                for name, values in intervals.of_class.items()
            },
        }
        for k, c in enumerate(tally.legend)
    ]


def _hex(colour: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _short(value: float) -> str:
    """A number of hectares or the like: three digits, but never less than whole ones."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
