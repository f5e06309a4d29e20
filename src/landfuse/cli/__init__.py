"""The command: check, train, predict, evaluate, compare, modalities, ablation, report, sample, demo; a module each."""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.logging import RichHandler
from rich.markup import escape
from typer.core import TyperGroup

from landfuse.cli.console import err, out
from landfuse.cli.data import check, fetch
from landfuse.cli.demo import demo
from landfuse.cli.evaluate import evaluate, sample
from landfuse.cli.predict import predict
from landfuse.cli.report import report
from landfuse.cli.studies import ablation, compare, modalities, reproduce
from landfuse.cli.train import export, train
from landfuse.errors import LandfuseError


class _Interruptible(TyperGroup):
    """Tells of ctrl-C itself: versions of Typer differ in the exit code, and none says what is left behind."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            told = "interrupted; nothing half-written is left. The same `train` or `predict` command goes on from there"
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


# In the order of the help text.
for command in (
    check, train, predict, evaluate, compare, modalities, ablation, report, sample, export, fetch, reproduce, demo,
):  # fmt: skip
    app.command()(command)


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
