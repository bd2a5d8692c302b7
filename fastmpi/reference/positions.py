"""Positions of every token in its own unshared sample, in plain numpy.

Merging prefixes moves no token: a branch goes on where its own sample stands. Still images only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


def mrope_positions(
    image_slots: Int32,  # (N,) index of the image a placeholder shows, -1 for text
    offsets: Int64,  # (S + 1,) sample s is the tokens offsets[s]:offsets[s + 1]
    grids: Int32,  # (I, 3) t, h, w in patches; t is 1
    merge_size: int,
) -> tuple[Int32, Int32]:
    """3-D positions of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: `get_rope_index` of each sample alone.

    Text counts up in all three axes. An image that starts at position p has temporal position p
    and its merged rows and columns count from p; text goes on at p + max(rows, columns).

    Returns positions (3, N), and the index of each placeholder inside its image (N,), 0 for text.
    A run of one slot is cut after `t * h * w // merge_size**2` tokens, since the same image may
    follow itself; a run that is no whole number of images is a `ValueError`.
    """
    tokens_per_image = grids.prod(axis=1) // merge_size**2
    positions = np.zeros((3, len(image_slots)), np.int32)
    within = np.zeros(len(image_slots), np.int32)
    for sample in range(len(offsets) - 1):
        position = 0
        for i, slot in _walk(sample, image_slots, offsets, tokens_per_image):
            if slot < 0:
                positions[:, i] = position
                position += 1
                continue
            rows, columns = (int(n) // merge_size for n in grids[slot, 1:])
            index = np.arange(rows * columns)
            image = slice(i, i + rows * columns)
            positions[:, image] = position
            positions[1, image] += (index // columns).astype(np.int32)
            positions[2, image] += (index % columns).astype(np.int32)
            within[image] = index
            position += max(rows, columns)
    return positions, within


def linear_positions(
    image_slots: Int32,  # (N,)
    offsets: Int64,  # (S + 1,)
    tokens_per_image: Int32,  # (I,)
) -> tuple[Int32, Int32]:
    """1-D positions 0, 1, 2 ... of each sample in all three axes, as LLaVA counts them.

    Returns positions (3, N) and the index of each placeholder inside its image (N,), 0 for text.
    """
    positions = np.zeros((3, len(image_slots)), np.int32)
    within = np.zeros(len(image_slots), np.int32)
    for sample in range(len(offsets) - 1):
        start, end = offsets[sample], offsets[sample + 1]
        positions[:, start:end] = np.arange(end - start)
        for i, slot in _walk(sample, image_slots, offsets, tokens_per_image):
            if slot >= 0:
                within[i : i + tokens_per_image[slot]] = np.arange(tokens_per_image[slot])
    return positions, within


def mrope_batch_positions(
    image_slots: Int32,  # (B, L), padded on the right with anything
    lengths: Int64,  # (B,)
    grids: Int32,  # (I, 3)
    merge_size: int,
) -> Int32:
    """The positions of `mrope_positions` for padded samples (3, B, L), 0 in the padding."""
    positions = np.zeros((3, *image_slots.shape), np.int32)
    inside = np.arange(image_slots.shape[1]) < lengths[:, None]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    positions[:, inside], _ = mrope_positions(image_slots[inside], offsets, grids, merge_size)
    return positions


def mrope_forest_positions(
    image_slots: Int32,  # (T,)
    parent: Int32,  # (T,) row of the token before it on its path, -1 at a root
    grids: Int32,  # (I, 3)
    merge_size: int,
) -> tuple[Int32, Int32]:
    """`mrope_positions` of every path of a forest, each row where any path has it."""
    return _each_path(
        image_slots, parent, lambda slots, ends: mrope_positions(slots, ends, grids, merge_size)
    )


def linear_forest_positions(
    image_slots: Int32,  # (T,)
    parent: Int32,  # (T,)
    tokens_per_image: Int32,  # (I,)
) -> tuple[Int32, Int32]:
    """`linear_positions` of every path of a forest, each row where any path has it."""
    return _each_path(
        image_slots, parent, lambda slots, ends: linear_positions(slots, ends, tokens_per_image)
    )


def _each_path(
    image_slots: Int32, parent: Int32, positions_of: Callable[[Int32, Int64], tuple[Int32, Int32]]
) -> tuple[Int32, Int32]:
    positions = np.zeros((3, len(parent)), np.int32)
    within = np.zeros(len(parent), np.int32)
    for leaf in sorted(set(range(len(parent))) - set(parent.tolist())):
        path, row = [], leaf
        while row >= 0:
            path.append(row)
            row = int(parent[row])
        rows = np.array(path[::-1])
        positions[:, rows], within[rows] = positions_of(image_slots[rows], np.array([0, len(rows)]))
    return positions, within


def _walk(
    sample: int, image_slots: Int32, offsets: Int64, tokens_per_image: Int32
) -> Iterator[tuple[int, int]]:
    """(row, -1) of each text token and (first row, slot) of each image, in their order."""
    i, end = int(offsets[sample]), int(offsets[sample + 1])
    while i < end:
        slot = int(image_slots[i])
        if slot < 0:
            yield i, -1
            i += 1
            continue
        run = i
        while run < end and image_slots[run] == slot:
            run += 1
        tokens = int(tokens_per_image[slot])
        if (run - i) % tokens:
            raise ValueError(
                f"sample {sample}: image {slot} takes {tokens} placeholders, "
                f"but its run has {run - i}"
            )
        for first in range(i, run, tokens):
            yield first, slot
        i = run
