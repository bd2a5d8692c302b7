"""Positions of every token in its own sample, in C++. Twin: `fastmpi.reference.positions`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastmpi import _C
from fastmpi.ops.arguments import integer_array
from fastmpi.ops.threads import thread_count

__all__ = [
    "linear_forest_positions",
    "linear_positions",
    "mrope_batch_positions",
    "mrope_forest_positions",
    "mrope_positions",
]

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


def mrope_positions(
    image_slots: Int32,  # (N,) index of the image a placeholder shows, -1 for text
    offsets: Int64,  # (S + 1,) sample s is the tokens offsets[s]:offsets[s + 1]
    grids: Int32,  # (I, 3) t, h, w in patches; t is 1
    merge_size: int,
    *,
    num_threads: int | None = None,
) -> tuple[Int32, Int32]:
    """3-D positions of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: `get_rope_index` of each sample alone.

    Returns positions (3, N): temporal, height, width; and the index of each placeholder inside its
    image (N,), 0 for text. A run of one slot may hold the same image several times. A `ValueError`
    names the sample and the image where a run is no whole number of images, a slot has no grid, a
    grid is a video's (t > 1) or no multiple of `merge_size`.
    """
    return _C.mrope_positions(
        integer_array("image_slots", image_slots, np.int32),
        integer_array("offsets", offsets, np.int64),
        integer_array("grids", grids, np.int32, ndim=2),
        merge_size,
        thread_count(num_threads),
    )


def linear_positions(
    image_slots: Int32,  # (N,)
    offsets: Int64,  # (S + 1,)
    tokens_per_image: Int32,  # (I,)
    *,
    num_threads: int | None = None,
) -> tuple[Int32, Int32]:
    """1-D positions 0, 1, 2 ... of each sample in all three axes, as LLaVA counts them.

    Returns positions (3, N) and the index of each placeholder inside its image (N,), 0 for text;
    errors as for `mrope_positions`.
    """
    return _C.linear_positions(
        integer_array("image_slots", image_slots, np.int32),
        integer_array("offsets", offsets, np.int64),
        integer_array("tokens_per_image", tokens_per_image, np.int32),
        thread_count(num_threads),
    )


def mrope_batch_positions(
    image_slots: Int32,  # (B, L), padded on the right with anything
    lengths: Int64,  # (B,) tokens of each sample
    grids: Int32,  # (I, 3)
    merge_size: int,
    *,
    out: Int32 | None = None,  # (3, B, L), memory that is used again
    num_threads: int | None = None,
) -> Int32:
    """The positions of `mrope_positions` for padded samples (3, B, L), 0 in the padding."""
    slots = integer_array("image_slots", image_slots, np.int32, ndim=2)
    if out is None:
        out = np.empty((3, *slots.shape), np.int32)
    elif not (isinstance(out, np.ndarray) and out.dtype == np.int32 and out.flags.c_contiguous):
        raise ValueError("out must be a C-contiguous array of int32")
    _C.mrope_batch_positions(
        slots,
        integer_array("lengths", lengths, np.int64),
        integer_array("grids", grids, np.int32, ndim=2),
        merge_size,
        thread_count(num_threads),
        out,
    )
    return out


def mrope_forest_positions(
    image_slots: Int32,  # (T,) of the rows of a forest
    parent: Int32,  # (T,) row of the token before it on its path, -1 at a root
    grids: Int32,  # (I, 3)
    merge_size: int,
) -> tuple[Int32, Int32]:
    """`mrope_positions` of the rows of a `ForestLayout`: (3, T) and (T,).

    Every row has the position of its token in every sample that passes through it. A `ValueError`
    names the row where a path shows no whole image.
    """
    return _C.mrope_forest_positions(
        integer_array("image_slots", image_slots, np.int32),
        integer_array("parent", parent, np.int32),
        integer_array("grids", grids, np.int32, ndim=2),
        merge_size,
    )


def linear_forest_positions(
    image_slots: Int32,  # (T,)
    parent: Int32,  # (T,)
    tokens_per_image: Int32,  # (I,)
) -> tuple[Int32, Int32]:
    """`linear_positions` of the rows of a `ForestLayout`: (3, T) and (T,)."""
    return _C.linear_forest_positions(
        integer_array("image_slots", image_slots, np.int32),
        integer_array("parent", parent, np.int32),
        integer_array("tokens_per_image", tokens_per_image, np.int32),
    )
