"""Positions of every token in its own unshared sample, in plain numpy.

The forest repeats no prefix but changes no position either: a branch restarts where its own
sample stands. Still images only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


def mrope_positions(
    image_slots: Int32,  # (N,)
    offsets: Int64,  # (S + 1,)
    grids: Int32,  # (I, 3) t, h, w in patches; t is 1
    merge_size: int,
) -> tuple[Int32, Int32]:
    """3-D positions of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: equals `get_rope_index` of each sample.

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
        i, end, position = int(offsets[sample]), int(offsets[sample + 1]), 0
        while i < end:
            slot = int(image_slots[i])
            if slot < 0:
                positions[:, i] = position
                i, position = i + 1, position + 1
                continue
            tokens = int(tokens_per_image[slot])
            _check_run(image_slots[i : min(i + tokens, end)], tokens, sample, slot)
            rows, columns = int(grids[slot, 1]) // merge_size, int(grids[slot, 2]) // merge_size
            index = np.arange(tokens)
            positions[0, i : i + tokens] = position
            positions[1, i : i + tokens] = position + index // columns
            positions[2, i : i + tokens] = position + index % columns
            within[i : i + tokens] = index
            i, position = i + tokens, position + max(rows, columns)
    return positions, within


def linear_positions(
    image_slots: Int32,  # (N,)
    offsets: Int64,  # (S + 1,)
    tokens_per_image: Int32,  # (I,)
) -> tuple[Int32, Int32]:
    """1-D positions 0, 1, 2 ... of each sample in all three rows, as LLaVA counts them.

    Returns positions (3, N) and the index of each placeholder inside its image (N,), 0 for text.
    """
    line = np.zeros(len(image_slots), np.int32)
    within = np.zeros(len(image_slots), np.int32)
    for sample in range(len(offsets) - 1):
        start, end = int(offsets[sample]), int(offsets[sample + 1])
        line[start:end] = np.arange(end - start)
        i = start
        while i < end:
            slot = int(image_slots[i])
            if slot < 0:
                i += 1
                continue
            tokens = int(tokens_per_image[slot])
            _check_run(image_slots[i : min(i + tokens, end)], tokens, sample, slot)
            within[i : i + tokens] = np.arange(tokens)
            i += tokens
    return np.stack([line, line, line]), within


def _check_run(run: Int32, tokens: int, sample: int, slot: int) -> None:
    found = int((run == slot).cumprod().sum())
    if found != tokens:
        raise ValueError(
            f"sample {sample}: image {slot} takes {tokens} placeholders, but a run has {found}"
        )
