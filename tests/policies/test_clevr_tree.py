"""The rule that shapes the trees, and how scenes walk them."""

from __future__ import annotations

from itertools import combinations_with_replacement, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmpi.data.scenes import CLEVR_ATTRIBUTES, Scene, SceneObject
from fastmpi.policies.clevr_tree import ClevrTree, Leaf, Node, disturbs

SMALL = {"shape": ("cube", "sphere"), "color": ("red", "blue"), "size": ("small", "large")}
seeds = st.integers(0, 2**32 - 1)


def tree(seed: int, depth: int, **options) -> ClevrTree:
    return ClevrTree.sample(np.random.default_rng(seed), depth, "test", **options)


def thing(shape="cube", color="red", size="small", material="rubber") -> SceneObject:
    return SceneObject(shape, color, size, material, (0, 0, 0), (0, 0, 0), 0.0)


def scene(*objects: SceneObject) -> Scene:
    return Scene(tuple(objects))


@pytest.mark.parametrize(("depth", "count"), [(2, 4), (4, 16), (6, 55)])
def test_every_tree_has_the_papers_number_of_outcomes(depth: int, count: int) -> None:
    for seed in range(60):
        leaves = tree(seed, depth).leaves()
        assert len(leaves) == count
        assert {leaf.case for leaf in leaves} == {f"Case {k}" for k in range(1, count + 1)}
        assert len({leaf.id for leaf in leaves}) == count


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(1, 6))
def test_no_settled_attribute_and_no_asked_value_is_asked_again(seed: int, depth: int) -> None:
    sampled = tree(seed, depth)
    for leaf in sampled.leaves():
        path = sampled.path(leaf.id)
        assert len(path) <= depth
        for i, (node, _) in enumerate(path):
            assert node.value in CLEVR_ATTRIBUTES[node.attribute]
            assert node.attribute not in [above.attribute for above, yes in path[:i] if yes]
            assert node.value not in [above.value for above, _ in path[:i]]


def test_ids_name_the_place() -> None:
    root = tree(0, 3).root
    assert isinstance(root, Node) and root.id == "1"
    assert isinstance(root.if_false, Node) and root.if_false.id == "1.2"
    assert isinstance(root.if_false.if_true, Node) and root.if_false.if_true.id == "1.2.1"
    assert isinstance(root.if_false.if_true.if_true, Leaf)


def test_all_attributes_and_values_are_asked_for() -> None:
    roots = [tree(seed, 1).root for seed in range(300)]
    asked = {(r.attribute, r.value) for r in roots if isinstance(r, Node)}
    assert asked == {(name, value) for name, values in CLEVR_ATTRIBUTES.items() for value in values}


def test_outcomes_come_evenly_from_the_pool() -> None:
    pool = [f"Case {k}" for k in range(1, 9)]
    assert len({leaf.case for leaf in tree(0, 2, outcomes=pool).leaves()}) == 4
    cases = [leaf.case for leaf in tree(0, 4, outcomes=pool).leaves()]
    assert sorted(cases) == sorted(pool * 2)
    for seed in range(30):
        cases = [leaf.case for leaf in tree(seed, 4, outcomes=["A", "B", "A"]).leaves()]
        assert all(a != b for a, b in zip(cases, cases[1:], strict=False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth"),
        ({"depth": 2, "attributes": {"color": ()}}, "attributes"),
        ({"depth": 2, "outcomes": ["Case 1"]}, "outcomes"),
    ],
)
def test_bad_arguments_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tree(0, **options)


def test_a_true_edge_narrows_and_a_false_edge_does_not() -> None:
    leaf = {"case": "A"}
    cube = {"attribute": "shape", "value": "cube", "if_true": leaf, "if_false": {"case": "B"}}
    blue = {"attribute": "color", "value": "blue", "if_true": {"case": "C"}, "if_false": cube}
    root = {"attribute": "color", "value": "red", "if_true": cube, "if_false": blue}
    sampled = ClevrTree.from_json({"name": "t", "depth": 3, "root": root})
    # The only cube is grey: narrowed away by red, so the cube condition fails.
    walk = sampled.walk(scene(thing("sphere", "red"), thing("cube", "gray")))
    assert [(s.condition, s.satisfied, s.remaining) for s in walk.steps] == [
        ("1", True, (0,)),
        ("1.1", False, (0,)),
    ]
    assert walk.case == "B"
    # Nothing is red or blue: both false edges keep the cube.
    walk = sampled.walk(scene(thing("cube", "gray"), thing("sphere", "gray")))
    assert [(s.condition, s.satisfied, s.remaining) for s in walk.steps] == [
        ("1", False, (0, 1)),
        ("1.2", False, (0, 1)),
        ("1.2.2", True, (0,)),
    ]
    assert walk.case == "A"


@settings(deadline=None, max_examples=15)
@given(seeds, st.integers(1, 5))
def test_reachable_is_exactly_what_scenes_reach(seed: int, depth: int) -> None:
    sampled = tree(seed, depth, attributes=SMALL)
    kinds = [thing(*values) for values in product(*SMALL.values())]
    scenes = [scene(*c) for n in (1, 2, 3) for c in combinations_with_replacement(kinds, n)]
    reached = {sampled.walk(s).leaf for s in scenes}
    assert reached == set(sampled.reachable(SMALL))


def test_a_denied_attribute_makes_an_outcome_unreachable() -> None:
    last = {
        "attribute": "size",
        "value": "large",
        "if_true": {"case": "B"},
        "if_false": {"case": "C"},
    }
    root = {"attribute": "size", "value": "small", "if_true": {"case": "A"}, "if_false": last}
    sampled = ClevrTree.from_json({"name": "t", "depth": 2, "root": root})
    assert [leaf.case for leaf in sampled.reachable()] == ["A", "B"]
    assert [leaf.case for leaf in sampled.reachable({"size": ("small",)})] == ["A"]


@settings(deadline=None, max_examples=20)
@given(seeds, st.integers(1, 6))
def test_only_objects_that_disturb_turn_a_scene_from_its_path(seed: int, depth: int) -> None:
    rng = np.random.default_rng(seed)
    sampled = ClevrTree.sample(rng, depth, "t", SMALL)
    kinds = [thing(*values) for values in product(*SMALL.values())]
    first = kinds[int(rng.integers(len(kinds)))]
    path = sampled.path(sampled.walk(scene(first)).leaf.id)
    for other in kinds:
        stays = sampled.walk(scene(first, other)).leaf == sampled.walk(scene(first)).leaf
        assert disturbs(other, path) == (not stays)


@pytest.mark.parametrize("depth", [1, 4, 6])
def test_json_round_trip(depth: int) -> None:
    sampled = tree(7, depth)
    assert ClevrTree.from_json(sampled.to_json()) == sampled


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "t", "depth": 1}, "missing key 'root'"),
        ({"name": "t", "depth": 1, "root": {"attribute": "size"}}, "missing key 'value'"),
        ({"name": "t", "depth": 1, "root": {"attribute": "size", "value": "red"}}, "size 'red'"),
    ],
)
def test_bad_json_is_named(data: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClevrTree.from_json(data)
