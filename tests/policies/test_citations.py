"""Which rules a response cites, against hand-made responses to one small tree."""

from __future__ import annotations

import time

import numpy as np
import pytest

from fastmpi.data.renderer import sample_scene
from fastmpi.policies.citations import citations, condition_ids, gold_citations
from fastmpi.policies.cited_rule import CITED_CHARACTERS, Citation
from fastmpi.policies.clevr_text import STYLES, reasoning_text
from fastmpi.policies.clevr_tree import ClevrTree
from fastmpi.policies.gta.policy import gta_policy
from fastmpi.policies.gta.reasoning import gta_reasoning
from fastmpi.policies.gta.rules import Profile
from fastmpi.policies.policy import Policy


def node(attribute: str, value: str, if_true: dict, if_false: dict) -> dict:
    return {"attribute": attribute, "value": value, "if_true": if_true, "if_false": if_false}


def case(number: int) -> dict:
    return {"case": f"Case {number}"}


TREE = {
    "name": "kavo",
    "depth": 2,
    "root": node(
        "color",
        "red",
        node("shape", "cube", case(3), case(5)),
        node("size", "small", case(1), case(8)),
    ),
}
POLICY = Policy("kavo", [{"role": "system", "content": "..."}], metadata={"tree": TREE})
TRUE, FALSE, UNKNOWN = (True, True), (True, False), (False, False)


def cited(text: str, policy: Policy = POLICY) -> list[tuple[str, tuple[bool, bool]]]:
    return [(c.id, (c.exists, c.faithful)) for c in citations(text, policy)]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("depth", [2, 6])
def test_gold_reasoning_is_faithful_and_cites_the_gold_way(style: str, depth: int) -> None:
    rng = np.random.default_rng(depth)
    for _ in range(10):
        tree = ClevrTree.sample(rng, depth, "L-Kavo")
        policy = Policy("L-Kavo", [], metadata={"tree": tree.to_json()})
        walk = tree.walk(sample_scene(rng, 5))
        found = citations(reasoning_text(walk, style), policy)
        gold = gold_citations(policy, {"id": "1", "leaf": walk.leaf.id})
        assert found == [Citation(place, True, True) for place in gold]
        assert gold == [step.condition for step in walk.steps]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("C1 red yes C1.1 cube no", [("1", TRUE), ("1.1", TRUE)]),
        ("C1 blue yes C1.1 sphere no", [("1", FALSE), ("1.1", FALSE)]),
        ("C1 color red no C1.2 size small yes", [("1", TRUE), ("1.2", TRUE)]),
        ("C1 shape red no", [("1", FALSE)]),  # the value is right, the attribute is not
        ("C1.1.1 red yes C7 red no", [("1.1.1", UNKNOWN), ("7", UNKNOWN)]),  # an outcome's id
        ("C1 yes", [("1", FALSE)]),  # quotes nothing
        ("C1 red yes C1 red yes", [("1", TRUE), ("1", TRUE)]),
        ("<think>C1 red yes</think>C7 red \\boxed{Case 3}", [("1", TRUE)]),  # before the answer
    ],
)
def test_compact(text: str, expected: list) -> None:
    assert cited(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Condition 1: color red? Yes.", [("1", TRUE)]),
        ("Condition 1 asks whether anything is red.", [("1", TRUE)]),
        ("condition 1: COLOR Red?", [("1", TRUE)]),
        ("Condition 1: color blue? Remaining: a red cube.", [("1", FALSE)]),  # the first value
        ("Condition 1.2: Yes.\nRemaining: a small cube.", [("1.2", FALSE)]),  # not on its line
        (
            "Condition 1: color red? Yes, go to Condition 1.1.\nCondition 1.1: shape cube? No.",
            [("1", TRUE), ("1.1", TRUE)],  # announced, then quoted: one citation
        ),
        ("Condition 1: color red? Yes, go to Condition 1.1.", [("1", TRUE), ("1.1", FALSE)]),
        ("vitamin c1 red", []),
        ("The precondition 1 and C++ say nothing; nor does Case 3.", []),
        ("", []),
    ],
)
def test_full(text: str, expected: list) -> None:
    assert cited(text) == expected


def test_all_conditions() -> None:
    assert condition_ids(POLICY) == ["1", "1.1", "1.2"]
    assert condition_ids(gta_policy().to_policy()) == [str(number) for number in range(1, 21)]


@pytest.mark.parametrize("style", STYLES)
def test_gold_reasoning_about_tools_is_faithful(style: str) -> None:
    rules = gta_policy(style)
    profile = Profile("C", credits=500, age=30)
    row = {"id": "1", "tool": "OCR", "profile": profile.to_json(), "formulas": False}
    gold = gold_citations(rules.to_policy(), row)
    found = citations(gta_reasoning(rules, "OCR", profile), rules.to_policy())
    assert found == [Citation(place, True, True) for place in gold]
    assert len(gold) > 1
    assert gold_citations(rules.to_policy(), {**row, "tool": "Calculator"}) == []


@pytest.mark.parametrize(
    "piece",
    [
        "C1 red ",
        "Condition ",
        "1",
        "C" + "1." * 150,
        "\u202eC1 red\u202c",
        "\0",
        "color ",
        "</script>",
    ],
)
def test_hostile_text_is_read_in_under_a_second(piece: str) -> None:
    text = piece * (10_000_000 // len(piece))
    start = time.process_time()
    found = citations(text, POLICY)
    assert time.process_time() - start < 1
    assert all(len(citation.id) <= 200 for citation in found)


@pytest.mark.parametrize("policy", [POLICY, gta_policy().to_policy()])
def test_only_the_beginning_of_a_response_is_read(policy: Policy) -> None:
    cite = "Condition 1: color red?\nRule 4: credits at most 250?\n"
    assert len(citations("x" * (CITED_CHARACTERS - len(cite) - 1) + "\n" + cite, policy)) == 1
    assert citations("x" * CITED_CHARACTERS + "\n" + cite, policy) == []


def test_a_policy_without_known_rules_is_named() -> None:
    plain = Policy("mine", [])
    for ask in (lambda: citations("", plain), lambda: gold_citations(plain, {})):
        with pytest.raises(ValueError, match="policy 'mine'"):
            ask()
    with pytest.raises(ValueError, match="row 'a' has no 'leaf'"):
        gold_citations(POLICY, {"id": "a"})
