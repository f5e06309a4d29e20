"""What `import landfuse` gives, and how little it takes."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types

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


@pytest.mark.parametrize(
    "code",
    [
        "import landfuse.check, landfuse; print(callable(landfuse.check))",
        "import landfuse; landfuse.check; import landfuse.evaluate, landfuse.check; print(callable(landfuse.check))",
        "from landfuse import check; import landfuse.check; print(callable(check))",
    ],
)
def test_a_function_is_not_hidden_by_the_module_of_its_name(code: str) -> None:
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "True"


def test_the_command_line_answers_without_the_large_libraries() -> None:
    code = "import sys; from landfuse.cli import app; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'typer'" in loaded
    for library in ("numpy", "torch", "rasterio", "timm", "sklearn", "lightning", "matplotlib"):
        assert f"'{library}'" not in loaded
