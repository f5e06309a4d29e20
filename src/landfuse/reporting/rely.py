"""The page's answers to "Can I rely on it?", for a reader who knows no statistics."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj

from landfuse.accuracy.conformal import usual_level
from landfuse.accuracy.confusion import Confusion
from landfuse.errors import LandfuseError, SceneError
from landfuse.legend import UNLABELLED
from landfuse.rasters.polygons import read_rows
from landfuse.reporting.provenance import bare, from_here
from landfuse.scenes.land_cover_map import beside, layer_of, open_map
from landfuse.scenes.leaks import onto_crs
from landfuse.scenes.scene import Scene
from landfuse.training.run import Run

if TYPE_CHECKING:
    from landfuse.accuracy.certify import Certificate
    from landfuse.accuracy.estimate import AccuracyEstimate

ERROR, CONFIDENCE = 0.1, 0.95
"""What the page certifies, unless `landfuse certify` was asked for something else beside the map."""

_MANY = 20
"""Blocks below which class sets of 0.9 are clearly larger than they would have to be."""

_LISTED = 8
"""Places to visit that are listed."""


def of_100(fraction: float) -> str:
    """A fraction as so many of 100: `87 of 100`, `fewer than 1 of 100`."""
    if 0 < fraction < 0.005:
        return "fewer than 1 of 100"
    if 0.995 <= fraction < 1:
        return "more than 99 of 100"
    return f"{round(100 * fraction)} of 100"


def certificate_of(map_path: Path, sample: str | Path) -> tuple[Certificate | None, str]:
    """What a sample certifies of the map, at the rate that `landfuse certify` was asked for; or why it cannot."""
    from landfuse.accuracy.certify import certify  # imports scipy.stats, which is slow

    asked: dict[str, Any] = {"error": ERROR, "confidence": CONFIDENCE, "by": "confidence"}
    written = beside(open_map(map_path).path, "certified").with_suffix(".json")
    with suppress(OSError, ValueError):
        values = json.loads(written.read_text(encoding="utf-8"))
        asked = {name: values[name] for name in asked} if "landfuse_certified" in values else asked
    try:
        return certify(map_path, sample, **asked), ""
    except LandfuseError as error:
        return None, bare(f"{error.found}; {error.do}" if error.do else error.found)


def unlike_training(paths: Sequence[Path]) -> float | None:
    """The fraction of the maps' pixels that are unlike the training pixels; None where the layer was not written."""
    if not all(beside(path, "applicability").is_file() for path in paths):
        return None
    counts, limit = np.zeros(256, np.int64), UNLABELLED
    for tile in map(open_map, paths):
        layer = layer_of(tile, "applicability")
        limit = round(1 / (layer.raster.stored[0][3] or 1.0))
        levels = layer.codes(tile.grid.window)[tile.codes(tile.grid.window) != UNLABELLED]
        counts += np.bincount(levels, minlength=256)
    known = counts[:UNLABELLED].sum()
    return float(counts[limit + 1 : UNLABELLED].sum() / known) if known else None


def answers(
    run: Run,
    scores: Confusion,
    sampled: AccuracyEstimate | None,
    certificate: Certificate | None,
    refusal: str,
    unlike: float | None,
    visits: Mapping[str, Any] | None,
    scene: str,
    maps: str,
    others: bool,
    tile: str = "",
) -> list[dict[str, Any]]:
    """Question, sentences, and a command where something is missing: each as a dictionary.

    Args:
        scores: on the test labels.
        sampled: what the reference sample says of the whole map.
        certificate: what it certifies.
        refusal: why it certifies nothing.
        unlike: see `unlike_training`.
        visits: see `places_to_visit`.
        scene: the scene file, for commands.
        maps: the map, or the folder of the maps, for commands.
        others: whether these are not in the run folder.
        tile: one of them, where they have several coordinate systems and commands take one map at a time.
    """
    name = from_here(run.folder, run)
    one = f"{maps}/{tile}.tif" if tile else maps
    asked = ["report", name, *(["--maps", maps] if others else []), "--sample", "sample.gpkg"]
    return [
        _right(scores, sampled, one),
        _zone(certificate, refusal, sampled is not None, ["certify", one, "sample.gpkg"] if tile else asked),
        _sets(run, name, scene, maps),
        _known_ground(run, unlike, name, scene, maps),
        _visit(visits, name, scene, ["--tile", tile] if tile else []),
    ]


def _answer(question: str, said: Sequence[str], *command: str) -> dict[str, Any]:
    return {"question": question, "said": list(said), "command": shlex.join(command), "rows": []}


def _right(scores: Confusion, sampled: AccuracyEstimate | None, maps: str) -> dict[str, Any]:
    question = "How much of the map is right?"
    if sampled is not None:
        one = sampled.overall
        words = (
            f"About {of_100(one.value)} pixels of the whole map are right, judged by {sampled.points:,} places "
            f"drawn at random and looked at (95% interval: {100 * one.low:.0f} to {100 * one.high:.0f} of 100)."
        )
        return _answer(question, [words])
    found = ["Nobody has checked the whole map: draw places at random, look at them, and add them to this page."]
    if scores.pixels:
        words = f"About {of_100(scores.overall_accuracy)} labelled pixels that were kept for the test are right."
        found.insert(0, words)
    return _answer(question, found, "landfuse", "sample", maps, "-n", "500", "--design", "simple", "-o", "sample.gpkg")


def _zone(certificate: Certificate | None, refusal: str, sampled: bool, command: Sequence[str]) -> dict[str, Any]:
    question = "Which part can I use as it is?"
    if not sampled:
        words = "Not known: places that were looked at all over the map show which part is right often enough."
        return _answer(question, [words], "landfuse", *command)
    if certificate is None:
        return _answer(question, [f"No part can be certified: {refusal}."])
    promise = f"at most {100 * certificate.error:g} of 100 pixels are wrong"
    zone = certificate.zone
    if zone is not None:
        area = "" if zone.hectares is None else f", {zone.hectares:,.0f} hectares"
        part = "The whole map"
        if zone.fraction < 1:
            part = f"The coloured part of the picture, {of_100(zone.fraction)} pixels of the map"
        words = f"{part}{area}: in it {promise}, with a confidence of {100 * certificate.confidence:g}%."
        more = (
            f"{zone.points:,} places in it were looked at, {zone.errors:,} of them wrong."
            + " Grey ground may be right too, but not as surely." * (zone.fraction < 1)
            + " The promise is about the part as a whole, not about each field in it."
        )
        return _answer(question, [words, more])
    last = certificate.zones[-1]
    more = (
        "More places would not help: the map is wrong too often even where it is surest."
        if certificate.more is None
        else f"About {certificate.more:,} more places would do, if they are wrong as often."
    )
    found = f"{last.errors:,} of {last.points:,} places that were looked at are wrong"
    words = f"There is no part of which the sample shows that {promise}: {found}."
    return _answer(question, [words, more])


def _sets(run: Run, name: str, scene: str, maps: str) -> dict[str, Any]:
    question = "Where does the model hesitate?"
    test = (run.scores.get("sets") or {}).get("test") or {}
    levels = test.get("levels", {}).get("lac") or {}
    if not levels:
        words = "Not known: with blocks of labels set aside, the model can also name every class that a pixel may have."
        return {
            **_answer(question, [words]),
            "command": "split: {calibration: 0.3}  # in the scene file; then train again",
        }
    level = usual_level(levels)
    one, blocks = levels[level], run.scores["sets"].get("blocks", _MANY)
    few = f" It names more than it would have to, since only {blocks} blocks were set aside." if blocks < _MANY else ""
    return _answer(
        question,
        [
            f"Asked for every class that a pixel may have, it names a single one for {of_100(one['one_class'])} test "
            f"pixels, and {one['mean_size']:.1f} on average.{few}",
            f"The true class should be among them for {of_100(float(level))} pixels; in the test it was for "
            f"{of_100(one['coverage'])}. A layer of the map shows where it names more than one.",
        ],
        *("landfuse", "predict", name, scene, "-o", maps, "--sets", level),
    )


def _known_ground(run: Run, unlike: float | None, name: str, scene: str, maps: str) -> dict[str, Any]:
    question = "Does the model know this ground?"
    test = ((run.scores.get("applicability") or {}).get("test") or {}).get("together") or {}
    found = []
    if unlike is not None:
        words = "unlike any ground that the model has learned from; no score on this page holds there"
        found.append(f"{of_100(unlike).capitalize()} pixels of the map are {words}.")
    if test.get("inside") is not None:
        words = f"{of_100(test['inside']).capitalize()} test pixels are like ground that it has learned from"
        if test.get("error_inside") is not None:
            words += f"; of these {of_100(test['error_inside'])} are wrong"
        if test.get("error_outside") is not None:
            words += f", and of the others {of_100(test['error_outside'])}"
        found.append(words + ".")
    if unlike is not None:
        return _answer(question, found)
    found.append("A layer of the map can show which ground is unlike it.")
    return _answer(question, found, "landfuse", "predict", name, scene, "-o", maps, "--confidence", "--applicability")


def _visit(visits: Mapping[str, Any] | None, run: str, scene: str, tile: Sequence[str]) -> dict[str, Any]:
    question = "What should be visited next?"
    if visits is None:
        words = "Places where a look would teach the model most, and some at random to check the map by, can be drawn."
        return _answer(question, [words], "landfuse", "next", run, scene, *tile, "-n", "50")
    listed = visits["rows"][:_LISTED]
    first = f"; the first {len(listed)}" if len(listed) < visits["count"] else ""
    words = f"{visits['count']:,} places, the dots in the picture, are in {visits['file']}{first}:"
    return {**_answer(question, [words]), "rows": listed}


def places_to_visit(path: Path, scenes: Sequence[Scene], place: Any) -> dict[str, Any] | None:
    """The places of a file of `landfuse next` that lie in the tiles.

    Args:
        path: of the file; None is returned where there is none.
        place: (tile, row, column, the tile's shape) -> the place in the picture, in percent.
    """
    if not path.is_file():
        return None
    rows = []
    for row in read_rows(path):
        try:
            at = [float(row.get(axis) or "nan") for axis in "xy"]
        except ValueError:
            raise SceneError(
                f"{path} holds a place at {row.get('x')}, {row.get('y')}", "numbers as x and y", "correct the row"
            ) from None
        crs = row.get("crs") or scenes[0].grid.crs  # which places to train by are given in
        for index, scene in enumerate(scenes):
            grid = scene.grid
            try:
                there = np.array(onto_crs(crs, grid.crs, *at) if crs and grid.crs else at)
            except pyproj.exceptions.CRSError:
                raise SceneError(
                    f"{path} names the CRS {crs}", "one that PROJ knows", "correct the column `crs`"
                ) from None
            if not np.isfinite(there).all():
                continue
            line, col = grid.pixels(*there)
            if 0 <= col < grid.width and 0 <= line < grid.height:
                where = place(index, line + 0.5, col + 0.5, (grid.height, grid.width))
                rows.append({"map_class": "", "map_code": "", "why": "", **row, "tile": scene.name, "place": where})
                break
    if not rows:
        return None
    chosen = sorted(rows, key=lambda row: row.get("part") == "judge")
    return {"count": len(rows), "file": path.name, "rows": chosen, "dots": [row["place"] for row in rows]}
