"""The stacked baseline: any size, the right middle, and messages for names that do not exist."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse.errors import ModelError
from landfuse.models import stacked
from landfuse.models.base import Modality
from landfuse.models.stacked import Stacked


class _Same(nn.Module):
    """Gives back its first two channels, and so shows what was put in."""

    asked: dict[str, object] = {}

    def __init__(self, **options: object) -> None:
        super().__init__()
        type(self).asked = options
        self.encoder = nn.Identity()

    def forward(self, stack: Tensor) -> Tensor:
        assert stack.shape[-1] % 32 == 0
        return stack[:, :2]


@pytest.mark.parametrize(("view", "core"), [(64, 64), (33, 33), (40, 30), (7, 1)])
def test_logits_lie_where_their_pixels_lie(monkeypatch: pytest.MonkeyPatch, view: int, core: int) -> None:
    monkeypatch.setattr(stacked, "_architectures", lambda: {"unet": _Same})
    model = Stacked({"a": Modality(1), "b": Modality(1, zoom=3)}, 2, Stacked.Settings(view=view, core=core))
    a, b = torch.randn(2, 1, view, view), torch.randn(2, 1, 3 * view, 3 * view)
    halo = (view - core) // 2
    middle = slice(halo, halo + core)
    expected = torch.cat([a, F.avg_pool2d(b, 3)], dim=1)[:, :, middle, middle]
    assert torch.equal(model({"a": a, "b": b}), expected)


@pytest.mark.parametrize("options", [{"architecture": "deeplabv3plus"}, {"encoder": "tu-resnet10t", "view": 48}])
def test_networks_by_name(options: dict[str, object]) -> None:
    model = Stacked({"a": Modality(5)}, 3, Stacked.Settings(**{"view": 32, **options})).eval()
    with torch.no_grad():
        assert model({"a": torch.randn(1, 5, model.view, model.view)}).shape == (1, 3, model.view, model.view)


def test_unknown_names_are_reported() -> None:
    with pytest.raises(ModelError, match=r"no architecture `Unett`(.|\n)*did you mean `Unet`\?"):
        Stacked({"a": Modality(5)}, 3, Stacked.Settings(architecture="Unett"))
    with pytest.raises(ModelError, match=r"encoder `resnet19`(.|\n)*model\.encoder"):
        Stacked({"a": Modality(5)}, 3, Stacked.Settings(encoder="resnet19"))
    with pytest.raises(ModelError, match=r"both odd or both even(.|\n)*set view to 65"):
        Stacked({"a": Modality(5)}, 3, Stacked.Settings(view=64, core=31))


def test_a_bundle_needs_no_pretrained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked, "_architectures", lambda: {"unet": _Same})
    model = Stacked({"a": 5}, 3, weights="imagenet")
    model.load_pretrained(missing_only=True)
    assert _Same.asked["encoder_weights"] is None
    model.load_pretrained()
    assert _Same.asked["encoder_weights"] == "imagenet"


def test_published_weights_are_put_into_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's weights come from a file here, which stands in for the published one."""
    created = timm.create_model

    def from_file(name: str, *, pretrained: bool = False, **options: object) -> nn.Module:
        model: nn.Module = created(name, pretrained=False, **options)
        if pretrained:
            for value in model.state_dict().values():
                value.fill_(7)
        return model

    monkeypatch.setattr(timm, "create_model", from_file)
    torch.manual_seed(0)
    model = Stacked({"a": 5}, 3, encoder="tu-resnet10t", weights="imagenet")
    decoder, drawn = model.network.decoder.state_dict(), torch.get_rng_state()
    before = {name: value.clone() for name, value in decoder.items()}
    model.load_pretrained()
    assert all((value == 7).all() for value in model.network.encoder.state_dict().values())
    assert all(torch.equal(value, before[name]) for name, value in decoder.items())
    assert torch.equal(torch.get_rng_state(), drawn), "what training draws does not depend on it"
