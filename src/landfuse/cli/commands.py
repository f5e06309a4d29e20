"""The commands by name, and what all of them do: log, and end with one message and an exit code."""

from __future__ import annotations

import _thread
import difflib
import inspect
import io
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from importlib import import_module
from importlib.metadata import version
from keyword import iskeyword
from typing import Annotated, Any

import typer
from rich.logging import RichHandler
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from landfuse.cli.console import PANELS, out, take_hint
from landfuse.errors import LandfuseError, SettingsError, of_the_system
from landfuse.extras import missing_extra
from landfuse.progress import Meter, err

ISSUES = "https://github.com/landfuse/landfuse/issues"
"""Where faults of landfuse are reported; as in pyproject.toml."""

FIRST_WORDS = 2.0
"""Seconds after which a command that shows no progress yet says that it is starting: large libraries take as long."""

COMMANDS = {
    "map": ("init", "Map a folder of files in one command: scene file, training, map and report."),
    "init": ("init", "Write a scene file and a recipe for a folder of files, with the reason of each choice."),
    "models": ("train", "List the models; of one, its settings; of a file, what it maps."),
    "check": ("data", "Look at a scene: its modalities, its classes per role, what leaks, and every fault at once."),
    "train": ("train", "Train a recipe and score it on the test split; the same command resumes an interrupted run."),
    "predict": ("predict", "Map a scene into cloud-optimised GeoTIFFs with colours, class names and a QGIS style."),
    "evaluate": ("evaluate", "Score a map against labels, or estimate its accuracy and areas from a reference sample."),
    "compare": ("studies", "Compare recipes over their seeds and folds: means, costs, and paired differences."),
    "modalities": ("studies", "Report what each modality gives, by models that lack it."),
    "ablation": ("studies", "Train a recipe in several variants, and compare them with the first."),
    "audit": ("studies", "Rank labels by how probably they are wrong, with a picture of each; changes none."),
    "report": ("report", "Write a page that shows a run's map, how good it is, and where it came from."),
    "sample": ("evaluate", "Draw a reference sample of a map at random, by which `evaluate` estimates its accuracy."),
    "certify": ("certify", "Find the largest part of a map whose error is at most a stated rate; write its mask."),
    "change": ("certify", "Estimate the areas of change between two maps, from a reference sample of both."),
    "next": ("next_labels", "Draw places to label next: where labels help most, and at random, to judge maps by."),
    "export": ("train", "Write a bundle that opens anywhere, or an ONNX file that maps without torch."),
    "import": ("train", "Make a bundle of a checkpoint that the authors of REF-Net or MFNet trained with their code."),
    "push": ("hub", "Upload a bundle or an ONNX file to the Hugging Face Hub, with a card written from its run."),
    "pull": ("hub", "Download a model from the Hugging Face Hub, and check it."),
    "fetch": ("data", "Download the data of a benchmark, or say what to download and where to put it."),
    "reproduce": ("studies", "Train a benchmark's methods on splits with and without leaks, beside published scores."),
    "demo": (
        "init",
        "Simulate a scene of three sensors, train, map, score and report it: all of landfuse in a minute or two.",
    ),
}
"""The commands in the order of the help text: name -> the module that defines it, and what it does in one line."""


class _PlainHelp:
    """Shows no `<bool>` beside flags, and options in groups."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
            if getattr(param, "rich_help_panel", "") is None and param.param_type_name == "option":
                param.rich_help_panel = next((panel for panel, names in PANELS.items() if param.name in names), None)
        return params


class _Command(_PlainHelp, TyperCommand):
    """Refuses options that are given again, of which Click takes the last, and settings that are given as options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:  # as completing words does
            self._check(ctx, args)
        return super().parse_args(ctx, args)

    def _check(self, ctx: Any, args: list[str]) -> None:
        params = self.get_params(ctx)
        known = {name for param in params for name in (*param.opts, *param.secondary_opts)}
        if any(param.name == "assignments" for param in params):
            for word in args[: args.index("--")] if "--" in args else args:
                name, _, value = word.partition("=")
                if name.startswith("--") and name not in known:
                    _refuse_setting(name, value or next(iter(args[args.index(word) + 1 :]), ""))
        _, _, given = self.make_parser(ctx).parse_args([*args])
        for option in given:
            if given.count(option) > 1 and not getattr(option, "multiple", False):
                raise SettingsError(f"{option.opts[0]} is given {given.count(option)} times", "once", "choose one")

    def invoke(self, ctx: Any) -> Any:
        def starting() -> None:
            if not Meter.active:
                err.print(f"{ctx.command_path}: starting")

        timer = threading.Timer(FIRST_WORDS, starting)
        timer.daemon = True
        shown = not ctx.params.get("quiet") and not ctx.params.get("as_json")
        if shown:
            timer.start()
        take_hint()
        try:
            result = super().invoke(ctx)
        finally:
            timer.cancel()
        step = take_hint()
        if step and shown:
            err.print(f"next: {step}", markup=False, soft_wrap=True)
        return result


def _refuse_setting(option: str, value: str) -> None:
    """Refuses an unknown option that is the name of a setting, and names the assignment that it stands for."""
    from landfuse.models import SETTINGS
    from landfuse.settings import describe
    from landfuse.training.recipe import Recipe

    keys = [row.key for row in describe(Recipe)]
    keys += sorted({f"model.{name}" for kind in SETTINGS.values() for name in kind.model_fields})
    name = option.strip("-").replace("-", "_")
    near = difflib.get_close_matches(name, [key.rpartition(".")[2] for key in keys], n=1, cutoff=0.75)
    found = [key for key in keys if name == key or key.rpartition(".")[2] in near]
    if found:
        shown = "..." if not value or value.startswith("-") else value
        raise SettingsError(
            f"there is no option {option}",
            "settings of the recipe as KEY=VALUE, without dashes",
            " or ".join(f"{key}={shown}" for key in found[:4]),
        )


def command(name: str) -> Any:
    """Imports a command's function and makes a command of it; its help is its docstring."""
    alone = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
    function = getattr(import_module(f"landfuse.cli.{COMMANDS[name][0]}"), f"{name}_" if iskeyword(name) else name)
    words = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.getdoc(function) or "")  # Typer would keep the source's lines
    alone.command(name, cls=_Command, help=words)(function)
    return typer.main.get_command(alone)


class _Commands(_PlainHelp, TyperGroup):
    """Knows the commands by name; imports the one that is called."""

    def __init__(self, **options: Any) -> None:
        options["commands"] = {name: TyperCommand(name, help=line) for name, (_, line) in COMMANDS.items()}
        super().__init__(**options)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, known, rest = super().resolve_command(ctx, args)
        return name, known and command(str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        """Reports ctrl-C itself: versions of Typer differ in the exit code, and none says what is left."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            err.print(
                "interrupted; nothing half-written is left. The same `train`, `pull` or `predict` command goes on from "
                "there",
                soft_wrap=True,
            )
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    help="Land-cover maps from rasters of several sensors and a few labels, with honest estimates of accuracy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(version("landfuse"))
        raise typer.Exit


@app.callback()
def _all(
    _show: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    warnings.filterwarnings("ignore", module="pyogrio")  # what matters is in the error
    logging.getLogger("landfuse").setLevel(logging.INFO)
    if not logging.getLogger("landfuse").handlers:
        logging.getLogger("landfuse").addHandler(RichHandler(console=err, show_time=False, show_path=False))


def _end_with_stdin() -> None:
    os.read(0, 1)  # returns when the process at the other end has ended, or closed its end
    if os.name == "nt":  # there os.kill would end this process at once, with nothing tidied up
        _thread.interrupt_main(signal.SIGTERM)
    else:
        os.kill(os.getpid(), signal.SIGTERM)


def run() -> None:
    """Runs the command; a mistake of the user is one message and exit code 2."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ctrl-C, which what runs in the background ignores
    if "LANDFUSE_ENDS_WITH_STDIN" in os.environ:  # a run of a series, or a command that QGIS runs
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name must not end a command after hours of training
    try:
        for word in sys.argv:
            word.encode()
        app(prog_name="landfuse")
    except BrokenPipeError:
        sys.exit(1)
    except Exception as caught:
        error = missing_extra(caught) if isinstance(caught, ModuleNotFoundError) else caught
        fault = error if isinstance(error, LandfuseError) else of_the_system(error)
        if fault is not None:
            err.print(f"[bold red]error[/] {escape(str(fault))}", soft_wrap=True)
            sys.exit(fault.exit_code)
        err.print(escape(traceback.format_exc()), soft_wrap=True)
        err.print(
            f"[bold red]this is a fault of landfuse[/]; please report it with the lines above at {ISSUES}",
            soft_wrap=True,
        )
        sys.exit(1)
