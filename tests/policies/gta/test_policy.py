"""Who may call which version: the paper's table, boundary by boundary, and what changes it."""

from __future__ import annotations

import copy
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmpi.policies.gta.policy import GTAPolicy, Routing, Step, gta_policy, swapped_versions
from fastmpi.policies.gta.rules import Account, Choice, Formulas, Profile, Range, Rule
from fastmpi.policies.gta.tools import TOOLS, Argument, Tool, tool_table
from fastmpi.policies.policy import PolicySet

sys.path.insert(0, str(Path(__file__).parent))
from gta_samples import every_profile, random_policy  # noqa: E402

STYLES = ["full", "compact"]

# Tool, account types, credits, ages, and the version that all of these users call.
TABLE: list[tuple[str, str, list[int], list[int], int]] = [
    ("ImageDescription", "A", [0, 499, 500, 501, 9999], [0, 20, 21, 90], 5),
    ("ImageDescription", "BC", [501, 502, 9999], [0, 21, 90], 4),
    ("ImageDescription", "BC", [0, 250, 499, 500], [0, 21, 90], 3),
    ("ImageDescription", "D", [501, 502, 9999], [0, 21, 90], 2),
    ("ImageDescription", "D", [0, 250, 499, 500], [0, 21, 90], 1),
    ("OCR", "ABCD", [0, 249, 250], [0, 20, 21, 22, 90], 5),
    ("OCR", "AB", [251, 252, 500, 749, 750], [0, 20, 21, 22, 90], 4),
    ("OCR", "CD", [251, 252, 500, 749, 750], [0, 20, 21, 22, 90], 3),
    ("OCR", "ABCD", [751, 752, 9999], [0, 19, 20], 2),
    ("OCR", "ABCD", [751, 752, 9999], [21, 22, 90], 1),
    ("GoogleSearch", "ABCD", [0, 499, 500, 501], [0, 19, 20], 1),
    ("GoogleSearch", "ABCD", [0, 498, 499], [21, 22, 90], 2),
    ("GoogleSearch", "ABCD", [500, 501, 9999], [21, 22, 90], 3),
    ("TextToImage", "ABC", [0, 500, 501, 9999], [0, 21, 90], 1),
    ("TextToImage", "D", [501, 502, 9999], [0, 21, 90], 2),
    ("TextToImage", "D", [0, 499, 500], [0, 21, 90], 3),
    ("RegionAttributeDescription", "AB", [0, 500, 9999], [0, 21, 90], 2),
    ("RegionAttributeDescription", "CD", [0, 500, 9999], [0, 21, 90], 1),
    ("CountGivenObject", "ABCD", [0, 248, 249], [0, 21, 90], 1),
    ("CountGivenObject", "ABCD", [250, 251, 499], [0, 21, 90], 2),
    ("CountGivenObject", "ABCD", [500, 501, 749], [0, 21, 90], 3),
    ("CountGivenObject", "ABCD", [750, 751, 9999], [0, 21, 90], 4),
    ("ImageStylization", "ABCD", [0, 500, 9999], [0, 19, 20], 1),
    ("ImageStylization", "ABCD", [0, 500, 9999], [21, 22, 59], 2),
    ("ImageStylization", "ABCD", [0, 500, 9999], [60, 61, 90], 3),
]
CASES = [
    (tool, Profile(kind, credits, age), f"{tool}_v{version}")
    for tool, kinds, all_credits, ages, version in TABLE
    for kind in kinds
    for credits in all_credits
    for age in ages
]


@pytest.mark.parametrize("style", STYLES)
def test_every_branch_and_boundary(style: str) -> None:
    policy = gta_policy(style)
    wrong = [case for case in CASES if policy.route(*case[:2]).name != case[2]]
    assert not wrong
    assert {name for _, _, name in CASES} == {
        name for tool in TOOLS.values() if tool.versions > 1 for name in tool.names
    }


def test_formulas_are_read_by_another_tool() -> None:
    policy = gta_policy()
    for _, profile, _ in CASES:
        assert policy.route("OCR", profile, formulas=True).name == "MathOCR"
    assert policy.route("TextToImage", CASES[0][1], formulas=True).name == "TextToImage_v1"


@pytest.mark.parametrize("tool", [tool.name for tool in TOOLS.values() if tool.versions == 1])
def test_a_tool_of_one_version_needs_no_rule(tool: str) -> None:
    routing = gta_policy().route(tool, Profile("D", 0, 0))
    assert routing == Routing(tool, ())
    assert (routing.rule, routing.cited) == ("", [])


def test_steps_are_the_questions_up_to_the_rule_that_applies() -> None:
    routing = gta_policy().route("OCR", Profile("C", 750, 20))
    middle = Range("credits", over=250, at_most=750)
    assert routing.steps == (
        Step("7", (Formulas(),), False),
        Step("4", (Range("credits", at_most=250),), False),
        Step("5", (middle,), True),
        Step("5", (Account(("A", "B")),), False, inner=True),
    )
    assert (routing.name, routing.rule, routing.cited) == ("OCR_v3", "5", ["7", "4", "5"])


def test_the_rule_that_applies() -> None:
    policy = gta_policy("compact")
    assert policy.route("OCR", Profile("C", 9, 20)).rule == "OCR.1"
    assert policy.route("OCR", Profile("C", 751, 20), formulas=True).rule == "OCR.4"
    assert policy.route("RegionAttributeDescription", Profile("C", 9, 20)).cited == [
        "RegionAttributeDescription.1",
        "RegionAttributeDescription.2",
    ]


def test_a_rule_on_the_picture_that_does_not_apply_is_none() -> None:
    """A tool of one version may have such a rule; its plain name is what remains."""
    rules = (Rule("1", "Calculator", (Formulas(),), "Solver"),)
    policy = GTAPolicy("p", tool_table([TOOLS["Calculator"], TOOLS["Solver"]]), rules)
    profile = Profile("A", 1, 1)
    assert policy.route("Calculator", profile, formulas=True).name == "Solver"
    routing = policy.route("Calculator", profile)
    assert (routing.name, routing.rule, routing.cited) == ("Calculator", "", ["1"])


def test_an_unknown_tool_or_rule_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no tool 'MathOcr'.*MathOCR"):
        gta_policy().route("MathOcr", Profile("A", 1, 1))
    with pytest.raises(ValueError, match=r"policy gta has no rule 'OCR.9'.*OCR\.\d"):
        gta_policy("compact").rule("OCR.9")


@pytest.mark.parametrize("style", STYLES)
def test_json(style: str) -> None:
    for policy in [gta_policy(style), *(random_policy(seed, style) for seed in range(20))]:
        assert GTAPolicy.from_json(policy.to_json()) == policy


def test_copies() -> None:
    """Policies travel to worker processes."""
    policy = gta_policy()
    assert pickle.loads(pickle.dumps(policy)) == copy.deepcopy(policy) == policy


@pytest.mark.parametrize(
    "change",
    [
        {"rules": None},
        {"rules": [3]},
        {"rules": ["abc"]},
        {"tools": 3},
        {"tools": ["OCR"]},
        {"tips": "abc"},
        {"tips": [3]},
        {"style": "long"},
        {"name": 3},
        {"name": "a b"},
    ],
)
def test_json_that_is_no_policy(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        GTAPolicy.from_json({**gta_policy().to_json(), **change})
    with pytest.raises(ValueError, match="'rules'|'tips'|'style'|'name'|'tools'"):
        GTAPolicy.from_json({k: v for k, v in gta_policy().to_json().items() if k not in change})


def test_as_a_policy_that_a_file_keeps(tmp_path: Any) -> None:
    policy = gta_policy()
    PolicySet.from_policies([policy.to_policy()]).to_jsonl(tmp_path / "policies.jsonl")
    kept = PolicySet.from_jsonl(tmp_path / "policies.jsonl").find("gta")
    assert kept.text == policy.text
    assert kept.metadata["style"] == "full"
    assert GTAPolicy.from_json(kept.metadata["gta"]) == policy


def test_as_an_override_it_shows_the_block() -> None:
    block, changed = gta_policy().override(swapped_versions(gta_policy()))
    shown = changed.to_policy(block)
    assert (shown.policy_id, shown.text) == ("gta", block)
    assert shown.metadata["override"] == "block"
    assert GTAPolicy.from_json(shown.metadata["gta"]) == changed


def with_rules(*changed: Rule) -> GTAPolicy:
    """The paper's policy with rules of the same id replaced, and others added."""
    rules = {rule.id: rule for rule in (*gta_policy().rules, *changed)}
    return replace(gta_policy(), rules=tuple(rules.values()))


FIRST = Range("credits", at_most=250)


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        (Rule("4", "OCRs", (FIRST,), 5), "rule 4: no tool 'OCRs'.*OCR"),
        (Rule("4", "OCR", (FIRST,), 6), "rule 4: 6 is no version of OCR"),
        (Rule("4", "OCR", (FIRST,), 0), "rule 4: 0 is no version"),
        (Rule("4", "OCR", (FIRST,), Choice(Account(("A",)), 1, 7)), "rule 4: 7 is no version"),
        (Rule("4", "OCR", (FIRST,), "Mathocr"), "rule 4: 'Mathocr' is no version"),
        (Rule("4", "OCR", (FIRST,), "OCR"), "rule 4: 'OCR' is no version"),
        (Rule("4", "OCR", (FIRST,), "GoogleSearch"), "'GoogleSearch' is no version"),
        (Rule("4", "OCR", (Range("credits", at_most=249),), 5), "tool OCR: no rule applies to"),
        (Rule("4", "OCR", (Range("credits", at_most=251),), 5), "tool OCR: rules 4, 5 all apply"),
        (Rule("21", "Calculator", (FIRST,), "Solver"), "tool Calculator"),
        (Rule("x", "OCR", (Account(("A",)),), 5), "rule 'x': the id is a number"),
        (Rule("OCR.5", "OCR", (FIRST,), 5), "rule 'OCR.5': the id is a number"),
    ],
)
def test_rules_that_cannot_be(rule: Rule, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        with_rules(rule)


def test_a_versioned_tool_needs_rules() -> None:
    with pytest.raises(ValueError, match="tool OCR has 5 versions and 0 rules"):
        GTAPolicy("p", tool_table([TOOLS["OCR"]]), ())


def test_an_id_is_there_once_and_fits_the_style() -> None:
    policy = gta_policy()
    with pytest.raises(ValueError, match="rule '1'.*each once"):
        replace(policy, rules=(*policy.rules, policy.rules[0]))
    with pytest.raises(ValueError, match="the id is ImageDescription.<number>"):
        replace(policy, style="compact", tips=())
    with pytest.raises(ValueError, match="compact style shows no tips"):
        replace(gta_policy("compact"), tips=("Be kind.",))


@pytest.mark.parametrize(
    "text", ["Two\nlines.", "Rule 4 (OCR): If", "# Tips", " space", "a\u2028b"]
)
def test_a_description_cannot_pass_for_a_rule(text: str) -> None:
    policy = gta_policy()
    with pytest.raises(ValueError, match="policy gta: a description or tip"):
        replace(policy, tips=(text,))
    web = Tool("Web", text, ())
    with pytest.raises(ValueError, match="policy gta: a description or tip"):
        replace(policy, tools=tool_table([*TOOLS.values(), web]))
    web = Tool("Web", "", (Argument("q", "text", text),))
    with pytest.raises(ValueError, match="policy gta: a description or tip"):
        replace(policy, tools=tool_table([*TOOLS.values(), web]))


def test_another_tool_and_rule_are_data() -> None:
    web = Tool("WebPage", "Opens a web page.", (Argument("url", "text", "its address"),), 2)
    young, old = Range("age", under=14), Range("age", at_least=14)
    rules = (Rule("21", "WebPage", (young,), 1), Rule("22", "WebPage", (old,), 2))
    policy = gta_policy()
    larger = replace(
        policy, tools=tool_table([*TOOLS.values(), web]), rules=(*policy.rules, *rules)
    )
    assert larger.route("WebPage", Profile("A", 1, 13)).name == "WebPage_v1"
    assert larger.route("WebPage", Profile("A", 1, 14)).name == "WebPage_v2"
    assert "Rule 22 (WebPage): If the age is at least 14, use WebPage_v2." in larger.text
    assert "- url (text): its address" in larger.text


@pytest.mark.parametrize("style", STYLES)
def test_an_override_changes_its_rules_and_no_other(style: str) -> None:
    policy = gta_policy(style)
    changed = swapped_versions(policy, {"OCR": [5, 4, 3, 2, 1]})
    block, new = policy.override(changed)
    assert [r.id for r in changed] == [r.id for r in policy.rules if r.tool == "OCR"][:3]
    for tool, profile, name in CASES:
        expected = f"OCR_v{6 - int(name[-1])}" if tool == "OCR" else name
        assert new.route(tool, profile).name == expected
    assert new.route("OCR", CASES[0][1], formulas=True).name == "MathOCR"
    assert policy == gta_policy(style)
    ids = [rule.id for rule in policy.rules if f"{rule.id} " in block]
    assert [i for i in ids if f"Rule {i} (" in block or style == "compact"] == [
        rule.id for rule in changed
    ]


def test_overrides_of_bounds_move_together_or_not_at_all() -> None:
    policy = gta_policy()
    four = Rule("4", "OCR", (Range("credits", at_most=300),), 5)
    five = replace(policy.rule("5"), when=(Range("credits", over=300, at_most=750),))
    with pytest.raises(ValueError, match="tool OCR: rules 4, 5 all apply to .*credits=251"):
        policy.override([four])
    with pytest.raises(ValueError, match="tool OCR: no rule applies to .*credits=251"):
        policy.override([five])
    _, new = policy.override([five, four])
    assert [new.route("OCR", Profile("A", c, 30)).name for c in (300, 301)] == ["OCR_v5", "OCR_v4"]
    assert [rule.id for rule in new.rules] == [rule.id for rule in policy.rules]


def test_overrides_that_cannot_be() -> None:
    policy = gta_policy()
    four = Rule("4", "OCR", (FIRST,), 1)
    for changed, named in [
        ([], "one rule or more"),
        ([four, four], "each once"),
        ([policy.rule("4")], "rule 4 is the same as before"),
        ([replace(four, id="99")], "no rule '99'"),
        ([replace(four, tool="GoogleSearch")], "rule 4 is one of OCR, not GoogleSearch"),
        ([replace(four, then=9)], "9 is no version of OCR"),
    ]:
        with pytest.raises(ValueError, match=named):
            policy.override(changed)


@pytest.mark.parametrize("style", STYLES)
def test_reversed_versions(style: str) -> None:
    """Version k of n becomes n + 1 - k for every user; rules of the middle one stay."""
    policy = gta_policy(style)
    changed = swapped_versions(policy)
    _, new = policy.override(changed)
    for tool, profile, name in CASES:
        mirrored = TOOLS[tool].versions + 1 - int(name[-1])
        assert new.route(tool, profile).name == f"{tool}_v{mirrored}"
    assert len(changed) == 18  # neither formulas nor ImageStylization_v2
    assert swapped_versions(new) != changed
    assert new.override(swapped_versions(new))[1] == policy


def test_drawn_versions_follow_the_seed_and_change_every_tool() -> None:
    policy = gta_policy()
    drawn = [swapped_versions(policy, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    for changed in drawn:
        assert {rule.tool for rule in changed} == {rule.tool for rule in policy.rules}
        policy.override(changed)


@pytest.mark.parametrize("order", [{"OCR": [1, 2]}, {"OCR": [1, 1, 2, 3, 4]}, {"Plot": [2, 1]}])
def test_orders_that_cannot_be(order: dict[str, list[int]]) -> None:
    with pytest.raises(ValueError, match="are not its versions, each once"):
        swapped_versions(gta_policy(), order)


@pytest.mark.parametrize("seed", range(20))
def test_random_policies_route_every_profile_by_one_rule(seed: int) -> None:
    """The rule that applies is the only one that does, unless the picture decides."""
    policy = random_policy(seed, "full")
    for profile, formulas in every_profile(policy, seed):
        for tool in policy.tools:
            applying = [
                rule.id
                for rule in policy.rules
                if rule.tool == tool and rule.on_picture == formulas and rule.applies(profile, True)
            ]
            routing = policy.route(tool, profile, formulas)
            if applying:
                assert [routing.rule] == applying
