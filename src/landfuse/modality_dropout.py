"""Which modalities a training sample goes without: each with its own probability, and never all of them.

Drawing each by itself and redrawing where all are gone would drop each more rarely than was asked for. So each is drawn
with a probability a little higher, such that what is left after redrawing is exactly what was asked for. Of all ways to
do that, it is the one that hangs the modalities together least: beside "never all", each is drawn by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from landfuse.errors import SettingsError


def dropout_of(wanted: float | Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """The probability of each modality that may be dropped; those at 0 are left out.

    Args:
        wanted: one number for all, or name -> probability.
        names: the model's modalities.

    Raises:
        SettingsError: if a name is unknown, or one modality would not always be left.
    """
    chosen = dict(wanted) if isinstance(wanted, Mapping) else dict.fromkeys(names, wanted)
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise SettingsError(
            f"samples.modality_dropout names the modality {', '.join(unknown)}",
            f"those of the recipe: {', '.join(names)}",
            "mend it",
        )
    chosen = {name: chance for name, chance in chosen.items() if chance}
    if chosen and sum(1 - chosen.get(name, 0.0) for name in names) <= 1:
        raise SettingsError(
            f"samples.modality_dropout asks to drop {', '.join(f'{n} at {c:g}' for n, c in chosen.items())}",
            "probabilities that leave one modality in every sample: their sum below the number of modalities less 1",
            "lower them" if len(names) > 1 else "set samples.modality_dropout=0: a single modality cannot be dropped",
        )
    return chosen


def patterns(chances: Sequence[float]) -> NDArray[np.float64]:
    """How often each set of modalities is dropped.

    Args:
        chances: M probabilities, each below 1, whose sum is below M - 1 (or all 0).

    Returns:
        (2^M,): entry s is the probability that exactly the modalities whose bit is set in s are dropped. The last, all
        of them, is 0, and modality m is dropped with probability `chances[m]`.
    """
    p = np.asarray(chances, np.float64)
    raised = p + _redrawn(p) * (1 - p)
    bits = np.arange(1 << p.size)[:, None] >> np.arange(p.size) & 1
    share = np.where(bits, raised, 1 - raised).prod(axis=1)
    share[-1] = 0.0
    return np.asarray(share / share.sum())


def _redrawn(p: NDArray[np.float64]) -> float:
    """c, the share of draws in which all are dropped and which are drawn anew.

    With the raised chances q = p + c (1 - p), what is left after redrawing is (q - c) / (1 - c) = p if c is their
    product. That equation in c is convex and above 0 at c = 0: Newton's steps from there rise to its least root.
    """
    c = 0.0
    for _ in range(100):
        q = p + c * (1 - p)
        rest = float(q.prod()) - c
        slope = sum((1 - p[m]) * math.prod(np.delete(q, m)) for m in range(p.size)) - 1
        step = rest / slope if rest else 0.0
        if abs(step) < 1e-16:
            break
        c -= step
    return c
