"""The command `models`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from landfuse.cli.console import OwnModel, out, own_model, say, table
from landfuse.errors import SettingsError


def models(
    name: Annotated[str | None, typer.Argument(help="A model, for its settings; by default all are listed.")] = None,
    model: OwnModel = None,
) -> None:
    """List the models; or, of one, its settings with their values, defaults and meaning, and a recipe to begin with."""
    from landfuse.models import SETTINGS, name_of, unknown
    from landfuse.settings import describe

    name = name_of(own_model(model)) if model is not None else name
    if name is None:
        shown = table("models", ["name", "what it is", "cost"], left=["name", "what it is", "cost"])
        for one, kind in SETTINGS.items():
            shown.add_row(one, escape(kind.about or "–"), escape(kind.cost or "–"))
        out.print(shown)
        say("settings of one: landfuse models NAME")
        return
    if name not in SETTINGS:
        raise SettingsError(f"there is no model `{name}`", f"one of: {', '.join(SETTINGS)}", unknown(name))
    kind = SETTINGS[name]
    if kind.about:
        say(f"{name}: {kind.about}; {kind.cost}")
    shown = table(
        f"settings of {name}", ["setting", "values", "default", "meaning"], left=["setting", "values", "meaning"]
    )
    for row in describe(kind):
        shown.add_row(row.key, escape(row.values), escape(row.default), escape(row.meaning))
    out.print(shown)
    say(f"a recipe to begin with:\n\nscene: scene.yaml\nmodel: {{name: {name}}}")
    say(f"\nsettings on the command line win: landfuse train recipe.yaml model.{next(iter(kind.model_fields))}=...")
