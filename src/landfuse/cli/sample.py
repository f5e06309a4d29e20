"""The command `sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from landfuse.cli.console import Quiet, bar, out
from landfuse.errors import SettingsError


def sample(
    map_path: Annotated[Path, typer.Argument(metavar="MAP", help="The map (.tif) to be judged.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The sample: .gpkg (and a .csv beside it), or .csv.")],
    n: Annotated[int, typer.Option("-n", "--points", min=2, help="Points to look at.")] = 500,
    design: Annotated[
        str, typer.Option(help="stratified (by the map's classes), simple, or cluster (squares of pixels).")
    ] = "stratified",
    allocation: Annotated[
        str, typer.Option(help="proportional (to area, at least --minimum per class), equal, or neyman.")
    ] = "proportional",
    minimum: Annotated[int, typer.Option(min=2, help="Points of a class at least.")] = 50,
    expected: Annotated[
        list[str] | None, typer.Option(help="CODE=ACCURACY expected, for neyman; once per class.")
    ] = None,
    side: Annotated[int, typer.Option(min=1, help="Side of a cluster, px.")] = 3,
    seed: Annotated[int, typer.Option(help="The same seed draws the same points.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Draw a reference sample of a map by chance; fill in its column `reference`, then evaluate the map by it."""
    from landfuse.errors import OutputError
    from landfuse.sampling import draw

    if output.suffix.lower() not in (".gpkg", ".csv"):
        raise OutputError(f"a sample cannot be written as {output.name}", "a name ending in .gpkg or .csv", "")
    with bar("drawing, blocks", quiet) as tell:
        drawn = draw(
            map_path, n, design=design, allocation=allocation, minimum=minimum, expected=_expected(expected or []),  # type: ignore[arg-type]
            side=side, seed=seed, progress=tell,
        )  # fmt: skip
    drawn.save(output)
    if output.suffix.lower() == ".gpkg":
        drawn.save(output.with_suffix(".csv"))
    table = Table(title=escape(f"{output}: {len(drawn)} points, {design}, seed {seed}"))
    for title in ("stratum", "units in the map", "drawn", "chance"):
        table.add_column(title, justify="left" if title == "stratum" else "right")
    for code, size in drawn.sizes.items():
        name = f"{code} {drawn.names.get(code, '')}" if design == "stratified" else "all"
        table.add_row(escape(name), f"{size:,}", f"{drawn.drawn[code]:,}", f"{drawn.drawn[code] / size:.3g}")
    out.print(table)
    told = f"fill in `reference`, then: landfuse evaluate {map_path} {output}"
    out.print(told, markup=False, soft_wrap=True)


def _expected(texts: list[str]) -> dict[int, float]:
    try:
        return {int(code): float(value) for code, value in (text.split("=") for text in texts)}
    except ValueError:
        raise SettingsError(
            f"--expected {' '.join(texts)}", "a code and an accuracy from 0 to 1, like 3=0.8", "mend it"
        ) from None
