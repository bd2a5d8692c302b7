"""Fixed inputs through every op: what `callgrind` counts for test_instructions.py.

usage: count_instructions.py EXTENSION

A call of `getppid`, which nothing else calls, stands before and after each op, and callgrind
writes out its counts whenever it is called.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

EDGE = os.getppid


def prompts_and_responses(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """6 prompts of 300 tokens, 8 responses of 100 tokens each: ids, image slots, offsets."""
    samples, slots = [], []
    for image in range(6):
        prompt = rng.integers(0, 50_000, 300)
        for _ in range(8):
            samples.append(np.concatenate([prompt, rng.integers(0, 50_000, 100)]))
            slots.append(np.full(400, -1))
            slots[-1][20:84] = image
    return (
        np.concatenate(samples).astype(np.int64),
        np.concatenate(slots).astype(np.int32),
        np.arange(0, 48 * 400 + 1, 400, dtype=np.int64),
    )


def ops(c: Any) -> dict[str, Callable[[], Any]]:
    rng = np.random.default_rng(0)
    ids, slots, offsets = prompts_and_responses(rng)
    groups = np.repeat(np.arange(6), 8)
    grids = np.tile(np.array([[1, 16, 16]], np.int32), (6, 1))
    tokens = np.full(6, 64, np.int32)
    padded = slots.reshape(48, 400)
    lengths = np.full(48, 400, np.int64)
    positions = np.zeros((3, 48, 400), np.int32)
    _, row_slots, _, parent, _ = c.build_forest(ids, slots, offsets, True, 1)
    _, within = c.mrope_forest_positions(row_slots, parent, grids, 2)
    short_ids = np.where(rng.random(20_000) < 0.01, 1, ids[0])
    shown = np.resize(np.arange(6, dtype=np.int32), np.count_nonzero(short_ids == 1))
    ends, shown_ends = np.array([0, 20_000]), np.array([0, len(shown)])
    expanded, expanded_ends, _ = c.expand_placeholders(
        short_ids, ends, 1, shown, shown_ends, tokens
    )
    costs = rng.integers(100, 5000, 2000)
    keys = np.resize(rng.integers(0, 256, (500, 16)).astype(np.uint8), (2000, 16))
    sizes = rng.integers(30, 3000, (2000, 2))
    pictures = [rng.integers(0, 256, (90, 120, 3)).astype(np.uint8) for _ in range(2)]
    rule, values = (14, 2, 56 * 56, 112 * 84), np.ones((3, 256), np.float32)
    count = int(c.patch_grids(np.array([[90, 120]] * 2), *rule).prod(axis=1).sum())
    as_bytes, as_floats = (np.empty((count, n * 588), t) for n, t in [(1, np.uint8), (2, "f4")])
    crops, resized = np.empty((2, 3, 56, 56), np.uint8), np.empty((100, 80, 3), np.uint8)
    return {
        "build_forest": lambda: c.build_forest(ids, slots, offsets, True, 1),
        "plan_microbatches": lambda: c.plan_microbatches(ids, slots, offsets, 2500, True),
        "plan_ranks": lambda: c.plan_ranks(ids, slots, offsets, groups, 2, 2500, True),
        "balanced_bins": lambda: c.balanced_bins(costs, 16),
        "mrope_positions": lambda: c.mrope_positions(slots, offsets, grids, 2, 1),
        "mrope_batch_positions": lambda: c.mrope_batch_positions(
            padded, lengths, grids, 2, 1, positions
        ),
        "mrope_forest_positions": lambda: c.mrope_forest_positions(row_slots, parent, grids, 2),
        "linear_positions": lambda: c.linear_positions(slots, offsets, tokens, 1),
        "linear_forest_positions": lambda: c.linear_forest_positions(row_slots, parent, tokens),
        "expand_placeholders": lambda: c.expand_placeholders(
            short_ids, ends, 1, shown, shown_ends, tokens
        ),
        "assign_image_slots": lambda: c.assign_image_slots(
            expanded, expanded_ends, 1, shown, shown_ends, tokens
        ),
        "distinct_keys": lambda: c.distinct_keys(keys),
        "feature_rows": lambda: c.feature_rows(row_slots, within[:], tokens),
        "content_hash": lambda: c.content_hash(ids, [1, 2], 2**64 - 1),
        "patch_grids": lambda: c.patch_grids(sizes, *rule),
        "image_patches": lambda: c.image_patches(pictures, *rule, 1, None, True, 1, as_bytes),
        "image_patches_as_floats": lambda: c.image_patches(
            pictures, *rule, 2, values, True, 1, as_floats
        ),
        "image_crops": lambda: c.image_crops(pictures, 56, 56, 56, None, True, 1, crops),
        "resize_image": lambda: c.resize_image(pictures[0], True, 1, resized),
        "expand_patches": lambda: c.expand_patches(as_bytes, values, 2, 1, as_floats),
    }


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("fastmpi._C", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    for op in ops(load(Path(sys.argv[1]))).values():
        op()  # once before: first calls allocate
        EDGE()
        op()
        EDGE()
