"""The models as plain modules: channels as numbers, settings as keywords, images of any size."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import landfuse as lf
from landfuse.errors import ModelError, SettingsError
from landfuse.models.base import FusionModel, Modality
from landfuse.models.settings import RefNetSettings

TINY = {"embed_dim": 32, "depth": 4, "num_heads": 2, "global_attn_indexes": (1, 3)}
DENSE: dict[str, dict[str, Any]] = {
    "RefNet": {"encoder": "resnet18", "width": 8, "view": 64},
    "Stacked": {"architecture": "Linknet", "view": 64},
    "MFNet": {"view": 64, "encoder_options": TINY},
    "Forest": {"trees": 3, "context": ()},
}
PATCH: dict[str, dict[str, Any]] = {"TwoBranch": {"view": 7, "width": 8}, "Bdgf": {"view": 7, "core": 3, "width": 16}}


def make(name: str, modalities: Mapping[str, int | Modality] | None = None, **more: Any) -> FusionModel:
    torch.manual_seed(0)
    kind = getattr(lf.models, name)
    model: FusionModel = kind(modalities or {"s2": 4, "s1": 2}, classes=3, **(DENSE | PATCH)[name] | more)
    return model.eval()


def images(height: int, width: int, batch: int = 2, **zooms: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(batch, channels, height * zooms.get(name, 1), width * zooms.get(name, 1), generator=random)
        for name, channels in (("s2", 4), ("s1", 2))
    }


def test_models_are_attributes_that_import_nothing_before_they_are_used() -> None:
    code = """
import sys
sys.modules["torch"] = None
import landfuse as lf
assert "models" in dir(lf) and "RefNet" in dir(lf.models)
assert lf.models.MODELS is lf.MODELS
try:
    lf.models.RefNett
except AttributeError as error:
    assert "RefNett" in str(error)
del sys.modules["torch"]
lf.models.TwoBranch({"a": 1}, 2)
assert not {"timm", "sklearn", "segmentation_models_pytorch"} & sys.modules.keys()
from landfuse.models import FusionModel, Modality, TwoBranch
assert issubclass(TwoBranch, FusionModel)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", [*DENSE, *PATCH])
def test_keywords_are_the_settings(name: str) -> None:
    made = make(name)
    settings = made.Settings(**(DENSE | PATCH)[name])
    torch.manual_seed(0)
    same = type(made)({"s2": Modality(4), "s1": Modality(2)}, 3, settings).eval()  # type: ignore[call-arg,arg-type]
    assert same.modalities == made.modalities == {"s2": Modality(4, 1), "s1": Modality(2, 1)}
    for key, value in same.state_dict().items():
        assert torch.equal(value, made.state_dict()[key]), key
    shown = inspect.signature(type(made)).parameters
    assert list(shown) == ["modalities", "classes", *made.Settings.model_fields]
    for key, field in made.Settings.model_fields.items():
        assert shown[key].default == field.get_default(call_default_factory=True)
    again = pickle.loads(pickle.dumps(made))
    size = (made.view, made.view)
    with torch.no_grad():
        assert torch.equal(again(images(*size)), made(images(*size)))


def test_wrong_calls_are_refused_in_words() -> None:
    RefNet, TwoBranch = lf.models.RefNet, lf.models.TwoBranch
    with pytest.raises(SettingsError, match=r"RefNet: unknown key `encodr`; did you mean `encoder`\?"):
        RefNet({"s2": 10, "s1": 2}, classes=8, encodr="resnet50")
    with pytest.raises(SettingsError, match="`width` is 'wide'"):
        TwoBranch({"s2": 10}, 2, width="wide")
    with pytest.raises(SettingsError, match=r"TwoBranch got RefNetSettings after its classes(.|\n)*setting=value"):
        TwoBranch({"s2": 10}, 2, RefNetSettings())  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="and keywords too"):
        TwoBranch({"s2": 10}, 2, TwoBranch.Settings(), view=7)
    with pytest.raises(ModelError, match="no modality"):
        TwoBranch({}, 2)
    with pytest.raises(ModelError, match="`s2` has 0 channels"):
        TwoBranch({"s2": 0}, 2)
    with pytest.raises(ModelError, match=r"named 's2\.l2a'(.|\n)*letters"):
        TwoBranch({"s2.l2a": 3}, 2)
    with pytest.raises(ModelError, match="0 classes"):
        TwoBranch({"s2": 3}, 0)


@pytest.mark.parametrize("name", list(DENSE))
@pytest.mark.parametrize("size", [(64, 64), (50, 61), (33, 64), (7, 9)])
def test_dense_models_take_any_size(name: str, size: tuple[int, int]) -> None:
    model = make(name)
    with torch.no_grad():
        logits = model(images(*size))
    assert logits.shape == (2, 3, *size)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", ["RefNet", "Stacked", "MFNet"])
def test_a_core_takes_the_halo_off_images_of_any_size(name: str) -> None:
    whole, cut = make(name), make(name, core=40)
    with torch.no_grad():
        assert torch.equal(cut(images(50, 61)), whole(images(50, 61))[:, :, 12:-12, 12:-12])
    with pytest.raises(ModelError, match=r"20 x 61 px(.|\n)*more than 24 px"):
        cut(images(20, 61))


@pytest.mark.parametrize("name", ["Stacked", "MFNet", "Forest"])
def test_finer_modalities_of_any_size(name: str) -> None:
    model = make(name, {"s2": Modality(4, zoom=2), "s1": 2})
    with torch.no_grad():
        assert model(images(30, 21, s2=2)).shape == (2, 3, 30, 21)
    with pytest.raises(ModelError, match=r"`s1` came as \(2, 2, 42, 60\)(.|\n)*\(2, 30, 21\)"):
        model(images(30, 21, s2=2) | {"s1": torch.zeros(2, 2, 42, 60)})
    with pytest.raises(ModelError, match=r"`s2` came as \(2, 4, 61, 42\)"):
        model(images(30, 21) | {"s2": torch.zeros(2, 4, 61, 42)})


def test_where_a_forest_looks() -> None:
    forest = make("Forest", {"s2": Modality(4, zoom=2), "s1": 2})
    assert isinstance(forest, lf.models.Forest)
    pixels = images(1, 1, batch=200, s2=2)
    forest.fit([(pixels, (pixels["s1"][:, 0] > 0).to(torch.uint8))], seed=0)
    whole = images(6, 5, s2=2)
    with torch.no_grad():
        one = forest({"s2": whole["s2"][:, :, 8:10, 6:8], "s1": whole["s1"][:, :, 4:5, 3:4]})
        assert torch.equal(forest(whole)[:, :, 4:5, 3:4], one)
    torch.manual_seed(0)
    again = make("Forest", {"s2": Modality(4, zoom=2), "s1": 2})
    assert isinstance(again, lf.models.Forest)
    dense = {name: value.transpose(0, 1).flatten(1, 2)[None] for name, value in pixels.items()}  # one column of 200
    again.fit([(dense, (dense["s1"][:, 0] > 0).to(torch.uint8))], seed=0)
    assert torch.equal(again.threshold, forest.threshold), "whole images and single pixels train alike"


@pytest.mark.parametrize("name", list(PATCH))
def test_patch_classifiers_say_which_size_they_take(name: str) -> None:
    model = make(name)
    with torch.no_grad():
        assert model(images(7, 7)).shape == (2, 3, model.core, model.core)
    with pytest.raises(ModelError, match=r"64 x 64 px; this \w+ looks at 7 x 7 px(.|\n)*another `view`"):
        model(images(64, 64))


def test_mfnet_says_how_large_images_may_be() -> None:
    with pytest.raises(ModelError, match=r"80 x 64 px(.|\n)*up to 64 px(.|\n)*view=80"):
        make("MFNet")(images(80, 64))


@pytest.mark.parametrize("name", [*DENSE, *PATCH])
def test_images_that_do_not_fit_are_refused(name: str) -> None:
    model = make(name)
    good = images(model.view, model.view)
    for wrong, found in (
        ({"s2": good["s2"]}, "`s1` came as only s2"),
        ({**good, "s1": good["s2"]}, "`s1` came as"),
        ({**good, "s1": good["s1"][0]}, "`s1` came as"),
    ):
        with pytest.raises(ModelError, match=found):
            model(wrong)
