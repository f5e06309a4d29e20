"""The door to the models: names and settings without torch, each model imported alone, every setting described."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pydantic
import pytest

from landfuse.models import MODELS, SETTINGS, mfnet_weights
from landfuse.models.base import Modality
from landfuse.models.settings import RefNetSettings
from landfuse.settings import Settings, SettingsError, describe, parse
from landfuse.training.recipe import Recipe

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # an import of it fails
from landfuse.models import MODELS, SETTINGS
assert list(MODELS) == list(SETTINGS)
assert "bdgf" in MODELS and "bgdf" not in MODELS and len(MODELS) == 9
SETTINGS["mfnet"](view=64)
"""

ALONE = """
import sys
from landfuse.models import MODELS
MODELS["two_branch"]
assert not {"timm", "sklearn", "segmentation_models_pytorch"} & sys.modules.keys()
"""


@pytest.mark.parametrize("code", [WITHOUT_TORCH, ALONE])
def test_a_model_is_imported_when_it_is_looked_up(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_each_model_has_its_settings() -> None:
    for name, kind in MODELS.items():
        assert kind.Settings is SETTINGS[name]
    with pytest.raises(KeyError):
        MODELS["bgdf"]


def described(kind: type[Settings]) -> Iterator[tuple[str, str | None]]:
    for name, field in kind.model_fields.items():
        yield name, field.description
        if isinstance(field.annotation, type) and issubclass(field.annotation, pydantic.BaseModel):
            yield from described(field.annotation)


@pytest.mark.parametrize("name", list(SETTINGS))
def test_every_setting_is_described(name: str) -> None:
    for setting, text in described(SETTINGS[name]):
        assert text, setting
        assert text.endswith("."), setting


def test_retired_settings_of_refnet() -> None:
    assert parse(RefNetSettings, {"expansion": 2.0, "mlp_ratio": 4}, "recipe.yaml") == RefNetSettings()
    with pytest.raises(SettingsError, match=r"recipe\.yaml: `expansion` no longer exists; SS2D has two"):
        parse(RefNetSettings, {"expansion": 1.5}, "recipe.yaml")


@pytest.mark.parametrize(("name", "preset"), [(name, one) for name, kind in SETTINGS.items() for one in kind.presets])
def test_presets_are_defaults_that_are_written_out(name: str, preset: str) -> None:
    kind, sets = SETTINGS[name], SETTINGS[name].presets[preset]
    chosen = parse(kind, {"preset": preset}, "model")
    assert chosen == kind(**sets) != kind()
    assert parse(kind, {"preset": preset, "width": 64, "view": 9}, "model") == kind(**{**sets, "width": 64, "view": 9})
    with pytest.raises(SettingsError, match=f"`preset` is 'tiny', not one of: {preset}"):
        parse(kind, {"preset": "tiny"}, "model")
    (meaning,) = (row.meaning for row in describe(kind) if row.key == "preset")
    assert all(f"`{key}` {value}" in meaning for key, value in sets.items())
    recipe = parse(Recipe, {"scene": "s.yaml", "model": {"name": name, "preset": preset, "view": 9}}, "recipe")
    assert recipe.model == {"name": name, **sets, "view": 9}
    small, usual = (MODELS[name]({"a": 3, "b": 2}, 4, **one) for one in ({"preset": preset}, {}))  # type: ignore[call-arg]
    assert 3 * sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in usual.parameters())


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_model_is_built_without_fetching_or_hashing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("weights were looked for")

    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(mfnet_weights, "sha256_of", refused)
    settings = {
        "mfnet": {"weights": "random", "view": 32, "encoder_options": {"embed_dim": 32, "depth": 4, "num_heads": 2}}
    }
    kind = MODELS[name]
    kind({"a": Modality(3), "b": Modality(2)}, 4, kind.Settings(**settings.get(name, {})))  # type: ignore[call-arg]
