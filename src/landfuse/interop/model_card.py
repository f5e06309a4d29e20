"""The card of a model: what it is, which data it takes, how good it is, and its limits; Markdown for the Hub."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import yaml

from landfuse.accuracy.bootstrap import SCORES, Interval
from landfuse.bundles.model_files import ModelFile
from landfuse.errors import LandfuseError, few
from landfuse.markup import decimals, percent
from landfuse.models.pixel_tables import TABLES
from landfuse.reporting.provenance import bare
from landfuse.reporting.scores import calibration_words, leak_words
from landfuse.scenes.leaks import calibration_leak_words, polygon_leak_words
from landfuse.scenes.scene_file import read_scene_file
from landfuse.scenes.scene_keys import SceneSettings
from landfuse.training.run import Run

_METRICS = {"OA": "accuracy", "AA": "balanced_accuracy", "kappa": "cohen_kappa", "mF1": "f1", "mIoU": "mean_iou"}
"""Score -> the Hub's name of the metric."""

_NAMES = {
    "OA": "overall accuracy (OA)",
    "AA": "mean recall (AA)",
    "kappa": "kappa",
    "mF1": "mean F1",
    "mIoU": "mean IoU",
}

_FEW_PIXELS, _FEW_BLOCKS = 100, 30
"""Test pixels of a class, and blocks of ground, below which a score says little."""


def model_card(repository: str, known: ModelFile, files: Sequence[str], licence: str, run: Run | None) -> str:
    """Writes the card.

    Args:
        repository: `owner/name`.
        known: what the bundle or ONNX file says of itself.
        licence: of the model; empty where it is not stated.
        run: that it is of, for scores and data.
    """
    name, scene = repository.rpartition("/")[2], _scene_of(run)
    inputs, tiling = list(known.needed), known.tiling
    parts = [
        _front_matter(name, known, licence, run, scene),
        f"# {name}",
        f"A land-cover model of [landfuse](https://github.com/landfuse/landfuse): `{known.model.name}` on "
        f"{' + '.join(inputs)}, {len(known.legend)} classes. It looks at {tiling.view} x {tiling.view} px and labels "
        f"the {tiling.core} x {tiling.core} px in the middle.",
        "## Use",
        _use(repository, name, known, files),
        "## Accuracy",
        *_accuracy(known, run),
        "## Limits",
        _listed(_limits(known, run)),
        "## Data",
        *_data(known, inputs, scene),
        "## Licence",
        (f"Of the model: {licence}." if licence else "Of the model: not stated. Ask its owner before you use it.")
        + (f" Of the data: {scene.licence}." if scene and scene.licence else " Of the data: not stated."),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _scene_of(run: Run | None) -> SceneSettings | None:
    """What the run's scene file says, where it is still there."""
    if run is None:
        return None
    try:
        return read_scene_file(run.scene).settings
    except LandfuseError:
        return None


def _front_matter(name: str, known: ModelFile, licence: str, run: Run | None, scene: SceneSettings | None) -> str:
    said: dict[str, Any] = {"license": licence.lower()} if licence else {}
    said |= {"library_name": "landfuse", "pipeline_tag": "image-segmentation"}
    said["tags"] = ["land-cover", "remote-sensing", "data-fusion", "geospatial", known.model.name]
    if run is not None:
        place = scene.name if scene else "the run's scene"
        metrics = [
            {"type": kind, "value": round(run.scores["test"][score], 4), "name": _NAMES[score]}
            for score, kind in _METRICS.items()
            if run.scores["test"][score] is not None
        ]
        dataset = {"name": (scene and scene.title) or place, "type": place, "split": run.scored_on}
        result = {"task": {"type": "image-segmentation", "name": "land cover"}, "dataset": dataset, "metrics": metrics}
        said["model-index"] = [{"name": name, "results": [result]}]
    return f"---\n{yaml.safe_dump(said, sort_keys=False, allow_unicode=True)}---"


def _use(repository: str, name: str, known: ModelFile, files: Sequence[str]) -> str:
    torch = known.model.name not in TABLES or known.features is not None
    lines = [f'pip install "landfuse[hub{",train" if torch and "model.json" in files else ""}]"']
    if known.package is not None and "model.json" in files:
        lines.append(f"pip install {known.package.name}=={known.package.version}  # holds the model's class")
    lines.append(f"landfuse pull {repository}")
    if "model.json" in files:
        lines.append(f"landfuse predict {name} scene.yaml -o map.tif")
    if "model.onnx" in files:
        lines.append(f"landfuse predict {name}/model.onnx scene.yaml -o map.tif  # needs no torch")
    return "```sh\n" + "\n".join(lines) + "\n```\n\n`scene.yaml` names your rasters as in the table under Data."


def _accuracy(known: ModelFile, run: Run | None) -> list[str]:
    scores = {} if run is None else run.scores
    classes = {row["class"]: row for row in scores.get("classes", ())}
    intervals = scores.get("intervals") or {}
    head = ["code", "class", "colour"]
    rows: list[list[object]] = [[c.code, c.name, f"`{c.colour}`"] for c in known.legend]
    if run is None:
        return ["Not known: this was not written from a run.", _table(head, rows)]
    of_all = [
        [_NAMES[name], decimals(scores["test"][name]), _ends(intervals.get("scores", {}).get(name))] for name in SCORES
    ]
    for row, c in zip(rows, known.legend, strict=True):
        own = classes.get(c.name, {})
        row += [decimals(own.get("F1")), _ends(intervals.get("F1", {}).get(c.name)), f"{own.get('support') or 0:,.0f}"]
    said = f"Measured on {scores['test']['pixels']:,.0f} pixels: {run.scored_on}."
    if intervals and intervals["blocks"] > 1:
        said += (
            f" Intervals are from {intervals['blocks']} blocks of {intervals['block, px']} px, drawn with replacement."
        )
    leak = scores.get("leak_fraction")
    leaks = leak_words(leak, "a view") or ["not known."]
    return [
        said,
        _table(["score", "value", "95% interval"], of_all),
        _table([*head, "F1", "95% interval", "test pixels"], rows),
        f"Leak fraction: {'0%. ' if leak == 0 else ''}{leaks[0]}",
    ]


def _ends(one: Mapping[str, float | None] | None) -> str:
    """The ends of an interval of `scores.json`."""
    low, high, value = (math.nan if one is None or one[key] is None else one[key] for key in ("low", "high", "value"))
    return Interval(value or 0.0, low or 0.0, high or 0.0).text(decimals)


def _limits(known: ModelFile, run: Run | None) -> list[str]:
    scores = {} if run is None else run.scores
    said = ["It names one of its classes for every pixel, also for ground that is none of them."]
    if "applicability" in known.notes:
        said[0] += " `landfuse predict --applicability` shows where the ground is unlike the training pixels."
    if known.roles:
        tiles = f"{_many(len(known.roles), 'tile')}: {few([*known.roles], 3)}"
        said.append(
            f"It was trained on {tiles}. Elsewhere, or at another season, its accuracy is not known: draw a reference "
            "sample by `landfuse sample`."
        )
    if known.droppable:
        said.append(f"It was trained to do without {', '.join(known.droppable)} (`--allow-missing`).")
    if run is None:
        return said
    if run.cross_validated:
        said.append(f"It learnt from all labels, and its scores are {run.cross_validated}.")
    said += polygon_leak_words(scores.get("polygon_leak_fraction")) + calibration_leak_words(run.calibration_leak)
    said += calibration_words(scores)
    support = {str(row["class"]): int(row["support"] or 0) for row in scores["classes"]}
    if any(support.values()):
        commonest = max(support, key=lambda name: support[name])
        base = support[commonest] / sum(support.values())
        said.append(f"Naming every test pixel {commonest}, the commonest class, would be right at {percent(base)}.")
    rare = [f"{name} ({count:,})" for name, count in support.items() if count < _FEW_PIXELS]
    if rare:
        said.append(f"Classes with fewer than {_FEW_PIXELS} test pixels, whose scores say little: {few(rare, 10)}.")
    blocks = (scores.get("intervals") or {}).get("blocks")
    if blocks is not None and blocks < _FEW_BLOCKS:
        said.append(
            f"Test pixels lie in {_many(blocks, 'block')} of ground: the intervals are too narrow, or cannot be given."
        )
    if blocks is None:
        said.append("No intervals are known: the run is of an earlier landfuse.")
    return said


def _data(known: ModelFile, inputs: Sequence[str], scene: SceneSettings | None) -> list[str]:
    said = {} if scene is None else {"": scene.title or scene.name, "Cite: ": scene.citation, "From: ": scene.address}
    rows = []
    for name in inputs:
        info = known.modalities[name]
        pixel = info.pixel or (f"{info.metres:g} m" if info.metres else "")
        dates = f"{info.steps[0]} to {info.steps[-1]}, {len(info.steps)} dates or periods" if info.steps else ""
        words = [name, info.bands, info.band_words, info.units, info.decode or "none", info.dtype, pixel, dates]
        rows.append([word or "not stated" for word in words])
    head = ["modality", "bands", "their names", "units", "decoding", "data type", "pixel", "dates"]
    held = ["names of the classes and of the bands"]
    held += ["the range of the bands' values"] if any(info.values for info in known.modalities.values()) else []
    held += ["the places of the training tiles (grid and CRS) and a checksum of their split"] if known.roles else []
    held += ["values of some training pixels, without their places"] if "applicability" in known.notes else []
    return [
        " ".join(f"{what}{bare(text).rstrip('.')}." for what, text in said.items() if text),
        _table(head, rows),
        f"Beside the weights, the files hold {'; '.join(held)}.",
    ]


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    cells = [[escape(str(cell), quote=False).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells))
