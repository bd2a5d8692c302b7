"""Referral against hand-counted citations."""

from __future__ import annotations

import pytest

from fastmpi.evaluation.referral import referral, referral_scores
from fastmpi.policies.policy import Policy

LEAVES = ({"case": "Case 1"}, {"case": "Case 2"})
ROOT = {"attribute": "color", "value": "red", "if_true": LEAVES[0], "if_false": LEAVES[1]}
POLICIES = {"kavo": Policy("kavo", [], metadata={"tree": {"name": "", "depth": 1, "root": ROOT}})}


def item(response: str) -> dict:
    return {"id": response, "policy_id": "kavo", "leaf": "1.1", "response": response}


def test_scores_are_shares_of_faithful_citations() -> None:
    responses = ["C1 red yes", "C1 blue yes", "C1 red yes C1.1 cube no", "\\boxed{Case 1}"]
    items = [item(response) for response in responses]
    assert referral_scores(items, POLICIES) == [1.0, 0.0, 0.5, 0.0]
    figure = referral(items, POLICIES)["referral"]
    assert figure.value == pytest.approx(1.5 / 4)
    assert figure.n == 4
    assert 0 <= figure.low < figure.value < figure.high <= 1


def test_no_items() -> None:
    assert referral([], POLICIES)["referral"].n == 0
