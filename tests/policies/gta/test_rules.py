"""Tests, rules and the proof that a tool's rules leave no gap and never overlap."""

from __future__ import annotations

from typing import Any

import pytest

from fastmpi.policies.gta.rules import (
    LARGEST,
    Account,
    Choice,
    Formulas,
    Profile,
    Range,
    Rule,
    boundary_profiles,
    check_rules,
    rules_of,
)

B = Profile("B", 430, 34)


def rule(number: int, *when: Any, then: Any = 1) -> Rule:
    return Rule(str(number), "OCR", when, then)


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        ({"over": 250}, [251, 252, 10**6], [0, 249, 250]),
        ({"at_least": 250}, [250, 251], [0, 248, 249]),
        ({"under": 250}, [0, 248, 249], [250, 251]),
        ({"at_most": 250}, [0, 249, 250], [251, 252]),
        ({"over": 250, "at_most": 750}, [251, 749, 750], [249, 250, 751]),
        ({"at_least": 250, "under": 500}, [250, 499], [249, 500]),
        ({"over": 4, "under": 6}, [5], [4, 6]),
        ({"at_least": 5, "at_most": 5}, [5], [4, 6]),
    ],
)
@pytest.mark.parametrize("field", ["credits", "age"])
def test_range(bounds: dict[str, int], inside: list[int], outside: list[int], field: str) -> None:
    test = Range(field, **bounds)
    for number in inside + outside:
        numbers = {"credits": 7, "age": 7, field: number}
        assert test.holds(Profile("A", **numbers)) == (number in inside)


def test_account_and_formulas() -> None:
    assert Account(("A", "B")).holds(B)
    assert not Account(("C", "D")).holds(B)
    assert Formulas().holds(B, formulas=True)
    assert not Formulas().holds(B)


@pytest.mark.parametrize(
    "bounds",
    [
        {},
        {"over": 1, "at_least": 2},
        {"under": 1, "at_most": 2},
        {"over": 5, "under": 6},
        {"over": 5, "at_most": 5},
        {"at_least": 6, "at_most": 5},
        {"under": 0},
        {"over": LARGEST},
        {"over": -1},
        {"over": 2.5},
        {"over": True},
        {"over": "3"},
    ],
)
def test_a_range_that_cannot_be(bounds: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="credits"):
        Range("credits", **bounds)


@pytest.mark.parametrize("types", [(), ("E",), ("B", "A"), ("A", "A"), "AB"])
def test_account_types_that_cannot_be(types: Any) -> None:
    with pytest.raises(ValueError, match="account types"):
        Account(types)


def test_a_range_over_something_else() -> None:
    with pytest.raises(ValueError, match="'height'"):
        Range("height", over=3)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (("E", 1, 1), "account_type 'E'"),
        (("A", -1, 1), "credits: -1"),
        (("A", 1.5, 1), "credits: 1.5"),
        (("A", 1, True), "age: True"),
        (("A", LARGEST + 1, 1), "credits"),
    ],
)
def test_profiles_that_cannot_be(values: tuple[Any, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Profile(*values)


def test_profiles_and_rules_survive_json() -> None:
    assert Profile.from_json(B.to_json()) == B
    for then in (3, "MathOCR", Choice(Account(("A",)), 1, "MathOCR")):
        whole = rule(1, Range("age", over=3, at_most=9), Formulas(), Account(("A", "D")), then=then)
        assert Rule.from_json(whole.to_json()) == whole


@pytest.mark.parametrize(
    "change",
    [
        {"then": None},
        {"then": 1.5},
        {"then": True},
        {"then": {"test": {"account": ["A"]}, "yes": 1}},
        {"then": {"test": {"formulas": True}, "yes": 1, "no": 2}},
        {"then": {"test": {"account": ["A"]}, "yes": 1, "no": 1}},
        {"when": []},
        {"when": [{"account": ["A"]}, {"account": ["B"]}]},
        {"when": [{"field": "age", "over": 3}, {"field": "age", "under": 9}]},
        {"when": [{"formulas": False}]},
        {"when": [{"field": "age", "above": 3}]},
        {"when": [3]},
        {"when": None},
    ],
)
def test_json_that_is_no_rule(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="rule '?4'?"):
        Rule.from_json({**rule(4, Account(("A",))).to_json(), **change})


def test_a_profile_of_other_keys() -> None:
    with pytest.raises(ValueError, match="profile"):
        Profile.from_json({"account_type": "A", "credits": 1})


def test_boundary_profiles_surround_every_bound() -> None:
    """Those of a choice too, never below 0, and every account type with every number."""
    rules = [
        rule(1, Range("credits", at_most=250)),
        rule(2, Range("credits", over=250), then=Choice(Range("age", under=1), 1, 2)),
    ]
    profiles = boundary_profiles(rules)
    assert {p.credits for p in profiles} == {0, 249, 250, 251}
    assert {p.age for p in profiles} == {0, 1, 2}
    assert len(profiles) == len(set(profiles)) == 4 * 4 * 3


LOW, HIGH = Range("credits", at_most=250), Range("credits", over=250)


def test_rules_that_divide_all_profiles() -> None:
    check_rules("OCR", [rule(1, LOW), rule(2, HIGH)])
    check_rules("OCR", [rule(1, LOW), rule(2, HIGH), rule(3, Formulas())])
    check_rules("OCR", [rule(3, Formulas())])
    young, old = Range("age", under=21), Range("age", at_least=21)
    check_rules("OCR", [rule(1, LOW, young), rule(2, LOW, old), rule(3, HIGH)])


@pytest.mark.parametrize(
    "rules",
    [
        [rule(1, LOW)],
        [rule(1, LOW), rule(2, Range("credits", over=251))],
        [rule(1, LOW), rule(2, HIGH, Account(("A", "B", "C")))],
        [rule(1, Range("credits", over=0))],
    ],
)
def test_a_gap_names_tool_and_profile(rules: list[Rule]) -> None:
    with pytest.raises(ValueError, match=r"tool OCR: no rule applies to Profile\(account_type="):
        check_rules("OCR", rules)


@pytest.mark.parametrize(
    "rules",
    [
        [rule(1, LOW), rule(2, Range("credits", at_least=250))],
        [rule(1, LOW), rule(2, HIGH), rule(3, Account(("D",)), Range("age", over=99))],
        [rule(1, LOW), rule(2, HIGH), rule(3, Formulas()), rule(4, Formulas(), LOW)],
    ],
)
def test_an_overlap_names_tool_and_profile(rules: list[Rule]) -> None:
    with pytest.raises(ValueError, match=r"tool OCR: rules \d, \d all apply to Profile\("):
        check_rules("OCR", rules)


def test_rules_on_the_picture_come_first() -> None:
    other = Rule("9", "Plot", (Formulas(),), 1)
    rules = [rule(1, LOW), other, rule(2, HIGH), rule(3, Formulas())]
    assert [r.id for r in rules_of(rules, "OCR")] == ["3", "1", "2"]
