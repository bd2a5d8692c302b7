"""Where the scenes of a ClevrPolicy data set come from, and which of them a policy gets.

`clevr`: CLEVR's full attributes and pictures, from a CLEVR folder or rendered. `clevr_compact`: the
same in one word a token, for a small base trained on CLEVR's pictures. `tiny`: the small world that
the embedded base reads. The last two have only trees that their base has never trained on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastmpi import assets
from fastmpi.data.scenes import CLEVR_ATTRIBUTES, Attributes, Scene, load_scenes
from fastmpi.policies.clevr_scenes import balanced, sample_scene_for
from fastmpi.policies.clevr_tree import ClevrTree

# A policy chooses its scenes among this many times as many candidates, no more: walking all of
# CLEVR's 70,000 scenes for each policy would take minutes.
CANDIDATES = 5
MAX_TREES = 10_000
PART = re.compile(r"([^\[\]]+)(?:\[([0-9]{0,9}):([0-9]{0,9})\])?")


@dataclass(frozen=True)
class World:
    """What scenes look like, and how policies speak of them."""

    style: str
    layout: str
    image_size: tuple[int, int]
    num_objects: tuple[int, int]
    attributes: Attributes  # of the scenes
    asked: Attributes  # that conditions may ask for
    outcomes: Sequence[str] | None
    held_out: bool  # only trees that a small base has never trained on
    picture_size: tuple[int, int] = (96, 96)  # of a rendered object that a policy shows


WORLDS: Mapping[str, World] = {
    "clevr": World(
        "full", "free", (480, 320), (3, 10), CLEVR_ATTRIBUTES, CLEVR_ATTRIBUTES, None, False
    ),
    "tiny": World(
        "compact",
        "quadrants",
        assets.PICTURE_SIZE,
        (min(assets.NUM_OBJECTS), max(assets.NUM_OBJECTS)),
        {**assets.ATTRIBUTES, "material": (assets.MATERIAL,)},
        assets.ATTRIBUTES,
        assets.CASES,
        True,
        (64, 64),
    ),
    "clevr_compact": World(
        "compact",
        "free",
        (240, 160),
        (2, 6),
        CLEVR_ATTRIBUTES,
        CLEVR_ATTRIBUTES,
        assets.CASES,
        True,
    ),
}

Assigned = tuple[Scene, int]
"""A scene, and the number of the policy it was drawn or chosen for."""


def sample_tree(rng: np.random.Generator, depth: int, name: str, world: World) -> ClevrTree:
    """A tree of the world; `ValueError` where no held-out one turns up in `MAX_TREES` draws."""
    for _ in range(MAX_TREES):
        tree = ClevrTree.sample(rng, depth, name, world.asked, world.outcomes)
        if not world.held_out or assets.held_out((n.id, n.value) for n in tree.nodes()):
            return tree
    raise ValueError(f"no held-out tree of depth {depth} in {MAX_TREES} draws")


def world_of(tree: ClevrTree, style: str) -> World:
    """The smallest world of `style` whose conditions include all of the tree's.

    `ValueError` where there is none.
    """
    worlds = [world for world in WORLDS.values() if world.style == style]
    for world in sorted(worlds, key=lambda world: sum(map(len, world.asked.values()))):
        if all(node.value in world.asked.get(node.attribute, ()) for node in tree.nodes()):
            return world
    raise ValueError(f"policy {tree.name}: no world of style {style!r} has all of its values")


def draw_scenes(
    rng: np.random.Generator, trees: Sequence[ClevrTree], count: int, world: World
) -> list[Assigned]:
    """`count` new scenes: policies take turns, and within each its reachable leaves."""
    leaves = [tree.reachable(world.attributes) for tree in trees]
    orders = [rng.permutation(len(reachable)) for reachable in leaves]
    assigned = []
    for number in range(count):
        turn, policy = divmod(number, len(trees))
        order = orders[policy]
        leaf = leaves[policy][order[turn % len(order)]]
        num_objects = int(rng.integers(world.num_objects[0], world.num_objects[1] + 1))
        where = (num_objects, world.attributes, world.layout, world.image_size)
        assigned.append((sample_scene_for(rng, trees[policy], leaf.id, *where), policy))
    return assigned


def choose_scenes(
    rng: np.random.Generator, trees: Sequence[ClevrTree], count: int, scenes: Sequence[Scene]
) -> list[Assigned]:
    """`count` different ones of `scenes`, split among the policies, balanced over their leaves.

    `ValueError` where there are fewer than `count`.
    """
    if count > len(scenes):
        raise ValueError(f"{count} scenes are asked for, and there are {len(scenes)}")
    left = [scenes[i] for i in rng.permutation(len(scenes))]
    assigned: list[Assigned] = []
    for policy, tree in enumerate(trees):
        share = count // len(trees) + (policy < count % len(trees))
        candidates, left = left[: CANDIDATES * share], left[CANDIDATES * share :]
        chosen = set(balanced(rng, tree, candidates, share))
        assigned += [(candidates[i], policy) for i in sorted(chosen)]
        left += [scene for i, scene in enumerate(candidates) if i not in chosen]
    return [assigned[i] for i in rng.permutation(count)]


def clevr_pools(
    folder: str, train_split: str, test_split: str, rng: np.random.Generator, num_test: int
) -> tuple[list[Scene], list[Scene]]:
    """The scenes to choose training and test rows from; one split is shuffled and cut in two.

    A split is a name or a part of one, "train[1200:]". `ValueError` where two parts overlap.
    """
    train = load_part(folder, train_split)
    if train_split != test_split:
        test = load_part(folder, test_split)
        if {scene.image for scene in train} & {scene.image for scene in test}:
            raise ValueError(f"splits {train_split} and {test_split} have scenes in common")
        return train, test
    order = rng.permutation(len(train))
    if num_test >= len(train):
        raise ValueError(f"{folder}: split {train_split} has {len(train)} scenes in all")
    cut = max(num_test, min(CANDIDATES * num_test, len(train) // 2))
    return [train[i] for i in order[cut:]], [train[i] for i in order[:cut]]


def load_part(folder: str, split: str) -> list[Scene]:
    """The scenes of a split or of a part of one: "train", "train[:1200]", "train[1200:1500]".

    `ValueError` where the part has another form or no scenes.
    """
    found = PART.fullmatch(split)
    if found is None:
        raise ValueError(f"split {split!r} is no name and no part like train[1200:]")
    name, *bounds = found.groups()
    low, high = (int(bound) if bound else None for bound in bounds)
    scenes = load_scenes(folder, name)[low:high]
    if not scenes:
        raise ValueError(f"{folder}: split {split} has no scenes")
    return scenes
