"""Samples -> prefix forest -> one flat sequence, in plain Python.

Samples whose prefixes agree on (token id, image slot) share those tokens. The nodes lie in
depth-first order, so that a subtree is a range of rows and one integer per row, `subtree_end`,
carries the whole attention pattern: query q sees key k iff k <= q < subtree_end[k].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ForestLayout:
    """A prefix forest of S samples with N tokens, as T <= N flat rows in depth-first order."""

    tokens: Int64  # (T,)
    image_slots: Int32  # (T,) index of the distinct image a placeholder row shows, -1 for text
    subtree_end: Int32  # (T,) first row after the subtree of this row
    parent: Int32  # (T,) row of the token before it on its path, -1 at a root
    flat_index: Int32  # (N,) row of every original token, samples concatenated


def build_forest(
    ids: Int64,  # (N,)
    image_slots: Int32,  # (N,)
    offsets: Int64,  # (S + 1,) sample s is ids[offsets[s]:offsets[s + 1]]
    *,
    share: bool = True,
) -> ForestLayout:
    """Merge equal prefixes of samples; children stand in the order of the first sample with them.

    With `share=False` every sample is a root of its own. Empty samples, identical samples and
    samples that are prefixes of others are legal.
    """
    node_of, nodes, parents = _merge(ids, image_slots, offsets, share)
    size = np.ones(len(nodes), np.int64)
    for node in reversed(range(len(nodes))):  # a child is always younger than its parent
        if parents[node] >= 0:
            size[parents[node]] += size[node]

    row = np.zeros(len(nodes), np.int64)
    next_row = np.zeros(len(nodes) + 1, np.int64)  # where the next child goes; last: the next root
    for node, parent in enumerate(parents):
        row[node] = next_row[parent]
        next_row[parent] += size[node]
        next_row[node] = row[node] + 1

    order = np.argsort(row)  # row -> node
    first = np.asarray(nodes, np.int64)[order]  # an original token that the row stands for
    up = np.asarray(parents, np.int64)[order]
    return ForestLayout(
        tokens=ids[first],
        image_slots=image_slots[first],
        subtree_end=(row + size)[order].astype(np.int32),
        parent=np.where(up >= 0, row[up], -1).astype(np.int32),
        flat_index=row[node_of].astype(np.int32),
    )


def _merge(
    ids: Int64, image_slots: Int32, offsets: Int64, share: bool
) -> tuple[Int64, list[int], list[int]]:
    """Node of each original token, and per node its first original token and its parent."""
    node_of = np.zeros(len(ids), np.int64)
    nodes: list[int] = []
    parents: list[int] = []
    children: dict[tuple[int, int, int], int] = {}
    for sample in range(len(offsets) - 1):
        parent = -1
        if not share:
            children.clear()
        for i in range(offsets[sample], offsets[sample + 1]):
            key = (parent, int(ids[i]), int(image_slots[i]))
            if key not in children:
                children[key] = len(nodes)
                nodes.append(i)
                parents.append(parent)
            parent = node_of[i] = children[key]
    return node_of, nodes, parents
