"""The temporal attention against a plain loop, and what days and gaps do to it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from landfuse.errors import ModelError, SettingsError
from landfuse.models.base import Modality
from landfuse.models.temporal import Temporal, TemporalAttention, day_encoding

DAYS = (3.0, 95.5, 180.0, 400.0)


def attention(heads: int = 2, keys: int = 3, width: int = 6) -> TemporalAttention:
    torch.manual_seed(0)
    return TemporalAttention(DAYS, width, heads, keys).double()


def test_it_is_that_of_a_plain_loop() -> None:
    made, (batch, height, width) = attention(), (2, 2, 3)
    rng = np.random.default_rng(1)
    features, known = rng.normal(size=(batch, 4, 6, height, width)), rng.random((batch, 4, 1, height, width)) < 0.6
    known[0, :, 0, 0, 0], known[1, :, 0, 1, 2] = [False, True, False, False], False
    query, key = (parameter.detach().numpy() for parameter in (made.query, made.key))
    expected = np.zeros((batch, 6, height, width))
    for b, row, col in np.ndindex(batch, height, width):
        seen = [t for t in range(4) if known[b, t, 0, row, col]]
        for head in range(2) if seen else ():
            own = []
            for t in seen:
                place = [
                    math.sin(DAYS[t] / 1000 ** (2 * (i // 2) / 3) + (math.pi / 2 if i % 2 else 0)) for i in range(3)
                ]
                own.append(features[b, t, 3 * head : 3 * head + 3, row, col] + np.float32(place))
            scores = np.array([query[head] @ (key[head] @ one) / math.sqrt(3) for one in own])
            weights = np.exp(scores) / np.exp(scores).sum()
            expected[b, 3 * head : 3 * head + 3, row, col] = weights @ np.array(own)
    found = made(torch.from_numpy(features), torch.from_numpy(known)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


S2 = Modality(9, days=DAYS, per_day=2)  # a channel beside those of days
OTHER = Modality(2)


def network(modalities: dict[str, Modality] | None = None, **settings: int) -> Temporal:
    torch.manual_seed(0)
    given = {"view": 5, "core": 1, "width": 8, "heads": 2, **settings}
    return Temporal(modalities or {"s2": S2, "s1": OTHER}, 3, **given).double().eval()


def images(side: int = 5, batch: int = 3) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    drawn = {
        name: torch.randn(batch, m.channels, side, side, generator=random).double()
        for name, m in (("s2", S2), ("s1", OTHER))
    }
    drawn["s2"][:, 2:4, :2] = torch.nan
    return drawn


@torch.no_grad()
def test_the_order_of_the_dates_is_that_of_their_days() -> None:
    order, seen = [2, 0, 3, 1], images()
    model, other = network(), network({"s2": S2._replace(days=tuple(DAYS[t] for t in order)), "s1": OTHER})
    places = [2 * t + band for t in order for band in range(2)] + [8]
    torch.testing.assert_close(other({**seen, "s2": seen["s2"][:, places]}), model(seen), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(other(seen), model(seen)), "days count"


@torch.no_grad()
def test_what_a_masked_date_holds_changes_no_bit() -> None:
    model, seen = network(), images()
    seen["s2"][:, 4, 2, 2] = torch.nan  # a band is missing, and so is the date
    changed = {**seen, "s2": seen["s2"].clone()}
    changed["s2"][:, 5, 2, 2] = 1e6
    assert torch.equal(model(changed), model(seen))
    changed["s2"][:, 4, 2, 2] = 0
    assert not torch.equal(model(changed), model(seen))


@torch.no_grad()
def test_without_any_date_the_rest_decides() -> None:
    model, seen = network(), images()
    seen["s2"][:] = torch.nan
    before = model(seen)
    assert torch.isfinite(before).all()
    assert not torch.allclose(model({**seen, "s1": seen["s1"] + 1}), before)


@torch.no_grad()
def test_a_whole_image_gets_what_its_views_get() -> None:
    model, seen = network(view=5, core=1), images(side=8, batch=1)
    whole = model(seen)
    assert whole.shape == (1, 3, 4, 4)
    view = model({name: image[:, :, 1:6, 3:8] for name, image in seen.items()})
    torch.testing.assert_close(view[0, :, 0, 0], whole[0, :, 1, 3], rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_a_finer_date_counts_where_all_its_pixels_are_known() -> None:
    model = network({"s2": S2._replace(channels=8, zoom=2)}, view=1)
    image = torch.randn(1, 8, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    image[:, 2, 0, 1] = torch.nan
    changed = image.clone()
    changed[:, 2:4, 1] = 7
    assert torch.equal(model({"s2": changed}), model({"s2": image}))


def test_days_of_two_years_differ() -> None:
    found = day_encoding([10.0, 375.0], 8)
    assert (found[0] - found[1]).abs().max() > 0.3
    assert found[0, :2].tolist() == pytest.approx([math.sin(10), math.cos(10)])


@pytest.mark.parametrize("wrong", [Modality(4, days=DAYS, per_day=2), Modality(4, days=DAYS), Modality(4, per_day=2)])
def test_days_and_channels_must_fit(wrong: Modality) -> None:
    with pytest.raises(ModelError, match=r"the modality `s2` has 4 channels, . on each of . days"):
        network({"s2": wrong})


def test_heads_divide_the_width() -> None:
    with pytest.raises(SettingsError, match="`width` is 8, which the 3 `heads` do not divide"):
        network(heads=3)
