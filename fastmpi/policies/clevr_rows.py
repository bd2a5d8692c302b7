"""Rows of a ClevrPolicy data set: a scene, a policy's question about it, the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastmpi.data.scenes import Scene
from fastmpi.policies.clevr_scenes import balanced
from fastmpi.policies.clevr_text import question_text, reasoning_text
from fastmpi.policies.clevr_tree import ClevrTree

Row = dict[str, Any]


def training_rows(
    rng: np.random.Generator,
    trees: Sequence[ClevrTree],
    scenes: Sequence[Scene],
    count: int,
    style: str,
) -> list[Row]:
    """`count` rows of each tree, on `scenes` balanced over its leaves; all shuffled together."""
    rows = [
        make_row("train", number, tree, scenes[number], style)
        for tree in trees
        for number in balanced(rng, tree, scenes, count)
    ]
    return [rows[i] for i in rng.permutation(len(rows))]


def testing_rows(
    trees: Sequence[ClevrTree], assigned: Sequence[tuple[Scene, int]], style: str
) -> list[Row]:
    """One row for each scene, on the policy it was made for."""
    return [
        make_row("test", number, trees[policy], scene, style)
        for number, (scene, policy) in enumerate(assigned)
    ]


def spread(rng: np.random.Generator, rows: Sequence[Row], count: int) -> list[Row]:
    """`count` of the rows, in which policies and their outcomes take turns."""
    turns: Counter[tuple[str, str]] = Counter()
    keyed = []
    for index, row in enumerate(rows):
        place = (row["policy_id"], row["leaf"])
        keyed.append((turns[place], float(rng.random()), index))
        turns[place] += 1
    return [rows[index] for _, _, index in sorted(keyed)[:count]]


def make_row(split: str, number: int, tree: ClevrTree, scene: Scene, style: str) -> Row:
    """The question of one policy about scene `number` of `split`, with its gold reasoning.

    The column `leaf` is the place of the answer in the tree.
    """
    walk = tree.walk(scene)
    return {
        "id": f"{split}-{number}-{tree.name}",
        "policy_id": tree.name,
        "images": [picture_name(split, number, scene)],
        "prompt": question_text(tree.name, style),
        "reasoning": reasoning_text(walk, style),
        "answer": walk.case,
        "leaf": walk.leaf.id,
    }


def without_reasoning(row: Row) -> Row:
    return {key: value for key, value in row.items() if key != "reasoning"}


def picture_name(split: str, number: int, scene: Scene) -> str:
    """File of a scene's picture in the data set; a CLEVR picture keeps its suffix."""
    suffix = scene.image.suffix if scene.image else ".png"
    return f"images/{split}_{number:06d}{suffix}"
