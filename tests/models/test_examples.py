"""The examples in the docstrings of the models."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

from landfuse import models
from landfuse.models import MODELS

MODULES = ["landfuse.models", *sorted({kind.__module__ for name, kind in MODELS.items() if models.is_own(name)})]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_registered", {})
    module = import_module(name)
    failed, tried = doctest.testmod(module)
    assert tried
    assert not failed


@pytest.mark.parametrize("name", [name for name in MODELS if models.is_own(name)])
def test_every_model_has_an_example_and_says_its_shapes(name: str) -> None:
    text = MODELS[name].__doc__ or ""
    assert f"lf.models.{MODELS[name].__name__}(" in text
    assert "Raises:" in text
    assert "(B, K, " in text
