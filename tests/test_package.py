"""What `import landfuse` gives, and how little it takes."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

import landfuse


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


def test_the_command_line_answers_without_the_large_libraries() -> None:
    code = "import sys; from landfuse.cli import app; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'typer'" in loaded
    for library in ("numpy", "torch", "rasterio", "timm", "sklearn", "lightning", "matplotlib"):
        assert f"'{library}'" not in loaded
