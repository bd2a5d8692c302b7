"""The tiny base's other tasks, in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastmpi.data.scenes import Scene, SceneObject
from fastmpi.policies.clevr_tree import ClevrTree
from fastmpi.policies.tiny_tasks import inventory, joined, num_traced, trace_prompt, tree_paths

RED_CUBE = SceneObject("cube", "red", "large", "rubber", (20, 40, 0), (0, 0, 0), 0.0)
BLUE_SPHERE = SceneObject("sphere", "blue", "small", "rubber", (60, 10, 0), (0, 0, 0), 0.0)
LEAF = {"case": "Case 1"}
TREE = ClevrTree.from_json(
    {
        "name": "kavo",
        "depth": 2,
        "root": {
            "attribute": "color",
            "value": "red",
            "if_true": {
                "attribute": "shape",
                "value": "cube",
                "if_true": {"case": "Case 3"},
                "if_false": {"case": "Case 5"},
            },
            "if_false": LEAF,
        },
    }
)


def test_inventory_reads_quadrants_row_by_row() -> None:
    scene = Scene((RED_CUBE, BLUE_SPHERE))
    text = joined(inventory(scene))
    assert text == " none ; small blue sphere ; large red cube ; none ;"


def test_inventory_scales_with_the_picture() -> None:
    far = replace(RED_CUBE, pixel_coords=(90, 90, 0))
    text = joined(inventory(Scene((far,), image_size=(200, 200))))
    assert text == " large red cube ; none ; none ; none ;"


def test_paths_are_responses() -> None:
    assert [joined(path) for path in tree_paths(TREE)] == [
        "<think>C1 red yes C1.1 cube yes</think>\\boxed{Case 3}",
        "<think>C1 red yes C1.1 cube no</think>\\boxed{Case 5}",
        "<think>C1 red no</think>\\boxed{Case 1}",
    ]


def test_answers_of_a_path_carry_no_loss_and_its_leaf_the_most() -> None:
    weights = dict(tree_paths(TREE)[2])
    assert weights[" no"] == 0 < weights[" red"] < weights[" 1"]


@pytest.mark.parametrize(("paths", "traced"), [(2, 1), (3, 1), (4, 2), (8, 4)])
def test_half_of_the_paths_is_traced(paths: int, traced: int) -> None:
    assert num_traced(paths) == traced
    assert trace_prompt("kavo") == "trace kavo"
