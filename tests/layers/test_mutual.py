"""Mutual learning, against plain loops in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from landfuse.layers import mutual

J, P, K, Z = 3, 5, 4, 6


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(J, P, K, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def features() -> Tensor:
    return torch.randn(J, P, Z, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def entropy(probabilities: list[float]) -> float:
    return -sum(p * math.log(p) for p in probabilities if p)


def softened(logits: Tensor, temperature: float) -> list[list[list[float]]]:
    return [[torch.softmax(row / temperature, -1).tolist() for row in branch] for branch in logits]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation_is_the_weighted_divergence(logits: Tensor, temperature: float) -> None:
    p, total = softened(logits, temperature), 0.0
    for pixel in range(P):
        for branch in range(J):
            others = [j for j in range(J) if j != branch]
            weight = {j: math.exp(-entropy(p[j][pixel])) for j in others}
            teacher = [sum(weight[j] * p[j][pixel][k] for j in others) / sum(weight.values()) for k in range(K)]
            total += sum(q * math.log(q / own) for q, own in zip(teacher, p[branch][pixel], strict=True))
    expected = temperature**2 * total / J / P
    assert float(mutual.distil(logits, temperature)) == pytest.approx(expected, rel=1e-9)


def test_the_surer_branch_teaches_more() -> None:
    sure, unsure = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.3, 0.0]])
    logits = torch.stack([torch.zeros(1, 3), sure, unsure])
    evenly = (sure.softmax(-1) + unsure.softmax(-1))[0, 0] / 2
    assert mutual.teachers(logits, 1.0)[0, 0, 0] > evenly + 0.05


def test_equal_branches_have_nothing_to_learn(logits: Tensor, features: Tensor) -> None:
    same, alike = logits[:1].expand(J, -1, -1), features[:1].expand(J, -1, -1)
    assert float(mutual.distil(same, 2.0)) == pytest.approx(0, abs=1e-12)
    assert float(mutual.align_direction(alike)) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(mutual.disagreement(same.log_softmax(-1)), torch.zeros(P, dtype=torch.float64))


def test_teachers_get_no_gradient(logits: Tensor) -> None:
    logits = logits.requires_grad_()
    assert not mutual.teachers(logits, 2.0).requires_grad
    # With two branches of which one is nothing but a teacher here: d/dz_b of T^2 KL(q || p_b) is T (p_b - q) / J / P.
    gradient = torch.autograd.grad(mutual.distil(logits, 2.0), logits)[0]
    probabilities = torch.softmax(logits.detach() / 2, -1)
    torch.testing.assert_close(gradient, 2.0 * (probabilities - mutual.teachers(logits, 2.0)) / J / P)


def test_directions_are_compared_pair_by_pair(features: Tensor) -> None:
    def cosine(a: Tensor, b: Tensor) -> float:
        return float(sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(float((a * a).sum() * (b * b).sum())))

    pairs = list(itertools.combinations(range(J), 2))
    direction = sum(1 - cosine(features[i, p], features[j, p]) for p in range(P) for i, j in pairs)
    assert float(mutual.align_direction(features)) == pytest.approx(direction / P / 3)


def test_the_gradient_of_directions(features: Tensor) -> None:
    assert torch.autograd.gradcheck(mutual.align_direction, (features.requires_grad_(),))


def test_no_pixels_give_zero_and_zero_gradients() -> None:
    nothing = torch.zeros(J, 0, K, requires_grad=True)
    total = mutual.distil(nothing, 2.0) + mutual.align_direction(nothing)
    total.backward()
    assert float(total.detach()) == 0


def test_disagreement_is_the_mean_divergence_in_bits(logits: Tensor) -> None:
    p = softened(logits, 1.0)
    expected = []
    for pixel in range(P):
        pairs = []
        for i, j in itertools.combinations(range(J), 2):
            middle = [(a + b) / 2 for a, b in zip(p[i][pixel], p[j][pixel], strict=True)]
            pairs.append(entropy(middle) - (entropy(p[i][pixel]) + entropy(p[j][pixel])) / 2)
        expected.append(sum(pairs) / 3 / math.log(2))
    found = mutual.disagreement(logits.log_softmax(-1))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    apart = torch.tensor([[[200.0, 0.0]], [[0.0, 200.0]]]).log_softmax(-1)
    torch.testing.assert_close(mutual.disagreement(apart), torch.ones(1))
