"""The reference sample of a map: the pixels that were drawn, how they were drawn, and what is there in truth.

A sample represents the whole map only if every pixel had a known probability to be in it. So the file of a sample
carries its design in columns, row by row, and a file that lacks them is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from landfuse.errors import OutputError, SceneError
from landfuse.files import from_cell, log_replaced, not_ours, to_csv, write_text
from landfuse.legend import UNLABELLED
from landfuse.rasters.polygons import PROBABILITY, read_rows, write_points

Design = Literal["stratified", "simple", "cluster"]

_COLUMNS = (
    "design", "stratum", "cluster", PROBABILITY, "stratum_units", "stratum_drawn", "map_pixels", "sample_points"
)  # fmt: skip
_DATES = ("reference_before", "reference_after")
"""The columns of a sample of two maps, in the place of `reference`."""

_WRITTEN = (
    *_COLUMNS, *_DATES, "id", "reference", "x", "y", "row", "col", "map_code", "map_class", "pixel_m2", "stratum_m2",
    "crs", "drawn_from", "seed", "part", "confidence", "set", "why",
)  # fmt: skip
_OTHERS = ("design", PROBABILITY)  # text, and what follows from the others


@dataclass(frozen=True, eq=False)
class ReferenceSample:
    """Pixels of a map that were drawn at random, to be observed; all arrays are (n,).

    Args:
        design: "stratified" by the map's classes, "simple", or "cluster" of neighbouring pixels.
        x: of the pixels' centres, in the map's CRS.
        y: of the pixels' centres, in the map's CRS.
        row: of the pixels in the map.
        col: of the pixels in the map.
        code: of the map there.
        stratum: the code of the stratum; 0 throughout where there are no strata.
        cluster: which pixels were drawn together; each its own number where they were drawn one by one.
        sizes: stratum -> units in the map: pixels, or clusters that hold at least one pixel with a class.
        drawn: stratum -> units drawn.
        pixels: of the map that have a class.
        pixel_m2: square metres of each pixel on the ellipsoid; NaN where they are not known.
        stratum_m2: stratum -> square metres in the map; NaN where they are not known.
        crs: of the map.
        names: code -> name of the class, as far as they are known.
        source: the map's file name.
        seed: of the drawing.
        reference: what is there in truth, as written in the file: a code or a name, None where nothing is written.
        left_out: places of its file that were chosen, not drawn at random, as of `landfuse next`.
        reference_after: of a sample of two maps: what is there at the later date; `reference` is of the earlier one.
    """

    design: Design
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    code: NDArray[np.int64]
    stratum: NDArray[np.int64]
    cluster: NDArray[np.int64]
    sizes: Mapping[int, int]
    drawn: Mapping[int, int]
    pixels: int
    pixel_m2: NDArray[np.float64]
    stratum_m2: Mapping[int, float]
    crs: str | None
    names: Mapping[int, str]
    source: str
    seed: int
    reference: tuple[str | None, ...] = ()
    left_out: int = 0
    reference_after: tuple[str | None, ...] | None = None

    def __len__(self) -> int:
        return self.x.size

    @property
    def probability(self) -> NDArray[np.float64]:
        """The probability of each pixel to be in the sample: (n,)."""
        return np.array([self.drawn[s] / self.sizes[s] for s in self.stratum.tolist()])

    @property
    def references(self) -> dict[str, tuple[str | None, ...]]:
        """The columns that are to be filled in, with codes or names: one, or one for each date."""
        none = (None,) * len(self)
        if self.reference_after is None:
            return {"reference": tuple(self.reference) or none}
        return dict(zip(_DATES, (tuple(self.reference) or none, self.reference_after or none), strict=True))

    def columns(self) -> dict[str, NDArray[np.generic]]:
        """The columns of its file."""
        n = len(self)
        strata = self.stratum.tolist()
        return {
            "id": np.arange(1, n + 1),
            **{name: np.array(texts, dtype=object) for name, texts in self.references.items()},
            "x": self.x,
            "y": self.y,
            "row": self.row,
            "col": self.col,
            "map_code": self.code,
            "map_class": np.array([self.names.get(code, "") for code in self.code.tolist()], dtype=object),
            "stratum": self.stratum,
            "cluster": self.cluster,
            "probability": self.probability,
            "design": np.full(n, self.design, dtype=object),
            "stratum_units": np.array([self.sizes[s] for s in strata]),
            "stratum_drawn": np.array([self.drawn[s] for s in strata]),
            "map_pixels": np.full(n, self.pixels),
            "sample_points": np.full(n, n),
            "pixel_m2": self.pixel_m2,
            "stratum_m2": np.array([self.stratum_m2[s] for s in strata]),
            "crs": np.full(n, self.crs or "", dtype=object),
            "drawn_from": np.full(n, self.source, dtype=object),
            "seed": np.full(n, self.seed),
        }

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Writes it as GeoPackage (.gpkg) or CSV (.csv).

        Raises:
            OutputError: if the name ends otherwise, the file cannot be written, or one is there that is no sample or
                has references, and `overwrite` is not set.
        """
        check_unfilled(path, overwrite)
        write_places(path, self.columns(), self.crs)


def write_places(path: str | Path, columns: Mapping[str, NDArray[np.generic]], crs: str | None) -> None:
    """Writes places with the columns `x`, `y` and others as GeoPackage (.gpkg) or CSV (.csv).

    Raises:
        OutputError: if the file cannot be written.
    """
    path = Path(path)
    log_replaced([path])
    if path.suffix.lower() == ".gpkg":
        write_points(path, columns["x"].astype(float), columns["y"].astype(float), columns, crs)
    else:
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        write_text(path, to_csv([dict(zip(columns, row, strict=True)) for row in rows]))


def check_unfilled(path: str | Path, overwrite: bool = False) -> None:
    """Refuses to replace a file but a sample without references.

    Raises:
        OutputError: if there is another one; or if the name does not end in .gpkg or .csv.
    """
    path = Path(path)
    if path.suffix.lower() not in (".gpkg", ".csv"):
        raise OutputError(f"a sample cannot be written as {path.name}", "a name ending in .gpkg or .csv", "")
    if overwrite or not path.exists():
        return
    try:
        rows = read_rows(path)
    except SceneError:
        rows = []
    asked = _asked(rows)
    if not rows or not {"x", "y", *asked} <= set(rows[0]) <= set(_WRITTEN):
        raise not_ours(path, "it is no sample, or holds more than the columns of one")
    filled = sum(any(row[name] is not None for name in asked) for row in rows)
    if filled:
        raise not_ours(path, f"{filled} of its {len(rows)} references are filled in")


def _asked(rows: Sequence[Mapping[str, str | None]]) -> tuple[str, ...]:
    """The columns of a file's references."""
    return _DATES if rows and {*_DATES} & {*rows[0]} else ("reference",)


def _whole(text: str | None) -> int:
    number = float(text or "")
    if not number.is_integer():
        raise ValueError(f"{text} is no whole number")
    return int(number)


def read_sample(path: str | Path) -> ReferenceSample:
    """Reads a sample that `ReferenceSample.save` wrote, with the references that were filled in since.

    Raises:
        MissingFileError: if it is not there.
        SceneError: if it is no probability sample, points of it were lost, or a number cannot be read.
    """
    rows = read_rows(path)
    asked = _asked(rows)
    absent = [name for name in (*_COLUMNS, *asked) if not rows or name not in rows[0]]
    if absent:
        raise SceneError(
            f"{path} does not say how its places were chosen: it lacks the columns {', '.join(absent)}",
            "a sample drawn at random, as `landfuse sample` draws it: only then do the accuracy and the areas of the "
            "whole map follow from it, with their errors; places chosen by hand favour what is easy to see",
            "draw one by `landfuse sample MAP -n 500 -o sample.gpkg` and fill in `reference`. What follows from "
            "labels such as these is how the map agrees with them: name them in a scene file under `labels` and score "
            "by `landfuse evaluate MAP scene.yaml --intervals`",
        )
    every = len(rows)
    rows = [row for row in rows if row[PROBABILITY] is not None]
    if not rows:
        raise SceneError(
            f"all {every} places of {path} were chosen, and none was drawn at random: `{PROBABILITY}` is empty",
            "places drawn at random: only then do the accuracy and the areas of the whole map follow from it",
            "draw some by `landfuse next ... --judge 0.5`, or by `landfuse sample`",
        )
    try:
        columns = {name: np.array([float(row[name] or "") for row in rows]) for name in ("x", "y")}
        whole = ("id", "row", "col", "map_code", "seed", *(name for name in _COLUMNS if name not in _OTHERS))
        counted = {name: np.array([_whole(row[name]) for row in rows], np.int64) for name in whole}
        square_metres = {
            name: np.array([float(row.get(name) or "nan") for row in rows]) for name in ("pixel_m2", "stratum_m2")
        }
    except (ValueError, TypeError, KeyError) as error:
        raise SceneError(
            f"the columns with the design of {path} are damaged: {error}",
            "all columns but `reference` as they were written",
            "copy the references into the file as it was drawn",
        ) from None
    design = str(rows[0]["design"])
    strata = counted["stratum"]
    same = {row["design"] for row in rows} == {design} and np.ptp(counted["map_pixels"]) == 0
    if design not in get_args(Design) or not same:
        raise SceneError(
            f"{path} mixes samples, or has the design {design!r}",
            f"one of {', '.join(get_args(Design))}",
            "draw it again",
        )
    if np.unique(counted["id"]).size != len(rows) or (counted["sample_points"] != len(rows)).any():
        raise SceneError(
            f"{path} holds {len(rows)} rows, of {counted['sample_points'][0]} that were drawn",
            "every row that was drawn, once: a sample that was thinned out is none",
            f"bring the rows back; write {UNLABELLED} as `reference` where the truth is not known",
        )
    sizes = dict(zip(strata.tolist(), counted["stratum_units"].tolist(), strict=True))
    drawn = dict(zip(strata.tolist(), counted["stratum_drawn"].tolist(), strict=True))
    codes = counted["map_code"]
    names = {
        code: from_cell(str(name))
        for code, name in zip(codes.tolist(), (row.get("map_class") for row in rows), strict=True)
        if name
    }
    texts = [tuple((text := row[name]) and from_cell(text) for row in rows) for name in asked]
    return ReferenceSample(
        design,  # type: ignore[arg-type]
        columns["x"],
        columns["y"],
        counted["row"],
        counted["col"],
        codes,
        strata,
        counted["cluster"],
        sizes,
        drawn,
        int(counted["map_pixels"][0]),
        square_metres["pixel_m2"],
        dict(zip(strata.tolist(), square_metres["stratum_m2"].tolist(), strict=True)),
        rows[0].get("crs"),
        names,
        str(rows[0].get("drawn_from") or ""),
        int(counted["seed"][0]),
        texts[0],
        every - len(rows),
        texts[1] if asked == _DATES else None,
    )
