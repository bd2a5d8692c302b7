"""Samples -> prefix forest -> one flat sequence, in C++. Twin: `fastmpi.reference.forest`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastmpi import _C
from fastmpi.ops.arguments import sample_arrays
from fastmpi.ops.threads import thread_count
from fastmpi.reference.forest import ForestLayout

__all__ = ["ForestLayout", "build_forest"]


def build_forest(
    ids: NDArray[np.int64],  # (N,)
    image_slots: NDArray[np.int32],  # (N,) index of the image a placeholder shows, -1 for text
    offsets: NDArray[np.int64],  # (S + 1,) sample s is ids[offsets[s]:offsets[s + 1]]
    *,
    share: bool = True,
    num_threads: int | None = None,
) -> ForestLayout:
    """Merge equal prefixes of samples, in expected time O(N) and any depth.

    Samples share tokens as long as they agree on (token id, image slot), inside responses too.
    Siblings stand in the order of the first sample that has them. With `share=False` every sample
    is a root of its own. Empty samples, identical samples and samples that are prefixes of others
    are legal. Sizes that disagree and offsets that are no partition are a `ValueError`. Large
    layouts are written by `num_threads` threads (see `ops/threads.py`): the result is the same.
    """
    samples = sample_arrays(ids, image_slots, offsets)
    return ForestLayout(*_C.build_forest(*samples, share, thread_count(num_threads)))
