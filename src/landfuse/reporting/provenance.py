"""Where a run came from: its data, its split, its versions, and how to do it again."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from landfuse.accuracy.bootstrap import SCORES, Interval
from landfuse.errors import SettingsError, few
from landfuse.files import sha256_of
from landfuse.legend import Legend
from landfuse.rasters.raster import Raster
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import SceneFile
from landfuse.scenes.split_rules import Roles
from landfuse.scenes.splits import counts_per_class
from landfuse.training.run import Run, saw


def data_rows(run: Run, file: SceneFile, scenes: Sequence[Scene]) -> list[dict[str, Any]]:
    """Each modality and the labels: path, files, bytes, bands, data type, units, pixel and CRS."""
    settings = file.settings
    rows = []
    for name, part in scenes[0].modalities.items():
        rasters = [scene.modalities[name].raster for scene in scenes]
        first = rasters[0]
        own = [getattr(r, "own_grid", r.grid) for r in rasters]
        width, height = own[0].pixel_size
        rows.append(
            {
                "name": name,
                "path": bare(", ".join(settings.modalities[name].paths)),
                "used": name in run.modalities,
                **_files(rasters),
                "bands": str(first.bands),
                "dtype": first.dtype,
                "units": part.units or "–",
                "pixel": f"{width:.6g}" if math.isclose(width, height) else f"{width:.6g} x {height:.6g}",
                "crs": few(list(dict.fromkeys(_crs(grid.crs) for grid in own)), 4),
            }
        )
    labels = settings.labels
    if labels is not None:
        rows.append(
            {
                **dict.fromkeys(("files", "bytes", "bands", "units", "pixel", "crs"), ""),
                "name": "labels",
                "path": bare(labels.path or ", ".join(labels.polygons)),
                "used": True,
                "dtype": "codes" if labels.path else f"polygons, by {labels.attribute}",
            }
        )
    return rows


def _files(rasters: Sequence[Raster]) -> dict[str, str]:
    paths = [Path(raster.path) for raster in rasters]
    sizes = [path.stat().st_size for path in paths if path.is_file()]
    return {"files": f"{len(set(paths)):,}", "bytes": _size(sum(sizes)) if len(sizes) == len(paths) else "–"}


def _size(count: int) -> str:
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.3g} {unit}"


def _crs(crs: str | None) -> str:
    return "none" if crs is None else crs if len(crs) < 20 else "a CRS without code"


def split_rows(scenes: Sequence[Scene], roles: Sequence[Roles], legend: Legend) -> list[dict[str, Any]]:
    """Labelled pixels of each class by role; the last row sums them up."""
    counts = {
        name: [int(n) for n in found]
        for name, found in counts_per_class(roles, [scene.labels for scene in scenes], len(legend)).items()
        if name != "calibration" or found.any()
    }
    rows = [{"name": name, **{role: found[k] for role, found in counts.items()}} for k, name in enumerate(legend.names)]
    return [*rows, {"name": "all", **{role: sum(found) for role, found in counts.items()}}]


def as_yaml(values: Mapping[str, Any]) -> str:
    """Settings as YAML, without those that are null."""
    return str(yaml.safe_dump(without_places(values, nulls=False), sort_keys=False, allow_unicode=True)).rstrip()


def without_places(values: Any, nulls: bool = True) -> Any:
    """Settings whose texts are `bare`, with those that are null or without."""
    if isinstance(values, Mapping):
        return {key: without_places(value, nulls) for key, value in values.items() if nulls or value is not None}
    if isinstance(values, list | tuple):
        return type(values)(without_places(value, nulls) for value in values)
    return bare(values) if isinstance(values, str) else values


def bare(text: str) -> str:
    """Text without this machine's folders: of a path that begins at a root, `~`, `.` or `..` the last name stays."""
    return re.sub(
        r"(?<![^\s=,:'\"`({\[])(?:~|\.{1,2}|[A-Za-z]:)?[\\/](?!/)(?:[^\s\\/,'\"`]+[\\/])*(?=[^\s\\/])", "", text
    )


def hashes(run: Run) -> dict[str, str]:
    """SHA-256 of the bundle's files."""
    return {name: sha256_of(run.folder / "bundle" / name) for name in ("model.safetensors", "model.json")}


def from_here(path: str | Path, run: Run) -> str:
    """A path for commands in the working directory, or in the folder that holds a run from elsewhere; of what lies
    outside, which is not to be known, the last name."""
    path, folder, here = Path(path).resolve(), run.folder.resolve(), Path.cwd()
    here = here if folder.is_relative_to(here) else folder.parent
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else path.name


def commands(
    run: Run, scene: str, maps: str, block: int, with_maps: bool, sample: str | Path | None = None
) -> list[tuple[str, str]]:
    """(what it does, the command line) of all that leads to the report, with paths as by `from_here`."""
    name, again = from_here(run.folder, run), from_here(f"{run.folder.resolve()}-again", run)
    score = (
        "Score the map",
        ["evaluate", maps, scene, "--split", f"{name}/split", "--intervals", "--block", str(block)],
    )
    if run.cross_validated:
        score = ("Draw points to score the map by", ["sample", maps, "-n", "500", "-o", "sample.gpkg"])
    points = [from_here(sample, run)] if sample is not None else []
    lines = [
        ("Look at the data", ["check", scene]),
        ("Train again, into another folder", ["train", f"{name}/recipe.json", f"run={again}"]),
        ("Map the scene", ["predict", name, scene, "-o", maps, "--confidence"]),
        score,
        *(("Estimate accuracy and areas from the reference sample", ["evaluate", maps, point]) for point in points),
        (
            "Write this report",
            ["report", name, *(["--maps", maps] if with_maps else []), *(w for p in points for w in ("--sample", p))],
        ),
    ]
    return [(what, shlex.join(["landfuse", *words])) for what, words in lines]


def cost(run: Run) -> list[tuple[str, str]]:
    """(what, how much) of the training: parameters, epochs, time and memory, where they were noted."""
    scores = run.scores
    said = []
    if scores.get("parameters"):
        said.append(("parameters", f"{scores['parameters']:,}"))
    if scores.get("epoch") is not None:
        said.append(("epoch that was kept", f"{scores['epoch'] + 1} of {scores.get('epochs', '?')}"))
    for key, name in (("training_seconds", "training"), ("test_mapping_seconds", "mapping the test pixels")):
        if scores.get(key) is not None:
            said.append((name, _time(scores[key])))
    if scores.get("peak_memory_bytes"):
        said.append(("peak memory of training", _size(scores["peak_memory_bytes"])))
    if scores.get("precision"):
        said.append(("precision", str(scores["precision"])))
    return said


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def modality_rows(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each modality gives, as `landfuse modalities` wrote it: what the model saw, and its scores.

    Raises:
        SettingsError: if it lacks something.
    """
    try:
        return [
            {
                "saw": saw(row["how"], row["seen"], row["withheld"]),
                "whole": row["how"] == "all",
                "scores": {
                    name: (row["scores"][name], None if row["how"] == "all" else _difference(row, name))
                    for name in SCORES
                },
            }
            for row in table["rows"]
        ]
    except (KeyError, TypeError) as error:
        raise SettingsError(
            f"the run's modalities.json is broken: {error} is missing",
            "the file of `landfuse modalities`",
            "make it again",
        ) from None


def _difference(row: Mapping[str, Any], score: str) -> Interval:
    ends = row.get("intervals", {}).get(score) or (None, None)
    value, low, high = (math.nan if one is None else float(one) for one in (row["differences"][score], *ends))
    return Interval(value, low, high)
