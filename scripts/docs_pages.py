"""Pages of the site that are generated when it is built: commands, keys of scene files and recipes, models, Python."""

from __future__ import annotations

from typing import Any

from mkdocs.structure.files import File, Files

import landfuse
from landfuse.cli.commands import COMMANDS, command
from landfuse.models import SETTINGS
from landfuse.scenes.scene_keys import SceneSettings
from landfuse.settings import Settings, describe
from landfuse.studies.ablation import AblationSettings
from landfuse.training.recipe import Recipe


def on_files(files: Files, config: Any) -> Files:
    """Called by MkDocs: adds the generated pages."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """Path -> Markdown."""
    models = {f"reference/models/{name}.md": _model(name) for name in SETTINGS}
    return {
        "reference/commands.md": _commands(),
        "reference/scene-file.md": _keys(
            SceneSettings, "Keys of a scene file", "A scene file describes the data: `scene.yaml`."
        ),
        "reference/recipe.md": _keys(
            Recipe,
            "Keys of a recipe",
            "A recipe describes one training: one file is one run. `model` holds `name`, and "
            "the settings of [that model](models/index.md).",
        ),
        "reference/ablation.md": _keys(
            AblationSettings,
            "Keys of an ablation",
            "An ablation names a recipe and what each variant changes in it ([example](../concepts.md#several-runs)).",
        ),
        "reference/models/index.md": _models(),
        **models,
        "reference/python.md": _python(),
    }


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in lines
    )


def _settings(kind: type[Settings]) -> str:
    rows = [[f"`{r.key}`", r.values, f"`{r.default}`" if r.default else "", r.meaning] for r in describe(kind)]
    return _table(["key", "values", "default", "meaning"], rows)


def _keys(kind: type[Settings], title: str, words: str) -> str:
    note = "`a.b` is the key `b` in the section `a`; `[]` stands for each of several, `(kind)` for one of that kind."
    return f"# {title}\n\n{words}\n\n{note}\n\n{_settings(kind)}\n"


def _models() -> str:
    rows = [[f"[{name}]({name}.md)", kind.about, kind.cost] for name, kind in SETTINGS.items()]
    return f"# Models\n\n{_table(['name', 'what it is', 'cost'], rows)}\n"


def _model(name: str) -> str:
    kind = SETTINGS[name]
    home = f"landfuse.models.{landfuse.MODELS[name].__name__}"
    return (
        f"# {name}\n\n{kind.about}; {kind.cost}.\n\n```yaml\nscene: scene.yaml\nmodel: {{name: {name}}}\n```\n\n"
        f"## Settings\n\n{_settings(kind)}\n\n## The network\n\n::: {home}\n    options:\n      heading_level: 3\n"
    )


def _commands() -> str:
    parts = ["# Commands\n"]
    for name, (_, line) in COMMANDS.items():
        shown = command(name)
        rows, usage = [], []
        for param in shown.params:
            if param.param_type_name == "option":
                names = ", ".join(f"`{one}`" for one in [*param.opts, *param.secondary_opts])
                empty = param.default is None or param.default is False or callable(param.default)
                rows.append([names, "" if empty else f"`{param.default}`", param.help or ""])
            else:
                usage.append(str(param.name).upper() if param.required else f"[{str(param.name).upper()}]")
                rows.append([f"`{usage[-1].strip('[]')}`", "", param.help or ""])
        parts.append(
            f"## {name}\n\n{shown.help or line}\n\n```sh\nlandfuse {' '.join([name, *usage])} [OPTIONS]\n```\n"
        )
        parts.append(_table(["argument or option", "default", "meaning"], rows) + "\n")
    return "\n".join(parts)


def _python() -> str:
    names = "\n\n".join(f"::: landfuse.{name}" for name in landfuse.__all__ if not name.startswith("_"))
    return f"# Python\n\n`import landfuse as lf` offers these names.\n\n{names}\n"
