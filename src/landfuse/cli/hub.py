"""The commands `push` and `pull`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from landfuse.cli.console import Quiet, downloads, hint, into_folder, say, there
from landfuse.progress import err


def push(
    model: Annotated[
        Path, typer.Argument(help="The run folder; or a bundle, or an ONNX file of `export`.", callback=there)
    ],
    repository: Annotated[str, typer.Argument(help="owner/name on the Hub; it is made where there is none.")],
    onnx: Annotated[
        Path | None, typer.Option("--onnx", help="An ONNX file of the same model, beside the bundle.", callback=there)
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Its run folder, for scores and data, where MODEL is none.", callback=there)
    ] = None,
    licence: Annotated[
        str, typer.Option(help="Of the model, by the Hub's name, e.g. CC-BY-4.0; a public one needs it.")
    ] = "",
    card: Annotated[
        Path | None,
        typer.Option(help="A card of your own (Markdown) in place of the one that is written.", callback=there),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody read it; by default only its owner can.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Upload; without it, what would be uploaded is shown.")] = False,
    quiet: Quiet = False,
) -> None:
    """Upload a model to the Hugging Face Hub with a card: data, licence, scores with intervals, leak fraction, limits.

    Without --yes nothing is uploaded: the card and the list of files are shown. The token is that of `hf auth login`,
    or of the environment variable HF_TOKEN.
    """
    from landfuse.interop.hub import push as upload
    from landfuse.mapping.memory import in_bytes

    done = upload(
        model, repository, onnx=onnx, run=run, licence=licence, card=card, public=public, yes=yes,
        progress=not quiet and err.is_terminal,
    )  # fmt: skip
    if not yes:
        say(f"{done.card}\n---\nfiles for the {'public' if public else 'private'} repository {repository}:")
    for name, size in done.files.items():
        say(f"  {name}: {in_bytes(size)}")
    if yes:
        say(f"uploaded: {done.address}")
        hint("landfuse", "pull", repository)
    else:
        say("nothing was uploaded")
        hint("landfuse", *sys.argv[1:], "--yes")


def pull(
    repository: Annotated[str, typer.Argument(help="owner/name, or owner/name@revision: a branch, tag or commit.")],
    output: Annotated[Path | None, into_folder("A new folder; by default NAME.")] = None,
    quiet: Quiet = False,
) -> None:
    """Download a model that `push` uploaded, and check it; the same command continues an interrupted download."""
    from landfuse.interop.hub import pull as download
    from landfuse.mapping.memory import in_bytes

    with downloads(quiet) as progress:
        folder = download(repository, output, progress=progress)
    onnx = folder / "model.onnx"  # runs everywhere
    hint("landfuse", "predict", onnx if onnx.exists() else folder, "SCENE", "-o", "map.tif")
    for path in sorted(folder.iterdir()):
        say(f"file: {path} ({in_bytes(path.stat().st_size)})")
