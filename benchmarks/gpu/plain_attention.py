"""SAM's attention as segment-anything writes it, in a whole network: windows padded before the projections, and all
scores of a block held at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from landfuse_parts import RelativeAttention
from speed_parts import attention, together, windows
from torch import Tensor


def plain_forward(self: RelativeAttention, x: Tensor) -> Tensor:
    """(B, H, W, D) -> the same."""
    if not self.window:
        return attention(x, self)
    cut, rows, columns = windows(x, self.window)
    return together(attention(cut, self), rows, columns, *x.shape[1:3])


@contextmanager
def written_plainly() -> Iterator[None]:
    """All attention of SAM's encoders is computed so, inside the `with` block."""
    ours = RelativeAttention.forward
    RelativeAttention.forward = plain_forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        RelativeAttention.forward = ours  # type: ignore[method-assign]
