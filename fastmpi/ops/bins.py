"""Which samples share a micro-batch, and a rank, in C++. Twin: `fastmpi.reference.bins`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastmpi import _C
from fastmpi.ops.arguments import integer_array, sample_arrays

__all__ = ["balanced_bins", "plan_microbatches", "plan_ranks"]


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


def plan_ranks(
    ids: NDArray[np.int64],  # (N,)
    image_slots: NDArray[np.int32],  # (N,)
    offsets: NDArray[np.int64],  # (S + 1,)
    groups: NDArray[np.int64],  # (S,) the group of each sample; any numbers
    num_ranks: int,
    max_tokens: int,
    *,
    share: bool = True,
    costs: NDArray[np.int64] | None = None,  # (N,) of each token, in [0, 2^31)
) -> list[list[NDArray[np.int64]]]:
    """Indices of the samples of each micro-batch of each rank: every sample once, ascending.

    Groups stay whole: a group is on one rank, and in one micro-batch unless it alone exceeds
    `max_tokens`. Ranks have merged tokens as equal as it finds, and all have the same number of
    micro-batches, as few as it finds and equal too; a rank with fewer groups than that has empty
    ones. What a set of samples costs is its merged tokens: groups with a long common beginning come
    together where that makes the largest rank smaller. With `costs` ranks are balanced by those of
    their merged tokens instead (of tokens that merge the first counts); micro-batches are cut by
    tokens all the same. Deterministic; errors as for `plan_microbatches`.
    """
    more = () if costs is None else (integer_array("costs", costs, np.int64),)
    return _C.plan_ranks(
        *sample_arrays(ids, image_slots, offsets),
        integer_array("groups", groups, np.int64),
        num_ranks,
        max_tokens,
        share,
        *more,
    )


def balanced_bins(
    costs: NDArray[np.int64],  # (n,) not negative
    num_bins: int,
) -> NDArray[np.int32]:
    """The bin of each cost (n,), so that the costliest bin is as cheap as it finds.

    Karmarkar and Karp's largest differencing, then moves and exchanges between bins; up to 16 costs
    are searched for the best partition. Deterministic.
    """
    return _C.balanced_bins(integer_array("costs", costs, np.int64), num_bins)
