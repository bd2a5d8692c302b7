"""Scenes whose outcomes under a tree are balanced.

Uniform scenes reach the deep outcomes of a tree almost never. Drawn scenes are therefore made for
a leaf; of given scenes, those are chosen that spread evenly over the leaves they reach.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from fastmpi.data.layouts import place_objects, sample_objects, unplaced
from fastmpi.data.scenes import CLEVR_ATTRIBUTES, Attributes, Scene, SceneObject
from fastmpi.policies.clevr_tree import Answer, ClevrTree, disturbs, witness_values

MAX_TRIES = 1000


def sample_objects_for(
    rng: np.random.Generator,
    path: Sequence[Answer],
    num_objects: int,
    attributes: Attributes = CLEVR_ATTRIBUTES,
) -> list[SceneObject]:
    """Objects (not placed yet) of a scene that follows `path` to its end.

    One object is drawn among those that remain at the end of the path, the others among those
    that do not turn the scene away from it. `ValueError` where no scene can follow the path.
    """
    values = witness_values(path, attributes)
    if values is None or num_objects < 1:
        raise ValueError(f"no scene of {num_objects} objects reaches this outcome")
    witness = unplaced({name: str(rng.choice(choices)) for name, choices in values.items()})
    others = [_undisturbing(rng, path, attributes, witness) for _ in range(num_objects - 1)]
    others.insert(int(rng.integers(num_objects)), witness)
    return others


def sample_scene_for(
    rng: np.random.Generator,
    tree: ClevrTree,
    leaf_id: str,
    num_objects: int,
    attributes: Attributes = CLEVR_ATTRIBUTES,
    layout: str = "free",
    size: tuple[int, int] | None = None,
) -> Scene:
    """A placed scene that `tree` walks to `leaf_id`; see `layouts.place_objects`."""
    objects = sample_objects_for(rng, tree.path(leaf_id), num_objects, attributes)
    return place_objects(rng, objects, layout, size)


def balanced(
    rng: np.random.Generator, tree: ClevrTree, scenes: Sequence[Scene], count: int
) -> list[int]:
    """Indices of `count` different scenes, spread over the leaves as evenly as they allow.

    Leaves take turns; one whose scenes are used up drops out. Shuffled. `ValueError` where there
    are fewer than `count` scenes.
    """
    if count > len(scenes):
        raise ValueError(f"{count} scenes are asked for, and there are {len(scenes)}")
    groups: dict[str, list[int]] = defaultdict(list)
    for index in rng.permutation(len(scenes)):
        groups[tree.walk(scenes[index]).leaf.id].append(int(index))
    turns = [
        (turn, float(rng.random()), index)  # which leaves get the last, uneven turn is random
        for group in groups.values()
        for turn, index in enumerate(group)
    ]
    chosen = [index for _, _, index in sorted(turns)[:count]]
    return [chosen[i] for i in rng.permutation(count)]


def _undisturbing(
    rng: np.random.Generator,
    path: Sequence[Answer],
    attributes: Attributes,
    witness: SceneObject,
) -> SceneObject:
    for _ in range(MAX_TRIES):
        (item,) = sample_objects(rng, 1, attributes)
        if not disturbs(item, path):
            return item
    return witness  # its copy disturbs nothing
