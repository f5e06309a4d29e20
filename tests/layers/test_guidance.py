"""What guides a branch: the mix of timesteps and the three operators, against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from landfuse.layers.guidance import CrossAttention, FeatureFusion, GroupChannelAttention, TimestepMix


def test_timesteps_are_mixed_per_channel() -> None:
    torch.manual_seed(0)
    mix = TimestepMix(3, 8, 4)
    assert mix.weights is not None
    nn.init.normal_(mix.weights)
    features = torch.randn(2, 5, 24)
    mixed = torch.zeros(2, 5, 8)
    for channel in range(8):
        fractions = mix.weights[:, channel].exp() / mix.weights[:, channel].exp().sum()
        for t in range(3):
            mixed[..., channel] += fractions[t] * features[..., 8 * t + channel]
    normed = (mixed - mixed.mean(-1, keepdim=True)) / (mixed.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(mix(features), mix.project(normed))


def test_one_timestep_has_nothing_to_learn_about_it() -> None:
    assert [name for name, _ in TimestepMix(1, 6, 4).named_parameters() if "weights" in name] == []


def test_fusion_adds_the_guide_through_a_gate_that_starts_nearly_closed() -> None:
    torch.manual_seed(0)
    fusion = FeatureFusion(6)
    tokens, guide = torch.randn(2, 5, 6), torch.randn(2, 4, 6)  # the first token has no partner
    out = fusion(tokens, guide)
    assert torch.equal(out[:, 0], tokens[:, 0])
    gate = torch.sigmoid(fusion.gate(torch.cat([tokens[:, 1:], guide], dim=-1)))
    torch.testing.assert_close(out[:, 1:], tokens[:, 1:] + gate * fusion.value(guide))
    nn.init.zeros_(fusion.gate.weight)
    torch.testing.assert_close(torch.sigmoid(fusion.gate(torch.zeros(1, 12))), torch.full((1, 6), 0.26894142))


def test_group_weights_sum_to_the_number_of_groups() -> None:
    torch.manual_seed(0)
    attention = GroupChannelAttention(32, groups=8)
    tokens, guide = torch.randn(3, 5, 32), 5 * torch.randn(3, 4, 32)
    between, within = attention.weights(tokens, guide)
    torch.testing.assert_close(between.sum(-1), torch.full((3,), 8.0))
    assert between.std() > 0.01
    out = attention(tokens, guide)
    for channel in (0, 3, 4, 31):
        factor = 1 + between[:, channel // 4] * within[:, channel // 4, channel % 4]
        torch.testing.assert_close(out[..., channel], tokens[..., channel] * factor[:, None])


def test_cross_attention_adds_half_an_answer_at_first_and_none_where_its_amount_is_zero() -> None:
    torch.manual_seed(0)
    cross = CrossAttention(8, heads=2)
    tokens, guide = torch.randn(2, 5, 8), torch.randn(2, 4, 8)
    answer = cross.attention(cross.norm(tokens), cross.norm_guide(guide))
    torch.testing.assert_close(cross(tokens, guide), tokens + 0.46211716 * answer)  # tanh(0.5)
    nn.init.zeros_(cross.amount)
    assert torch.equal(cross(tokens, guide), tokens)


@pytest.mark.parametrize("operator", [FeatureFusion(8), GroupChannelAttention(8, 2, 4), CrossAttention(8, 2)])
def test_gradients_of_every_operator(operator: nn.Module) -> None:
    torch.manual_seed(0)
    operator = operator.double()
    tokens, guide = (torch.randn(1, n, 8, dtype=torch.float64, requires_grad=True) for n in (4, 3))
    assert torch.autograd.gradcheck(operator, (tokens, guide))
