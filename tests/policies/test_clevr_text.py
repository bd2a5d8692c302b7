"""The words of a policy: exact in the compact style, complete in the full one."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fastmpi.data.scenes import Scene, SceneObject
from fastmpi.policies.clevr_text import (
    ValuePicture,
    describe,
    policy_names,
    policy_parts,
    policy_text,
    question_text,
    reasoning_text,
)
from fastmpi.policies.clevr_tree import ClevrTree


def thing(size: str, color: str, material: str, shape: str) -> SceneObject:
    return SceneObject(shape, color, size, material, (0, 0, 0), (0, 0, 0), 0.0)


def node(attribute: str, value: str, if_true: dict, if_false: dict) -> dict:
    return {"attribute": attribute, "value": value, "if_true": if_true, "if_false": if_false}


def case(number: int) -> dict:
    return {"case": f"Case {number}"}


TREE = ClevrTree.from_json(
    {
        "name": "kavo",
        "depth": 2,
        "root": node(
            "color",
            "red",
            node("shape", "cube", case(3), case(5)),
            node("size", "small", case(1), case(8)),
        ),
    }
)
SCENE = Scene((thing("large", "red", "metal", "sphere"), thing("small", "cyan", "metal", "cube")))


def test_compact() -> None:
    assert policy_text(TREE, "compact") == (
        "policy kavo : C1 if red then C1.1 else C1.2 ; C1.1 if cube then Case 3 else Case 5 ; "
        "C1.2 if small then Case 1 else Case 8 end"
    )
    assert question_text("kavo", "compact") == "question kavo"
    assert reasoning_text(TREE.walk(SCENE), "compact") == "C1 red yes C1.1 cube no"


def test_full_policy_names_itself_and_every_condition() -> None:
    tree = ClevrTree.sample(np.random.default_rng(0), 6, "L6-Kavo")
    text = policy_text(tree, "full")
    assert "Policy L6-Kavo" in text
    headers = re.findall(r"^# Condition ([\d.]+):$", text, re.MULTILINE)
    assert headers == [node.id for node in tree.nodes()]
    targets = re.findall(r"go to Condition ([\d.]+\d)\.", text)
    assert sorted(targets) == sorted(headers[1:])
    assert all(f"respond {leaf.case}." in text for leaf in tree.leaves())


def test_full_section() -> None:
    assert policy_text(TREE).endswith(
        "\n# Condition 1.2:\n"
        "Does any remaining object have the size small?\n"
        "If yes, respond Case 1. If no, respond Case 8.\n"
    )


def test_full_reasoning_walks_the_tree() -> None:
    assert reasoning_text(TREE.walk(SCENE)) == (
        "The image shows a large red metal sphere and a small cyan metal cube.\n"
        "Condition 1: color red? Yes. Remaining: a large red metal sphere.\n"
        "Condition 1.1: shape cube? No, none of the remaining objects.\n"
        "The response is Case 5."
    )


def test_the_question_names_the_policy_and_no_rule() -> None:
    question = question_text("L2-Kavo")
    assert "L2-Kavo" in question and "ondition" not in question


@pytest.mark.parametrize("style", ["full", "compact"])
def test_pictured_conditions_hide_their_value(style: str) -> None:
    parts = policy_parts(TREE, style, frozenset({"1", "1.2"}))
    pictures = [part for part in parts if isinstance(part, ValuePicture)]
    assert pictures == [ValuePicture("1", "color", "red"), ValuePicture("1.2", "size", "small")]
    assert [isinstance(part, str) for part in parts] == [True, False, True, False, True]
    text = "".join(part for part in parts if isinstance(part, str)).split("Policy kavo")[-1]
    assert "red" not in text and "small" not in text and "cube" in text
    assert "color" in text and "size" in text


def test_describe_counts_equal_objects() -> None:
    ball = thing("small", "gray", "rubber", "sphere")
    assert describe([ball, SCENE.objects[0], ball]) == (
        "2 small gray rubber spheres and a large red metal sphere"
    )
    assert describe([]) == "no objects"


@pytest.mark.parametrize(
    ("style", "pattern"),
    [("full", r"L4-([A-Z][a-z]){1}[a-z]{2}"), ("compact", r"([a-z][aeiou]){2}")],
)
def test_names_are_unique_and_can_be_spoken(style: str, pattern: str) -> None:
    names = policy_names(np.random.default_rng(0), 200, 4, style)
    assert len(set(names)) == 200
    assert all(re.fullmatch(pattern, name) for name in names)
    assert policy_names(np.random.default_rng(0), 200, 4, style) == names


def test_many_names_are_unique_too() -> None:
    assert len(set(policy_names(np.random.default_rng(0), 3000, 2, "compact"))) == 3000


def test_an_unknown_style_is_named() -> None:
    with pytest.raises(ValueError, match="'short' is none of full, compact"):
        policy_text(TREE, "short")
