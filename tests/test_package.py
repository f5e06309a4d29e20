"""What `import landfuse` gives, and how little it takes."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

import landfuse
from landfuse.cli import COMMANDS, command


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


LARGE = ("torch", "timm", "lightning", "sklearn", "matplotlib")


def loaded_by(*words: str, code: int = 0) -> set[str]:
    """The modules that are imported when a command has ended with this exit code."""
    source = f"""
import sys
from landfuse.cli import main
sys.argv = ["landfuse", *{words!r}]
try:
    main()
except SystemExit as ended:
    assert (ended.code or 0) == {code}, ended.code
print(",".join(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split(","))


def test_the_help_imports_no_command(place: Path) -> None:
    for words in ((), ("--help",), ("--version",)):
        loaded = loaded_by(*words, code=0 if words else 2)
        assert {name for name in loaded if name.startswith("landfuse.")} == {
            "landfuse.cli", "landfuse.cli.console", "landfuse.errors",
        }  # fmt: skip
        assert not loaded & {*LARGE, "numpy", "pydantic", "yaml"}


def test_a_command_imports_only_what_it_needs(place: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("scene: scene.yaml\nmodel: forest\ntrainig: {}\n")
    for name in COMMANDS:
        assert not loaded_by(name, "--help") & set(LARGE), name
    for words, code in ((("check", str(place)), 0), (("train", str(tmp_path / "recipe.yaml")), 2)):
        assert not loaded_by(*words, code=code) & set(LARGE), words


def test_each_command_is_found_and_described() -> None:
    for name in COMMANDS:
        found = command(name)
        assert found.name == name
        assert found.help
