"""The branching error against hand-counted histograms."""

from __future__ import annotations

from typing import Any

import pytest

from fastmpi.evaluation.branching import branching
from fastmpi.evaluation.metrics import wilson_interval
from fastmpi.policies.policy import Policy


def leaf(number: int) -> dict[str, Any]:
    return {"case": f"Case {number}"}


def policy(name: str, *, deep: bool) -> Policy:
    """Conditions 1 and, where deep, 1.1."""
    below = {"attribute": "size", "value": "small", "if_true": leaf(1), "if_false": leaf(2)}
    root = {
        "attribute": "color",
        "value": "red",
        "if_true": below if deep else leaf(1),
        "if_false": leaf(3),
    }
    return Policy(name, [], metadata={"tree": {"name": name, "depth": 1 + deep, "root": root}})


POLICIES = {"a": policy("a", deep=True), "b": policy("b", deep=False)}


def item(policy_id: str, leaf_id: str, response: str) -> dict[str, Any]:
    return {"id": "", "policy_id": policy_id, "leaf": leaf_id, "response": response}


def figures(*items: dict[str, Any]) -> tuple[float, float]:
    found = branching(items, POLICIES)
    return found["unknown_citations"].value, found["branching_error"].value


def test_gold_reasoning_has_no_error() -> None:
    way = item("a", "1.1.1", "C1 red yes C1.1 small yes")
    assert figures(way, item("a", "1.2", "C1 red no"), item("b", "1.1", "C1 red yes")) == (0, 0)
    error = branching([way] * 3, POLICIES)["branching_error"]
    assert (error.low, error.high, error.n) == (0, 0, 3)


def test_hand_counted() -> None:
    """a: 1 is cited twice as in gold, 1.1 once less, and 9 once more: 2 of 2 conditions and 2
    responses, 50 per 100 and condition. b: gold. Mean 25; one of four citations is unknown."""
    assert figures(
        item("a", "1.1.1", "C1 red yes C9 small yes"),
        item("a", "1.2", "C1 red no"),
        item("b", "1.2", "C1 red no"),
    ) == (0.25, 25.0)


def test_what_two_responses_get_wrong_may_cancel_out() -> None:
    """It is a distance of histograms: which response cites a condition does not matter."""
    swapped = (item("a", "1.1.1", "C1 red no"), item("a", "1.2", "C1 red yes C1.1 small yes"))
    assert figures(*swapped) == (0, 0)


def test_citing_nothing() -> None:
    """Gold cites 3 times in 2 responses, over 2 conditions: 75."""
    items = [item("a", "1.1.1", ""), item("a", "1.2", "")]
    found = branching(items, POLICIES)
    assert found["branching_error"].value == 75
    assert found["unknown_citations"].n == 0


def test_many_ids_that_do_not_exist_only_add() -> None:
    text = " ".join(f"C7.{number} red yes" for number in range(1000))
    unknown, error = figures(item("b", "1.1", "C1 red yes " + text))
    assert unknown == pytest.approx(1000 / 1001)
    assert error == 100 * 1000


def test_the_interval_holds_the_value() -> None:
    """Also where errors cancel out, and nearly every resample has more of them."""
    right = item("a", "1.1.1", "C1 red yes C1.1 small yes")
    more, less = item("a", "1.2", right["response"]), item("a", "1.1.1", "C1 red no")
    twice, never = item("b", "1.1", "C1 red C1 red"), item("b", "1.1", "")
    for items in ([right, more, less, twice, never], [right, less, less, right]):
        error = branching(items * 10, POLICIES)["branching_error"]
        assert error.low <= error.value < error.high


def test_no_unknown_citation_in_three_responses_is_not_certain() -> None:
    right = item("a", "1.1.1", "C1 red yes C1.1 small yes")
    found = branching([right] * 3 + [item("a", "1.2", "")], POLICIES)["unknown_citations"]
    assert found.interval == wilson_interval(0, 3)
    assert found.n == 4


def test_no_items() -> None:
    assert {figure.n for figure in branching([], POLICIES).values()} == {0}
