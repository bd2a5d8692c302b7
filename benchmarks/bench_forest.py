"""`ops.forest`: samples to a prefix forest and its flat layout, 64 prompts of 16 responses each.

Every arm returns the whole layout: merged tokens, image slots, ends of subtrees, parents, and the
row of every original token. `numpy` compares neighbours as arrays and copies slices: the least that
Python can do, and right only where samples stand in the order of their forest and are equally
long, as they do here. `python_trie` walks a dictionary per token, as trees in Python do. The second
case adds the positions of the merged tokens. All run on one thread, but `fastmpi threads`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray

from fastmpi.benchmarks.harness import Case, Outputs, Run
from fastmpi.ops.forest import ForestLayout, build_forest
from fastmpi.ops.positions import mrope_forest_positions
from fastmpi.reference import forest as reference
from fastmpi.reference import positions as reference_positions

PROMPTS, RESPONSES = 64, 16
PROMPT, RESPONSE = 1200, 400  # tokens
GRID = (1, 48, 64)  # of the image in every prompt
MERGE = 2
IMAGE = 48 * 64 // MERGE**2  # tokens


@dataclass(frozen=True)
class Load:
    """S samples of L tokens."""

    ids: NDArray[np.int64]  # (S L,)
    image_slots: NDArray[np.int32]  # (S L,)
    offsets: NDArray[np.int64]  # (S + 1,)
    grids: NDArray[np.int32]  # (prompts, 3)
    starts: NDArray[np.int64]  # (prompts,) of the image in each


def cases(device: torch.device, small: bool) -> list[Case]:
    """The same on any device, since the CPU does it."""
    load = cache(draw)
    name = f"{PROMPTS} x {RESPONSES}, {PROMPT} + {RESPONSE} tokens"
    return [
        _case(f"layout, {name}", load, False),
        _case(f"layout and positions, {name}", load, True),
    ]


def _case(name: str, load: Callable[[], Load], positions: bool) -> Case:
    arms: dict[str, Callable[[], Run]] = {
        "fastmpi": lambda: partial(_ours, load(), positions),
        "numpy": lambda: partial(_numpy, load(), positions),
    }
    if not positions:
        arms["fastmpi threads"] = lambda: partial(_ours, load(), positions, None)
        arms["python_trie"] = lambda: partial(_python_trie, load())
    return Case(name=name, arms=arms, exact=lambda: _exact(load(), positions))


def draw() -> Load:
    """Random tokens; responses to one prompt begin with different ones, so that they part there."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(1000, 150_000, (PROMPTS, 1, PROMPT))
    prompts[:, 0, 0] = np.arange(PROMPTS)
    ids = np.empty((PROMPTS, RESPONSES, PROMPT + RESPONSE), np.int64)
    ids[:, :, :PROMPT] = prompts
    ids[:, :, PROMPT:] = rng.integers(1000, 150_000, (PROMPTS, RESPONSES, RESPONSE))
    ids[:, :, PROMPT] = np.arange(RESPONSES)
    slots = np.full(ids.shape, -1, np.int32)
    starts = rng.integers(20, PROMPT - IMAGE, PROMPTS)
    for prompt, start in enumerate(starts):
        slots[prompt, :, start : start + IMAGE] = prompt
    offsets = np.arange(PROMPTS * RESPONSES + 1) * ids.shape[2]
    grids = np.array([GRID] * PROMPTS, np.int32)
    return Load(ids.reshape(-1), slots.reshape(-1), offsets, grids, starts)


def _outputs(layout: ForestLayout, positions: NDArray[np.int32] | None = None) -> Outputs:
    arrays = {name: torch.from_numpy(array) for name, array in vars(layout).items()}
    return arrays if positions is None else {"positions": torch.from_numpy(positions), **arrays}


def _exact(load: Load, positions: bool) -> Outputs:
    layout = reference.build_forest(load.ids, load.image_slots, load.offsets)
    if not positions:
        return _outputs(layout)
    unshared, _ = reference_positions.mrope_positions(
        load.image_slots, load.offsets, load.grids, MERGE
    )
    merged = np.empty((3, len(layout.tokens)), np.int32)
    merged[:, layout.flat_index] = unshared
    return _outputs(layout, merged)


def _ours(load: Load, positions: bool, num_threads: int | None = 1) -> Outputs:
    layout = build_forest(load.ids, load.image_slots, load.offsets, num_threads=num_threads)
    if not positions:
        return _outputs(layout)
    rows = layout.image_slots, layout.parent
    return _outputs(layout, mrope_forest_positions(*rows, load.grids, MERGE)[0])


def _numpy(load: Load, positions: bool) -> Outputs:
    starts, length = load.offsets[:-1], int(load.offsets[1])
    shared = common_prefixes(load, length)
    first = np.concatenate([[0], np.cumsum(length - shared)])  # row of each sample's first own one
    total = int(first[-1])
    counting = np.arange(total, dtype=np.int32)
    own = list(zip((starts + shared).tolist(), load.offsets[1:].tolist(), strict=True))
    flat_index = np.empty(len(load.ids), np.int32)
    end = np.empty(total, np.int32)
    parent = counting - 1
    for s, (start, begin) in enumerate(zip(starts.tolist(), first.tolist(), strict=False)):
        branch, stop = own[s]
        if s:
            flat_index[start:branch] = flat_index[start - length : branch - length]
            end[flat_index[branch - length : start]] = begin  # the last path ends where it is left
        flat_index[branch:stop] = counting[begin : first[s + 1]]
        parent[begin] = flat_index[branch - 1] if branch > start else -1
    end[flat_index[-length:]] = total
    layout = ForestLayout(
        tokens=np.concatenate([load.ids[a:b] for a, b in own]),
        image_slots=np.concatenate([load.image_slots[a:b] for a, b in own]),
        subtree_end=end,
        parent=parent,
        flat_index=flat_index,
    )
    return _outputs(layout, _numpy_positions(load, length, own) if positions else None)


def common_prefixes(load: Load, length: int) -> NDArray[np.int64]:
    """(S,) tokens that each sample shares with the one before it."""
    ids, slots = load.ids.reshape(-1, length), load.image_slots.reshape(-1, length)
    same = (ids[1:] == ids[:-1]) & (slots[1:] == slots[:-1])
    shared = np.where(same.all(axis=1), length, same.argmin(axis=1))
    return np.concatenate([[0], shared])


def _numpy_positions(load: Load, length: int, own: list[tuple[int, int]]) -> NDArray[np.int32]:
    """Slices of the positions of each prompt's samples, which are known to be the same."""
    _, rows, columns = (n // MERGE for n in GRID)
    counting = np.arange(length, dtype=np.int32)
    prompts = np.empty((PROMPTS, 3, length), np.int32)
    for axes, start in zip(prompts, load.starts.tolist(), strict=True):
        axes[:, :start] = counting[:start]
        image = axes[:, start : start + IMAGE].reshape(3, rows, columns)
        image[0] = start
        image[1] = counting[start : start + rows, None]
        image[2] = counting[start : start + columns]
        after = start + max(rows, columns)
        axes[:, start + IMAGE :] = counting[after : after + length - start - IMAGE]
    parts = [prompts[a // length // RESPONSES][:, a % length :] for a, _ in own]
    return np.concatenate(parts, axis=1)


def _python_trie(load: Load) -> Outputs:
    """A dictionary of children at every node; the layout from its nodes by numpy."""
    keys = (load.ids * (len(load.grids) + 1) + load.image_slots + 1).tolist()
    children: list[dict[int, int]] = [{}]
    parents, first, path = [-1], [-1], []
    bounds = load.offsets.tolist()
    for begin, end in zip(bounds, bounds[1:], strict=False):
        node = 0
        for i in range(begin, end):
            child = children[node].get(keys[i])
            if child is None:
                child = children[node][keys[i]] = len(children)
                children.append({})
                parents.append(node)
                first.append(i)
            path.append(child)
            node = child
    return _outputs(_laid_out(load, children, parents, first, path))


def _laid_out(
    load: Load,
    children: list[dict[int, int]],
    parents: list[int],
    first: list[int],
    path: list[int],
) -> ForestLayout:
    size = [1] * len(children)
    for node in range(len(children) - 1, 0, -1):
        size[parents[node]] += size[node]
    row, next_row = [-1] * len(children), [0] * len(children)
    for node in range(1, len(children)):
        row[node] = next_row[parents[node]]
        next_row[parents[node]] += size[node]
        next_row[node] = row[node] + 1
    rows = np.array(row, np.int32)
    order = np.argsort(rows[1:]) + 1
    tokens = np.array(first)[order]
    return ForestLayout(
        tokens=load.ids[tokens],
        image_slots=load.image_slots[tokens],
        subtree_end=(rows + np.array(size, np.int32))[order],
        parent=rows[np.array(parents)[order]],
        flat_index=rows[path],
    )
