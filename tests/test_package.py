"""What `import landfuse` gives, and how little it takes."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

import landfuse
from landfuse.cli.commands import COMMANDS, command


def test_every_public_name_comes_from_its_home() -> None:
    assert set(landfuse._HOMES) == set(landfuse.__all__) <= set(dir(landfuse))
    for name, home in landfuse._HOMES.items():
        found = getattr(landfuse, name)
        assert found is getattr(importlib.import_module(f"landfuse.{home}"), name)
        assert not isinstance(found, types.ModuleType)
    with pytest.raises(AttributeError, match="'landfuse' has no attribute 'tarin'"):
        _ = landfuse.tarin  # type: ignore[attr-defined]


def test_no_module_has_the_name_of_a_function() -> None:
    here = Path(landfuse.__file__).parent
    assert not {path.stem for path in here.iterdir()} & set(landfuse.__all__)


LARGE = {"torch", "timm", "lightning", "sklearn", "matplotlib"}


def loaded_by(code: str, *words: str) -> set[str]:
    """The modules that a new interpreter has imported after some code; words are those of a command line."""
    source = f"import sys\n{code}\nprint(','.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", source, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split(","))


def loaded_by_command(*words: str, ends_with: int = 0) -> set[str]:
    code = f"""
from landfuse.cli import main
try:
    main()
except SystemExit as ended:
    assert (ended.code or 0) == {ends_with}, ended.code"""
    return loaded_by(code, *words)


def test_the_help_imports_no_command() -> None:
    for word in ("--help", "--version"):
        loaded = loaded_by_command(word)
        assert {name for name in loaded if name.startswith("landfuse.")} == {
            "landfuse.cli", "landfuse.cli.commands", "landfuse.cli.console", "landfuse.errors", "landfuse.extras",
            "landfuse.markup", "landfuse.progress",
        }  # fmt: skip
        assert not loaded & {*LARGE, "numpy", "pydantic", "yaml"}


def test_no_options_need_the_large_libraries() -> None:
    assert (
        not loaded_by("from landfuse.cli.commands import COMMANDS, command\nfor name in COMMANDS: command(name)")
        & LARGE
    )
    assert not loaded_by_command("compare", "--help") & LARGE


def test_check_and_a_refused_recipe_need_no_torch(place: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("scene: scene.yaml\nmodel: forest\ntrainig: {}\n")
    assert not loaded_by_command("check", str(place)) & LARGE
    assert not loaded_by_command("train", str(tmp_path / "recipe.yaml"), ends_with=2) & LARGE
    (tmp_path / "recipe.yaml").write_text("scene: gone.yaml\nmodel: forest\n")
    assert not loaded_by_command("train", str(tmp_path / "recipe.yaml"), ends_with=2) & LARGE


@pytest.mark.parametrize(
    "words", ["report", "compare", "modalities", "export -o x", "predict SCENE -o x", "evaluate x"]
)
def test_what_is_not_there_is_refused_before_anything_is_loaded(words: str, place: Path) -> None:
    name, *rest = words.replace("SCENE", str(place)).split()
    assert not loaded_by_command(name, "gone", *rest, ends_with=2) & {*LARGE, "rasterio", "matplotlib"}


WITHOUT_EXTRAS = """
import sys
from landfuse.extras import _EXTRAS


class Missing:
    @staticmethod
    def find_spec(name, path, target=None):
        if name in sum(_EXTRAS.values(), ()):
            raise ModuleNotFoundError(name, name=name)


sys.meta_path.insert(0, Missing)
"""

NEEDS = """
import numpy as np, landfuse as lf, landfuse.cli
from landfuse.errors import MissingExtraError
missing = set()
for name in lf.__all__:
    try:
        getattr(lf, name)
    except MissingExtraError as error:
        extra = "hub" if name in ("pull", "push") else "train"
        assert f'pip install "landfuse[{extra}]"' in str(error), error
        missing.add(name)
for use in (
    lambda: lf.models.Forest,
    lambda: lf.MODELS["refnet"],
    lambda: lf.train(sys.argv[1] + "/recipe.yaml"),
    lambda: lf.Classifier("forest").fit({"a": np.ones((2, 9, 9))}, np.ones((9, 9), int), np.eye(9, dtype=int) + 1),
):
    try:
        use()
    except MissingExtraError as error:
        missing.add(error.do)
sys.argv[1:] = ["demo", "-q"]
try:
    landfuse.cli.main()
except SystemExit as ended:
    missing.add(str(ended.code))
print(*sorted(missing), sep="|")
"""


def test_without_the_extras_one_message_names_what_to_install(place: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"scene: {place}/scene.yaml\nmodel: forest\n")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS + NEEDS, str(tmp_path)], capture_output=True, text=True, check=False
    )
    needed = ["2", "Bundle", "FusionModel", "Modality", "audit", "load_bundle"]
    needed += ['pip install "landfuse[train]"', "pull", "push"]
    assert "which training and networks need" in done.stderr
    assert done.stdout.strip() == "|".join(needed), done.stderr


def test_each_command_is_found_and_described() -> None:
    for name in COMMANDS:
        found = command(name)
        assert found.name == name
        assert found.help
