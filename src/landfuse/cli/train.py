"""The commands `train`, `export`, `import` and `models`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from landfuse.cli.console import (
    Overwrite,
    OwnModel,
    Quiet,
    assigned,
    hint,
    into_folder,
    number,
    out,
    own_model,
    print_scores,
    say,
    table,
    there,
)
from landfuse.cli.studies import print_comparison
from landfuse.errors import SettingsError, few
from landfuse.markup import percent
from landfuse.progress import bar


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe (YAML): one file is one run.")],
    assignments: Annotated[
        list[str] | None, assigned("Settings that win over the file, e.g. training.epochs=20 run=runs/a.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="A run per seed, e.g. 0..4 or 0,3,5; by default the recipe's training.seed.")
    ] = None,
    folds: Annotated[
        str | None, typer.Option(help="A run per fold, e.g. 0..4; with --seeds, of each seed. By default the split's.")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Delete the run that the folder holds, and train again.")
    ] = False,
    model: OwnModel = None,
    quiet: Quiet = False,
) -> None:
    """Train what a recipe says and score it on the test split; the same command goes on after an interruption.

    With --seeds or --folds it trains a run of each, in folders such as runs/NAME/fold-0-seed-1, and compares them.
    Runs that have ended are not repeated.
    """
    if model is not None:
        from landfuse.models import name_of

        assignments = [*(assignments or ()), f"model.name={name_of(own_model(model))}"]
    if restart and (seeds is not None or folds is not None):
        raise SettingsError("--restart with --seeds or --folds", "one run", "restart that run by run=... alone")
    if seeds is not None or folds is not None:
        _train_series(recipe, assignments or [], seeds, folds, model, quiet)
        return
    from landfuse.accuracy.conformal import coverage_words
    from landfuse.scenes.leaks import calibration_leak_words, polygon_leak_words
    from landfuse.training.recipe import read_recipe
    from landfuse.training.run import read_run

    read = read_recipe(recipe, assignments or ())
    run = Path(read.run or "")
    if not (run / "scores.json").exists():
        read.read_scene()  # what is refused at once needs no torch
    from landfuse.training.train import train as run_training

    run_training(read, progress=not quiet, restart=restart)
    if not (run / "scores.json").exists():
        return  # a further rank of several; the first one reports
    ended = read_run(run)
    scores = ended.scores
    print_scores(scores["test"], scores["classes"], f"{run}: {ended.scored_on}")
    if scores.get("leak_fraction"):
        leak = percent(scores["leak_fraction"])
        out.print(f"[red]{leak} of the test pixels have a training or validation pixel in their view[/]")
    for line in (
        *polygon_leak_words(scores.get("polygon_leak_fraction")), *calibration_leak_words(ended.calibration_leak),
    ):  # fmt: skip
        out.print(f"[red]{line}[/]", soft_wrap=True)
    for line in coverage_words(scores["sets"]) if "sets" in scores else ():
        say(line)
    say(f"bundle: {run / 'bundle'}")
    hint("landfuse", "report", run)


def _train_series(
    recipe: Path, assignments: list[str], seeds: str | None, folds: str | None, model: str | None, quiet: bool
) -> None:
    """Trains a run per seed and fold, and prints their table."""
    from landfuse.studies.compare import compare
    from landfuse.studies.series import members, numbers, train_series

    runs = members(
        recipe,
        assignments,
        seeds=numbers(seeds, "--seeds") if seeds is not None else (),
        folds=numbers(folds, "--folds") if folds is not None else (),
    )
    train_series(recipe, runs, quiet=quiet, model=model, report=say)
    print_comparison(compare([one.run for one in runs]), classes=True)


def export(
    bundle: Annotated[Path, typer.Argument(help="The bundle, or the run folder that holds it.", callback=there)],
    output: Annotated[Path | None, into_folder("The folder of a new bundle.")] = None,
    onnx: Annotated[
        Path | None, typer.Option("--onnx", help="An ONNX file, which maps without torch, here and in other programs.")
    ] = None,
    pt2: Annotated[Path | None, typer.Option("--pt2", help="A program of torch.export.")] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Fold LoRA into the weights, where the scores stay the same.")
    ] = False,
    licence: Annotated[str, typer.Option(help="Of the model, e.g. CC-BY-4.0, for the ONNX file.")] = "",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write a bundle that opens anywhere: with its frozen encoder, which a run's own bundle only refers to; or as a
    file that needs no landfuse: ONNX or torch.export. Their inputs are raw pixels of views, NaN where there is no data.
    """
    with bar("reading and writing the model", quiet) as advance:
        advance(0, 0)
        from landfuse.interop.export import export as write

        done = write(bundle, output, onnx=onnx, pt2=pt2, merge=merge, licence=licence, overwrite=overwrite)
    if merge:
        say(f"folded into its weights: {len(done.folded)} layers ({_kinds(done.folded)})")
    if done.kept:
        say(
            f"not folded: {len(done.kept)} layers ({_kinds(done.kept)}); there a modality takes a part of the others' "
            "updates of their own pixels, which no weight on its own pixels can give"
        )
    if output is not None and done.whole and not merge:
        say("the bundle held all its weights before; this is a copy")
    hint("landfuse", "predict", onnx or output or bundle, "SCENE", "-o", "map.tif")
    for path in done.written:
        files = path.glob("model.*") if path.is_dir() else [path]
        size = sum(one.stat().st_size for one in files)
        say(f"{'bundle' if path.is_dir() else 'file'}: {path} ({size / 1e6:.1f} MB)")


def _kinds(layers: list[str]) -> str:
    """The last parts of the layers' names, each once."""
    return ", ".join(sorted({name.rpartition(".")[2] for name in layers}))


def import_(
    model: Annotated[str, typer.Argument(help="The method: refnet or mfnet.")],
    checkpoint: Annotated[Path, typer.Argument(help="The file that its authors' training wrote.")],
    recipe: Annotated[
        Path, typer.Argument(help="A recipe of the method: its scene, pixel maps (`given` or `none`), view and core.")
    ],
    assignments: Annotated[list[str] | None, assigned("Settings that win over the file, e.g. model.core=192.")] = None,
    output: Annotated[Path, into_folder("The folder of the bundle.")] = Path("bundle"),
    overwrite: Overwrite = False,
) -> None:
    """Make a bundle of a checkpoint that the authors of a method trained with their own code.

    The recipe is not trained. Its scene names the bands and classes in the order of the checkpoint; of a checkpoint
    with one class more, the first one is left out, the background.
    """
    from landfuse.training.recipe import read_recipe

    read = read_recipe(recipe, assignments or ())
    if read.model["name"] != model:
        raise SettingsError(f"{recipe} is a recipe of `{read.model['name']}`", f"one of `{model}`", "name another")
    from landfuse.interop.authors import import_checkpoint

    import_checkpoint(checkpoint, read).save(output, overwrite=overwrite)
    hint("landfuse", "predict", output, "SCENE", "-o", "map.tif")
    say(f"bundle: {output}")


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A model, for its settings; or a bundle, run folder or ONNX file, for what it maps (`./forest` where "
            "it has the name of a model). By default all models are listed."
        ),
    ] = None,
    model: OwnModel = None,
    as_json: Annotated[bool, typer.Option("--json", help="Of one: print everything as one JSON document.")] = False,
) -> None:
    """List the models; or, of one, its settings with their values, defaults and meaning, and a recipe to begin with;
    or what a saved model takes and returns: modalities with their bands, and classes.
    """
    from landfuse.models import SETTINGS, name_of, unknown
    from landfuse.settings import describe

    name = name_of(own_model(model)) if model is not None else name
    if name is not None and name not in SETTINGS and Path(name).exists():
        _print_saved(Path(name), as_json)
        return
    if name is None and as_json:
        raise SettingsError("--json without a name", "a model, bundle, run folder or ONNX file", "name one")
    if name is None:
        shown = table("models", ["name", "what it is", "cost"], left=["name", "what it is", "cost"])
        for one, kind in SETTINGS.items():
            shown.add_row(one, escape(kind.about or "–"), escape(kind.cost or "–"))
        out.print(shown)
        say("settings of one: landfuse models NAME")
        return
    if name not in SETTINGS:
        expected = f"one of: {', '.join(SETTINGS)}; or a bundle, run folder or ONNX file"
        raise SettingsError(f"there is no model and no file `{name}`", expected, unknown(name))
    kind = SETTINGS[name]
    if as_json:
        say(json.dumps({"model": name, "settings": [row._asdict() for row in describe(kind)]}))
        return
    if kind.about:
        say(f"{name}: {kind.about}; {kind.cost}")
    shown = table(
        f"settings of {name}", ["setting", "values", "default", "meaning"], left=["setting", "values", "meaning"]
    )
    for row in describe(kind):
        shown.add_row(row.key, escape(row.values), escape(row.default), escape(row.meaning))
    out.print(shown)
    preset = f", preset: {next(iter(kind.presets))}" if kind.presets else ""
    say(f"a recipe to begin with:\n\nscene: scene.yaml\nmodel: {{name: {name}{preset}}}")
    say(f"\nsettings on the command line win: landfuse train recipe.yaml model.{next(iter(kind.model_fields))}=...")


def _print_saved(path: Path, as_json: bool) -> None:
    """Prints what a saved model takes and returns."""
    from landfuse.bundles.table_bundle import describe_model

    known = describe_model(path)
    if as_json:
        say(json.dumps(known))
        return
    shown = table(
        f"{path}: modalities", ["modality", "bands", "names", "units", "data type", "pixel", "zoom"], ["names"]
    )
    for name, info in known["modalities"].items():
        shown.add_row(
            escape(name if info["required"] else f"{name} (may be missing)"), str(info["bands"]),
            escape(few(info["names"] or [f"{one:g} nm" for one in info["wavelengths"]], 12)),
            escape(info["units"]), info["dtype"],
            escape(info["pixel"]) or number(info["metres"] or None, ".3g"), str(info["zoom"]),
        )  # fmt: skip
    out.print(shown)
    torch = ", which needs torch" if known["needs_torch"] else ""
    say(f"model: {known['model']}{torch}")
    say(f"classes: {', '.join(one['name'] for one in known['classes'])}")
