"""The leak report: what the test labels were predicted from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from landfuse.rasters.windows import any_within, lattice, summed_area
from landfuse.scenes.split_rules import TEST, TRAIN, VALIDATION, Roles


def leak_fraction(roles: Sequence[Roles], view: int, core: int = 1, stride: int | None = None) -> float:
    """The fraction of test pixels whose logits come from a view which holds a training or validation pixel.

    Args:
        roles: one array per scene.
        view: side of the view, px.
        core: side of the core, px.
        stride: distance between the windows of the lattice, as in mapping; by default the core.

    Returns:
        0..1; NaN if there is no test pixel.
    """
    stride = stride or core
    halo = (view - core) // 2
    leaking = total = 0
    for role in roles:
        height, width = role.shape
        rows = np.array(lattice(0, height, height, core, stride))
        cols = np.array(lattice(0, width, width, core, stride))
        down = np.clip([rows - halo, rows - halo + view], 0, height)
        across = np.clip([cols - halo, cols - halo + view], 0, width)
        leaky = any_within(summed_area((role == TRAIN) | (role == VALIDATION)), down, across)
        # The cores of leaky windows, painted by their corners.
        painted = np.zeros((height + 1, width + 1), dtype=np.int64)
        row, col = rows[np.nonzero(leaky)[0]], cols[np.nonzero(leaky)[1]]
        last_row, last_col = np.minimum(row + core, height), np.minimum(col + core, width)
        for sign, r, c in ((1, row, col), (-1, last_row, col), (-1, row, last_col), (1, last_row, last_col)):
            np.add.at(painted, (r, c), sign)
        covered = painted.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0
        leaking += int(((role == TEST) & covered).sum())
        total += int((role == TEST).sum())
    return leaking / total if total else float("nan")
