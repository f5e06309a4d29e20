"""Mutual learning: branches that see the same pixels teach each other; and how far they disagree.

J branches, P pixels, K classes, Z features. Every loss is a mean over pixels, and 0 where there are none.

Sources: Zhang et al. 2018, "Deep Mutual Learning", doi 10.1109/CVPR.2018.00454, for distillation among peers; Hinton et
al. 2015, arXiv 1503.02531, for the temperature and its square; Park et al. 2019, "Relational Knowledge Distillation",
doi 10.1109/CVPR.2019.00409, for relations among samples; Lin 1991, doi 10.1109/18.61115, for the divergence.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional as F


def entropy(log_shares: Tensor) -> Tensor:
    """Of distributions given by their logarithms, (..., K) -> (...), in nats; 0 log 0 is 0."""
    return torch.special.entr(log_shares.exp()).sum(dim=-1)


def teachers(logits: Tensor, temperature: float, weighted: bool) -> Tensor:
    """What each branch learns from: the mean of the others' shares, the more of the surer ones; without gradient.

    Args:
        logits: (J, P, K), J >= 2.
        temperature: that softens the shares.
        weighted: weigh each by exp(-entropy); else evenly.

    Returns:
        (J, P, K), shares of the classes.
    """
    with torch.no_grad():
        log_shares = F.log_softmax(logits / temperature, dim=-1)
        weight = torch.exp(-entropy(log_shares)) if weighted else torch.ones_like(logits[..., 0])
        others = 1 - torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
        summed = torch.einsum("bj,jpk->bpk", others, weight[..., None] * log_shares.exp())
        return summed / torch.einsum("bj,jp->bp", others, weight)[..., None]


def distil(logits: Tensor, temperature: float, weighted: bool = True) -> Tensor:
    """Divergence of the branches from their teachers: temperature² / J times the sum of KL(teacher || branch).

    Args:
        logits: (J, P, K).
        temperature: as in `teachers`.
        weighted: as in `teachers`.
    """
    log_shares = F.log_softmax(logits / temperature, dim=-1)
    divergence = F.kl_div(log_shares, teachers(logits, temperature, weighted), reduction="none").sum(dim=-1)
    return temperature**2 * _mean(divergence.mean(dim=0))


def distil_evenly(logits: Tensor, temperature: float) -> Tensor:
    """`distil` with all branches weighed alike."""
    return distil(logits, temperature, weighted=False)


def align_entropy(logits: Tensor, temperature: float) -> Tensor:
    """The squared differences of the branches' entropies, summed over pairs; arguments as in `distil`."""
    each = entropy(F.log_softmax(logits / temperature, dim=-1))
    return _mean(torch.stack([(a - b).square() for a, b in itertools.combinations(each, 2)]).sum(dim=0))


def align_direction(features: Tensor) -> Tensor:
    """1 - cosine of the angle between the branches' features, mean over pairs: (J, P, Z) -> scalar."""
    pairs = [F.cosine_similarity(a, b, dim=-1) for a, b in itertools.combinations(features, 2)]
    return _mean((1 - torch.stack(pairs)).mean(dim=0))


def align_relations(features: Tensor) -> Tensor:
    """Squared differences between the branches' matrices of cosines among pixels, mean over entries and pairs.

    Args:
        features: (J, P, Z).
    """
    unit = F.normalize(features, dim=-1)
    cosines = unit @ unit.transpose(1, 2)  # (J, P, P)
    pairs = [(a - b).square().sum() for a, b in itertools.combinations(cosines, 2)]
    return torch.stack(pairs).mean() / max(1, features.shape[1]) ** 2


def disagreement(log_shares: Tensor) -> Tensor:
    """Mean Jensen-Shannon divergence over all pairs of branches, in bits: 0 where they agree, at most 1.

    Args:
        log_shares: (J, ..., K), logarithms of the shares of the classes; J >= 2.

    Returns:
        (...), 0..1.
    """
    shares = log_shares.exp()
    pairs = [
        torch.special.entr((shares[i] + shares[j]) / 2).sum(dim=-1)
        - (entropy(log_shares[i]) + entropy(log_shares[j])) / 2
        for i, j in itertools.combinations(range(len(shares)), 2)
    ]
    return (torch.stack(pairs).mean(dim=0) / math.log(2)).clamp(0, 1)


def _mean(per_pixel: Tensor) -> Tensor:
    return per_pixel.sum() / max(1, per_pixel.numel())
