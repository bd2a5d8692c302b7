"""The override suite of ClevrPolicy: another policy in context, under the old name.

Each policy gets another tree of the same depth and style. The test rows stay what they are, scene
and question; only their gold answers are those of the new tree. A model that has learnt the name
by heart, and does not read, gives the old answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastmpi.data.scenes import Scene
from fastmpi.policies.clevr_rows import Row
from fastmpi.policies.clevr_tree import ClevrTree
from fastmpi.policies.clevr_world import MAX_TREES, World, sample_tree


def override_trees(
    rng: np.random.Generator, trees: Sequence[ClevrTree], world: World
) -> tuple[ClevrTree, ...]:
    """One new tree for each, with its name and depth, that asks or answers something else.

    `ValueError` where no other tree turns up.
    """
    return tuple(_another(rng, tree, world) for tree in trees)


def override_rows(
    rows: Sequence[Row], trees: Sequence[ClevrTree], scenes: Mapping[str, Scene]
) -> list[Row]:
    """The rows with `answer` and `leaf` of the new trees, and the old answer as `old_answer`."""
    by_name = {tree.name: tree for tree in trees}
    changed = []
    for row in rows:
        walk = by_name[row["policy_id"]].walk(scenes[row["images"][0]])
        new = {"answer": walk.case, "leaf": walk.leaf.id, "old_answer": row["answer"]}
        changed.append({**row, **new})
    return changed


def _another(rng: np.random.Generator, tree: ClevrTree, world: World) -> ClevrTree:
    for _ in range(MAX_TREES):
        drawn = sample_tree(rng, tree.depth, tree.name, world)
        if drawn.root != tree.root:
            return drawn
    raise ValueError(f"policy {tree.name}: no other tree in {MAX_TREES} draws")
