"""What is rendered is read back: the same rules, the same routing, and nothing else is a rule."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fastmpi.policies.gta.parse import parse_rules, quoted_tests
from fastmpi.policies.gta.policy import GTAPolicy, gta_policy, swapped_versions
from fastmpi.policies.gta.rules import Account, Formulas, Range, Rule, Test
from fastmpi.policies.gta.text import rule_text

sys.path.insert(0, str(Path(__file__).parent))
from gta_samples import every_profile, random_policy  # noqa: E402

STYLES = ["full", "compact"]


def check_routing(policy: GTAPolicy, read: tuple[Rule, ...]) -> None:
    """The rules that were read send every profile where those of the policy send it."""
    again = replace(policy, rules=read)
    for profile, formulas in every_profile(policy):
        for tool in policy.tools:
            routing = policy.route(tool, profile, formulas)
            assert again.route(tool, profile, formulas) == routing


@pytest.mark.parametrize("style", STYLES)
def test_the_papers_policy(style: str) -> None:
    policy = gta_policy(style)
    read = parse_rules(policy.text, style)
    assert read == policy.rules
    check_routing(policy, read)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("seed", range(12))
def test_random_policies(seed: int, style: str) -> None:
    policy = random_policy(seed, style)
    read = parse_rules(policy.text, style)
    assert read == policy.rules
    check_routing(policy, read)


@pytest.mark.parametrize("style", STYLES)
def test_overrides(style: str) -> None:
    """A block alone is enough to know the new policy from the old one."""
    policy = gta_policy(style)
    block, new = policy.override(swapped_versions(policy))
    read = parse_rules(block, style)
    assert read == swapped_versions(policy)
    by_id = {rule.id: rule for rule in read}
    check_routing(new, tuple(by_id.get(rule.id, rule) for rule in policy.rules))


def test_random_policies_show_every_kind_of_rule() -> None:
    """Otherwise the tests above would prove less than they say."""
    rules = [rule for seed in range(12) for rule in random_policy(seed, "full").rules]
    texts = "\n".join(map(rule_text, rules))
    for words in (", and the ", " otherwise reader", "use reader", "formulas", "A, B or C"):
        assert words in texts
    bounds = {
        name for r in rules for t in r.tests if isinstance(t, Range) for name, _ in t.bounds()
    }
    assert bounds == {"over", "at_least", "under", "at_most"}


FULL = (
    "Rule 5 (OCR): If the credits are over 250, use OCR_v4 if the age is under 21, otherwise "
    "OCR_v3."
)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("over 250", "over 250.5"),
        ("over 250", "over 1234567890"),
        ("over 250", "not over 250"),
        ("over 250", "over 250 and over 300"),
        ("over 250", "over 250 and at most 250"),
        ("are over", "were over"),
        ("credits are", "credits is"),
        ("the credits", "the height"),
        ("use OCR_v4", "maybe use OCR_v4"),
        ("use OCR_v4", "OCR_v4"),
        (" (OCR)", ""),
        ("otherwise ", ""),
        ("OCR_v3.", "OCR_v3"),
        ("OCR_v3.", "OCR_v3. And so on."),
        ("OCR_v3", "OCR_v03"),
        ("under 21", "under 21, and the account type is A"),
        ("Rule 5", "Rule  5"),
    ],
)
def test_a_full_rule_that_was_not_rendered(old: str, new: str) -> None:
    assert parse_rules(FULL)[0].id == "5"
    line = FULL.replace(old, new)
    assert line != FULL
    with pytest.raises(ValueError, match="no rule: 'Rule "):
        parse_rules(line)


@pytest.mark.parametrize(
    "rule",
    [
        "OCR.1",
        "OCR if credits over 3 then v1",
        "OCR.1 if then v1",
        "OCR.1 if credits over 3 v1",
        "OCR.1 if credits over 3 then",
        "OCR.1 if credits over 3 then v1 v2",
        "OCR.1 if credits over 3 then account A v1",
        "OCR.1 if credits over then v1",
        "OCR.1 if credits upto 3 over 1 then v1",
        "OCR.1 if credits over 3 over 4 then v1",
        "OCR.1 if credits above 3 then v1",
        "OCR.1 if account A E then v1",
        "OCR.1 if account B A then v1",
        "OCR.1 if formulas now then v1",
        "OCR.1 if account A and then v1",
        "OCR.1 if account A then formulas v1 v2",
        "OCR.1 if account A then v01",
    ],
)
def test_a_compact_rule_that_was_not_rendered(rule: str) -> None:
    with pytest.raises(ValueError, match="no rule: 'OCR"):
        parse_rules(f"policy gta : {rule} end", "compact")


@pytest.mark.parametrize(
    "text", ["", "policy", "policy gta : x", "rules gta : end", "policy gta end"]
)
def test_a_text_that_is_no_compact_policy(text: str) -> None:
    with pytest.raises(ValueError, match="no compact policy"):
        parse_rules(text, "compact")


@pytest.mark.parametrize(
    ("text", "tests"),
    [
        ("credits over 250 and at most 750", [Range("credits", over=250, at_most=750)]),
        ("the credits are over 250 and at most 750", [Range("credits", over=250, at_most=750)]),
        ("Age at least 21?", [Range("age", at_least=21)]),
        ("the age is under 60.", [Range("age", under=60)]),
        ("account type A", [Account(("A",))]),
        ("Account type is A, B or C", [Account(("A", "B", "C"))]),
        ("the account type is C or D, and age over 3", [Account(("C", "D")), Range("age", over=3)]),
        ("formulas in the image", [Formulas()]),
        ("mileage over 3, page is under 4", []),
        ("account type Admin", []),
        ("account type D or A", []),
        ("credits over 9 and under 3", []),
        ("credits over 9 and over 3", []),
        ("credits over 1234567890", []),
        ("credits: 430, age 34", []),
        ("", []),
    ],
)
def test_quoted_tests(text: str, tests: list[Test]) -> None:
    assert quoted_tests(text) == tuple(tests)


@pytest.mark.parametrize(
    "piece",
    ["account type A, ", "A, ", "credits over 1 and ", "credits ", "Rule 1 (OCR): If ", ", use "],
)
def test_time_is_linear(piece: str) -> None:
    """Two megabytes on one line; a quadratic scan would take hours."""
    text = "Rule 1 (OCR): If account type " + piece * (2_000_000 // len(piece))
    start = time.perf_counter()
    quoted_tests(text)
    with pytest.raises(ValueError, match="no rule"):
        parse_rules(text)
    with pytest.raises(ValueError, match="no rule"):
        parse_rules(f"policy gta : {text} end", "compact")
    assert time.perf_counter() - start < 10
