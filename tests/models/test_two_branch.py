"""The small baseline: any number of modalities and zooms, and a view that is really looked at."""

from __future__ import annotations

import pytest
import torch

from landfuse.errors import ModelError
from landfuse.models.base import Modality
from landfuse.models.two_branch import TwoBranch


@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_modalities_and_zooms(count: int) -> None:
    modalities = {f"m{i}": Modality(i + 1, zoom=i + 1) for i in range(count)}
    model = TwoBranch(modalities, 5, TwoBranch.Settings(view=3, width=4))
    images = {n: torch.randn(2, m.channels, 3 * m.zoom, 3 * m.zoom) for n, m in modalities.items()}
    assert model(images).shape == (2, 5, 1, 1)


def test_the_whole_view_is_looked_at() -> None:
    model = TwoBranch({"a": Modality(2)}, 3, TwoBranch.Settings(view=9, width=8)).eval()
    image = torch.randn(1, 2, 9, 9, requires_grad=True)
    model({"a": image}).sum().backward()
    assert image.grad is not None
    assert (image.grad.abs().sum(dim=1) > 0).all()


def test_an_even_view_has_no_middle() -> None:
    with pytest.raises(ModelError, match=r"view of 10 px and a core of 1 px(.|\n)*set view to 11"):
        TwoBranch({"a": Modality(2)}, 3, TwoBranch.Settings(view=10))
