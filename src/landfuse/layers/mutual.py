"""Mutual learning: branches that see the same pixels teach each other; and how far they disagree.

J branches, P pixels, K classes, Z features. Every loss is a mean over pixels, and 0 where there are none.

Sources: Zhang et al. 2018, "Deep Mutual Learning", doi 10.1109/CVPR.2018.00454, for distillation among peers; Hinton et
al. 2015, arXiv 1503.02531, for the temperature and its square; Lin 1991, doi 10.1109/18.61115, for the divergence.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional as F


def entropy(log_probabilities: Tensor) -> Tensor:
    """Of distributions given by their logarithms, (..., K) -> (...), in nats; 0 log 0 is 0."""
    return torch.special.entr(log_probabilities.exp()).sum(dim=-1)


def teachers(logits: Tensor, temperature: float) -> Tensor:
    """What each branch learns from: the mean of the others' probabilities, weighted by exp(-entropy); no gradient.

    Args:
        logits: (J, P, K), J >= 2.
        temperature: softens the probabilities.

    Returns:
        (J, P, K), probabilities of the classes.
    """
    with torch.no_grad():
        log_probabilities = F.log_softmax(logits / temperature, dim=-1)
        weight = torch.exp(-entropy(log_probabilities))
        others = 1 - torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
        summed = torch.einsum("bj,jpk->bpk", others, weight[..., None] * log_probabilities.exp())
        return summed / torch.einsum("bj,jp->bp", others, weight)[..., None]


def distil(logits: Tensor, temperature: float) -> Tensor:
    """Divergence of the branches (J, P, K) from their teachers: temperature² / J times the sum of
    KL(teacher || branch)."""
    log_probabilities = F.log_softmax(logits / temperature, dim=-1)
    divergence = F.kl_div(log_probabilities, teachers(logits, temperature), reduction="none").sum(dim=-1)
    return temperature**2 * _mean(divergence.mean(dim=0))


def align_direction(features: Tensor) -> Tensor:
    """1 - cosine of the angle between the branches' features, mean over pairs: (J, P, Z) -> scalar."""
    pairs = [F.cosine_similarity(a, b, dim=-1) for a, b in itertools.combinations(features, 2)]
    return _mean((1 - torch.stack(pairs)).mean(dim=0))


def disagreement(log_probabilities: Tensor) -> Tensor:
    """Mean Jensen-Shannon divergence over all pairs of branches, in bits: 0 where they agree, at most 1.

    Args:
        log_probabilities: (J, ..., K), J >= 2.

    Returns:
        (...), 0..1.
    """
    probabilities = log_probabilities.exp()
    pairs = [
        torch.special.entr((probabilities[i] + probabilities[j]) / 2).sum(dim=-1)
        - (entropy(log_probabilities[i]) + entropy(log_probabilities[j])) / 2
        for i, j in itertools.combinations(range(len(probabilities)), 2)
    ]
    return (torch.stack(pairs).mean(dim=0) / math.log(2)).clamp(0, 1)


def _mean(per_pixel: Tensor) -> Tensor:
    return per_pixel.sum() / max(1, per_pixel.numel())
