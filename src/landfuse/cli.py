"""The command: check, train, predict, evaluate, sample, demo."""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

from landfuse import cli_accuracy
from landfuse.errors import LandfuseError, SettingsError

if TYPE_CHECKING:
    from landfuse.legend import Legend
    from landfuse.scenes.scene import Scene


class _Interruptible(TyperGroup):
    """Tells of ctrl-C itself: versions of Typer differ in the exit code, and none says what is left behind."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            told = "interrupted; nothing half-written is left. The same `train` command goes on from its last epoch"
            err.print(told, soft_wrap=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Interruptible,
    help="Co-registered rasters of several sensors and some labels in, a defended land-cover map out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
err = Console(stderr=True, highlight=False)

ScenePath = Annotated[Path, typer.Argument(help="The scene file (scene.yaml), or the folder that holds it.")]


def _say(line: str) -> None:
    """One line, whatever the width and whatever brackets a path holds."""
    out.print(line, markup=False, soft_wrap=True)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(version("landfuse"))
        raise typer.Exit


@app.callback()
def _all(
    _show: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    logging.getLogger("landfuse").setLevel(logging.INFO)
    if not logging.getLogger("landfuse").handlers:
        logging.getLogger("landfuse").addHandler(RichHandler(console=err, show_time=False, show_path=False))


@contextmanager
def _bar(what: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; gives what is to be told (done, total)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal) as progress:
        bar = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


@app.command()
def check(
    scene: ScenePath,
    views: Annotated[
        str, typer.Option(help="Views for the leak report, px: `9` around a pixel, `96/64` with a core of 64.")
    ] = "",
) -> None:
    """Look at a scene: its modalities, its classes per role, what leaks, and every fault at once."""
    from landfuse.check import VIEWS
    from landfuse.check import check as look

    pairs = [_view_and_core(part) for part in views.split(",")] if views else VIEWS
    with _bar("reading") as tell:
        report = look(scene, pairs, tell)
    if report.file is not None and report.modalities:
        settings = report.file.settings
        table = Table(
            title=f"{escape(settings.title or settings.name)}: {report.tiles} tile{'s' if report.tiles != 1 else ''}"
        )
        for title in ("modality", "bands", "type", "pixel", "CRS", "warped", "no data", "min", "mean", "max", "units"):
            table.add_column(title, justify="left" if title in ("modality", "type", "CRS", "units") else "right")
        for name, m in report.modalities.items():
            crs = [c if len(c) < 20 else "WKT" for c in m.crs]
            table.add_row(
                name, str(m.bands), m.dtype, f"{m.pixel:.4g}", ", ".join(crs[:3]) + (" ..." if len(crs) > 3 else ""),
                str(m.warped), f"{m.missing / max(1, m.pixels):.1%}", f"{m.low:.4g}", f"{m.mean:.4g}", f"{m.high:.4g}",
                escape(m.units),
            )  # fmt: skip
        out.print(table)
    if report.file is not None and report.counts:
        table = Table(title="labelled pixels")
        table.add_column("code", justify="right")
        table.add_column("class")
        for role in report.counts:
            table.add_column(role, justify="right")
        for index, kind in enumerate(report.file.legend):
            counts = [f"{int(count[index]):,}" for count in report.counts.values()]
            table.add_row(str(kind.code), f"[{kind.colour}]■[/] {escape(kind.name)}", *counts)
        table.add_section()
        table.add_row("", "all", *(f"{int(count.sum()):,}" for count in report.counts.values()))
        out.print(table)
    if report.leaks:
        table = Table(title="leak report: test pixels labelled from a view that holds a training or validation pixel")
        table.add_column("view, px", justify="right")
        table.add_column("core, px", justify="right")
        table.add_column("share", justify="right")
        for (view, core), share in report.leaks.items():
            table.add_row(str(view), str(core), f"[{'red' if share > 0 else 'green'}]{share:.1%}[/]")
        out.print(table)
    for fault in report.faults:
        err.print(f"[bold red]fault[/] {escape(str(fault))}", soft_wrap=True)
    if report.faults:
        raise typer.Exit(2)
    out.print("no fault found")


def _view_and_core(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"\s*(\d+)\s*(?:/\s*(\d+)\s*)?", text)
    view, core = (int(match.group(1)), int(match.group(2) or 1)) if match else (0, 0)
    if not 1 <= core <= view:
        raise SettingsError(f"--views holds {text!r}", "views like 7,11,96/64, with cores no larger", "mend it")
    return view, core


def _print_scores(scores: dict[str, float], classes: Sequence[Mapping[str, object]], title: str) -> None:
    table = Table(title=escape(title))
    for name in ("class", "precision", "recall", "F1", "IoU", "support"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for row in classes:
        values = [row[name] for name in ("precision", "recall", "F1", "IoU")]
        table.add_row(escape(str(row["class"])), *(_share(v) for v in values), f"{row['support']:,}")
    out.print(table)
    out.print("  ".join(f"{name} {_share(scores[name])}" for name in ("OA", "AA", "kappa", "mF1", "mIoU")))
    if scores.get("unmapped"):
        out.print(f"{scores['unmapped']:.1%} of the labelled pixels have no class in the map; they are not scored")


def _share(value: object) -> str:
    return "–" if value is None or value != value else f"{value:.4f}"


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe (YAML): one file is one run.")],
    assignments: Annotated[
        list[str] | None, typer.Argument(help="Settings that win over the file, e.g. training.epochs=20 run=runs/a.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Train what a recipe says and score it on the test split; the same command goes on after an interruption."""
    from landfuse.recipe import read_recipe
    from landfuse.train import train as run_training

    read = read_recipe(recipe, assignments or ())
    run = Path(read.run or "")
    run_training(read, progress=not quiet and err.is_terminal)
    if not (run / "scores.json").exists():
        return  # a further rank of several; the first one reports
    scores = json.loads((run / "scores.json").read_text(encoding="utf-8"))
    _print_scores(scores["test"], scores["classes"], f"{run}: test split")
    if scores["leak_share"]:
        out.print(f"[red]{scores['leak_share']:.1%} of the test pixels have a training pixel in their view[/]")
    _say(f"bundle: {run / 'bundle'}")


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="The bundle, or the run folder that holds it.")],
    scene: ScenePath,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The map (.tif), or a folder where the scene has several tiles.")
    ],
    tile: Annotated[list[str] | None, typer.Option(help="Map only this tile; may be given several times.")] = None,
    probabilities: Annotated[
        bool, typer.Option(help="Also write class probabilities, uint8 in steps of 1/250.")
    ] = False,
    confidence: Annotated[bool, typer.Option(help="Also write the margin between best and second class.")] = False,
    picture: Annotated[bool, typer.Option(help="Also write a picture (.png) of each map.")] = False,
    block: Annotated[int, typer.Option(min=1, help="Side of the blocks, px; bounds the memory.")] = 512,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Windows per forward pass; by default about 65,000 px.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Map a scene: a georeferenced GeoTIFF with colours and class names, 255 where there is no data."""
    from landfuse.classifier import load_bundle
    from landfuse.errors import OutputError, SceneError
    from landfuse.predict import predict as run_mapping
    from landfuse.scenes.scene_file import read_scene_file

    classifier = load_bundle(bundle)
    file = read_scene_file(scene)
    scenes = file.scenes(only=list(classifier.notes))
    unknown = sorted(set(tile or ()) - {s.name for s in scenes})
    if unknown:
        raise SceneError(
            f"the scene has no tile {', '.join(unknown)}", f"some of {', '.join(s.name for s in scenes[:9])}", ""
        )
    for one in scenes:
        classifier.check(one)
    chosen = [one for one in scenes if not tile or one.name in tile]
    as_file = output.suffix.lower() in (".tif", ".tiff")
    if as_file and len(chosen) > 1:
        raise OutputError(
            f"{len(chosen)} tiles are to be mapped into the one file {output}",
            "a folder, which gets a map per tile",
            "name a folder by -o, or one tile by --tile",
        )
    for one in chosen:
        path = output if as_file else output / f"{one.name}.tif"
        with _bar(f"mapping {one.name}, px", quiet) as tell:
            run_mapping(
                classifier, one, path, probabilities=probabilities, confidence=confidence, block=block, batch=batch,
                progress=tell,
            )  # fmt: skip
        _say(f"map: {path}")
        if picture:
            _say(f"picture: {_picture(path, one, classifier.legend)}")


def _picture(path: Path, scene: Scene, legend: Legend) -> Path:
    from landfuse.evaluate import read_map
    from landfuse.pictures import class_image, map_figure, modality_image, save

    classes = read_map(path, replace(scene, legend=legend))  # a scene that is only mapped may have no legend
    images = {name: modality_image(scene, name) for name in scene.modalities}
    images["map"] = class_image(classes, legend)
    shown = [classes]
    if scene.read_labels is not None and scene.legend == legend:
        images["labels"] = class_image(scene.labels, scene.legend)
        shown.append(scene.labels)
    return save(map_figure(images, legend, shown), path.with_suffix(".png"))


@app.command()
def evaluate(
    maps: Annotated[Path, typer.Argument(help="The map (.tif), or the folder of the tiles' maps.")],
    scene: Annotated[
        Path,
        typer.Argument(help="The scene file with labels, or a sample of `sample`, its reference filled in."),
    ],
    role: Annotated[str | None, typer.Option(help="train, validation, test or all; by default test.")] = None,
    split: Annotated[Path | None, typer.Option(help="A written split, e.g. the folder `split` of a run.")] = None,
    design: Annotated[str | None, typer.Option(help="Of a sample: stratified, simple or cluster.")] = None,
    intervals: Annotated[bool, typer.Option("--intervals", help="With 95% intervals, from blocks of ground.")] = False,
    against: Annotated[Path | None, typer.Option(help="Another map of the scene: is the first one better?")] = None,
    block: Annotated[int, typer.Option(min=1, help="Side of the blocks of ground, px.")] = 64,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the scores as JSON and CSV.")
    ] = None,
) -> None:
    """Score a map against labels, or estimate its accuracy and the areas of its classes from a reference sample."""
    from landfuse.evaluate import evaluate as score

    if cli_accuracy.is_sample(scene):
        wrong = {"--role": role, "--split": split, "--intervals": intervals, "--against": against}
        if any(wrong.values()):
            told = ", ".join(name for name, given in wrong.items() if given)
            raise SettingsError(f"{told} with the sample {scene}", "a scene file with labels", "leave it out")
        cli_accuracy.tell_estimate(maps, scene, design, output, out)
        return
    if design is not None:
        raise SettingsError(
            f"--design {design} with the scene file {scene}",
            "a sample that was drawn by chance: labels of a scene say nothing of the whole map's accuracy and areas",
            f"draw one by `landfuse sample {maps} -n 500 -o sample.gpkg`; or leave --design out",
        )
    result = score(maps, scene, role=role, split=split)
    _print_scores(
        result.confusion.scores(), result.confusion.per_class(result.legend.names), f"{maps}: {result.role} pixels"
    )
    if output is not None:
        result.save(output)
        _say(f"scores: {output / 'scores.json'}")
    if intervals:
        cli_accuracy.tell_intervals(maps, scene, role, split, block, output, out)
    if against is not None:
        cli_accuracy.tell_difference(maps, against, scene, role, split, block, output, out)


cli_accuracy.add_sample(app, out, _bar)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where the demo writes.")] = Path("landfuse-demo"),
    seed: Annotated[int, typer.Option(help="Of the simulated scene and the training.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Simulate a scene of three sensors, train, map and score it: all of landfuse in two minutes."""
    from landfuse.demo import run_demo

    result = run_demo(folder, seed=seed, progress=not quiet and err.is_terminal, say=_say)
    table = Table(title="what each modality gives (test split)")
    for title in ("modalities", "OA", "mF1", "mIoU"):
        table.add_column(title, justify="left" if title == "modalities" else "right")
    for name, scores in result.scores.items():
        table.add_row(name, *(_share(scores[key]) for key in ("OA", "mF1", "mIoU")))
    out.print(table)
    _say(f"map:     {result.map}")
    _say(f"picture: {result.picture}")


def main() -> None:
    """Runs the command; a mistake of the user is one message and exit code 2."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # clean up as after ctrl-C
    try:
        app()
    except LandfuseError as error:
        err.print(f"[bold red]error[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    except Exception:
        err.print(escape(traceback.format_exc()), soft_wrap=True)
        err.print("[bold red]this is a fault of landfuse[/]; please report it with the lines above")
        sys.exit(1)


if __name__ == "__main__":
    main()
