"""Scenes made for an outcome reach it, and chosen scenes are balanced."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmpi.data.layouts import sample_objects
from fastmpi.data.scenes import Scene
from fastmpi.policies.clevr_scenes import balanced, sample_objects_for, sample_scene_for
from fastmpi.policies.clevr_tree import ClevrTree


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 6]), st.integers(1, 6))
def test_objects_reach_the_leaf_they_are_made_for(seed: int, depth: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    tree = ClevrTree.sample(rng, depth, "t")
    for leaf in tree.reachable():
        objects = sample_objects_for(rng, tree.path(leaf.id), count)
        assert len(objects) == count
        assert tree.walk(Scene(tuple(objects))).leaf == leaf


def test_objects_keep_to_their_attributes() -> None:
    only = {"color": ("red", "blue"), "material": ("rubber",)}
    rng = np.random.default_rng(0)
    tree = ClevrTree.sample(rng, 3, "t", {**only, "size": ("small", "large")})
    for leaf in tree.reachable(only):
        scene = sample_scene_for(rng, tree, leaf.id, 3, only, "quadrants")
        assert tree.walk(scene).leaf == leaf
        assert {item.color for item in scene.objects} <= {"red", "blue"}
        assert {item.material for item in scene.objects} == {"rubber"}


def test_an_unreachable_leaf_is_a_value_error() -> None:
    rng = np.random.default_rng(0)
    tree = ClevrTree.sample(rng, 2, "t", {"size": ("small", "large")})
    reachable = {leaf.id for leaf in tree.reachable()}
    (denied,) = [leaf for leaf in tree.leaves() if leaf.id not in reachable]
    with pytest.raises(ValueError, match="no scene of 3 objects"):
        sample_scene_for(rng, tree, denied.id, 3)


def test_chosen_scenes_are_different_and_as_even_as_possible() -> None:
    rng = np.random.default_rng(1)
    tree = ClevrTree.sample(rng, 2, "t")
    scenes = [Scene(tuple(sample_objects(rng, 3))) for _ in range(400)]
    there = Counter(tree.walk(scene).leaf.id for scene in scenes)
    chosen = balanced(rng, tree, scenes, 60)
    assert len(set(chosen)) == 60
    counts = Counter(tree.walk(scenes[i]).leaf.id for i in chosen)
    most = max(counts.values())
    assert all(counts[leaf] >= min(there[leaf], most - 1) for leaf in there)
    assert set(balanced(rng, tree, scenes, 400)) == set(range(400))
    with pytest.raises(ValueError, match="401 scenes are asked for"):
        balanced(rng, tree, scenes, 401)
