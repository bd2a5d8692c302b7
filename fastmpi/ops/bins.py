"""Which samples share a micro-batch, in C++. Twin: `fastmpi.reference.bins`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastmpi import _C
from fastmpi.ops.arguments import sample_arrays

__all__ = ["plan_microbatches"]


def plan_microbatches(
    ids: NDArray[np.int64],  # (N,)
    image_slots: NDArray[np.int32],  # (N,) index of the image a placeholder shows, -1 for text
    offsets: NDArray[np.int64],  # (S + 1,) sample s is ids[offsets[s]:offsets[s + 1]]
    max_tokens: int,
    *,
    share: bool = True,
) -> list[NDArray[np.int64]]:
    """Indices of the samples of each micro-batch: every sample once, ascending.

    The forest of each micro-batch has at most `max_tokens` rows. Trees are packed whole by best-fit
    decreasing; a tree that alone exceeds the budget is split along its subtrees, each piece
    repeating the path above it. Deterministic. A sample longer than `max_tokens` is a `ValueError`
    with its index and length, since multimodal samples are never truncated.
    """
    return _C.plan_microbatches(*sample_arrays(ids, image_slots, offsets), max_tokens, share)
