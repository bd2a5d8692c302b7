"""`ops.positions`: 3-D positions of Qwen-VL for a padded batch, 64 rows of 4096 with two images.

`get_rope_index` is transformers' own; it returns the same numbers as int64. `numpy` knows where the
images are and assigns slices: the least that Python can do. Ours and numpy's arm write to memory
that is used again; `fastmpi new` asks for new memory. All run on one thread, but `fastmpi threads`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastmpi.benchmarks.harness import Case, Outputs, Run
from fastmpi.ops.positions import mrope_batch_positions
from fastmpi.reference import positions as reference

ROWS, LENGTH = 64, 4096
GRIDS = ((1, 48, 64), (1, 32, 32))  # of each row's images: 768 and 256 placeholders
MERGE = 2


@dataclass(frozen=True)
class Rows:
    """B rows of L tokens, of different lengths."""

    image_slots: NDArray[np.int32]  # (B, L)
    lengths: NDArray[np.int64]  # (B,)
    grids: NDArray[np.int32]  # (2 B, 3)
    starts: NDArray[np.int64]  # (B, 2) of the images


def cases(device: torch.device, small: bool) -> list[Case]:
    """The same on any device, since the CPU does it."""
    rows = cache(draw)
    arms: dict[str, Callable[[], Run]] = {
        "fastmpi": lambda: partial(_ours, rows(), new_positions()),
        "fastmpi new": lambda: partial(_ours, rows(), None),
        "fastmpi threads": lambda: partial(_ours, rows(), new_positions(), None),
        "get_rope_index": lambda: _get_rope_index(rows()),
        "numpy": lambda: partial(_numpy, rows(), new_positions()),
    }
    return [Case(name=f"{ROWS} x {LENGTH}, 2 images", arms=arms, exact=lambda: _exact(rows()))]


def draw() -> Rows:
    """Two images at random places in each row, and up to 64 tokens of padding."""
    rng = np.random.default_rng(0)
    slots = np.full((ROWS, LENGTH), -1, np.int32)
    tokens = [t * h * w // MERGE**2 for t, h, w in GRIDS]
    lengths = LENGTH - rng.integers(0, 64, ROWS)
    starts = np.stack([rng.integers(20, 400, ROWS), rng.integers(1200, 2000, ROWS)], 1)
    for row in range(ROWS):
        for image, start in enumerate(starts[row]):
            slots[row, start : start + tokens[image]] = len(GRIDS) * row + image
    return Rows(slots, lengths, np.array(GRIDS * ROWS, np.int32), starts)


def _exact(rows: Rows) -> Outputs:
    found = reference.mrope_batch_positions(rows.image_slots, rows.lengths, rows.grids, MERGE)
    return {"positions": torch.from_numpy(found)}


def new_positions() -> NDArray[np.int32]:
    return np.zeros((3, ROWS, LENGTH), np.int32)


def _ours(rows: Rows, out: NDArray[np.int32] | None, num_threads: int | None = 1) -> Outputs:
    found = mrope_batch_positions(
        rows.image_slots, rows.lengths, rows.grids, MERGE, out=out, num_threads=num_threads
    )
    return {"positions": torch.from_numpy(found)}


def _get_rope_index(rows: Rows) -> Run:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

    small: dict[str, Any] = {"depth": 1, "spatial_merge_size": MERGE}
    with torch.device("meta"):  # positions need the configuration only
        model = Qwen2_5_VLModel(
            Qwen2_5_VLConfig(text_config={"num_hidden_layers": 1}, vision_config=small)
        )
    inside = torch.arange(LENGTH) < torch.from_numpy(rows.lengths)[:, None]
    arguments = {
        "input_ids": torch.zeros(ROWS, LENGTH, dtype=torch.long),
        "mm_token_type_ids": torch.from_numpy((rows.image_slots >= 0).astype(np.int32)),
        "image_grid_thw": torch.from_numpy(rows.grids.astype(np.int64)),
        "attention_mask": inside.long(),
    }
    return lambda: {"positions": model.get_rope_index(**arguments)[0]}


def _numpy(rows: Rows, positions: NDArray[np.int32]) -> Outputs:
    counting = np.arange(LENGTH, dtype=np.int32)
    for row, (length, starts) in enumerate(
        zip(rows.lengths.tolist(), rows.starts.tolist(), strict=True)
    ):
        axes = positions[:, row]
        done = position = 0
        for start, (_, h, w) in zip(starts, GRIDS, strict=True):
            height, width = h // MERGE, w // MERGE
            axes[:, done:start] = counting[position : position + start - done]
            position += start - done
            done = start + height * width
            image = axes[:, start:done].reshape(3, height, width)
            image[0] = position
            image[1] = counting[position : position + height, None]
            image[2] = counting[position : position + width]
            position += max(height, width)
        axes[:, done:length] = counting[position : position + length - done]
        axes[:, length:] = 0
    return {"positions": torch.from_numpy(positions)}
