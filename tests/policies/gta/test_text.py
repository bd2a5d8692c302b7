"""The words of a tool policy: everything is said in full style, one token a word in compact."""

from __future__ import annotations

import re

import pytest

from fastmpi.models.tokenizer import build_tokenizer
from fastmpi.policies.gta.policy import gta_policy
from fastmpi.policies.gta.rules import Account, Choice, Formulas, Profile, Range, Rule
from fastmpi.policies.gta.text import override_text, profile_text, rule_text, when_text
from fastmpi.policies.gta.tools import TOOLS


def test_full_text_has_all_tools_names_rules_and_tips() -> None:
    """14 tool types of 32 names, 20 rules and 4 tips, in about nine thousand characters."""
    text = gta_policy().text
    assert re.findall(r"^## (.*)$", text, re.M) == list(TOOLS)
    names = [n for line in re.findall(r"^Names?: (.*)$", text, re.M) for n in line.split(", ")]
    assert sorted(names) == sorted(n for tool in TOOLS.values() for n in tool.names)
    assert len(set(names)) == 32
    assert re.findall(r"^Rule (\d+) \(", text, re.M) == [str(k) for k in range(1, 21)]
    assert re.findall(r"^Tip (\d+): ", text, re.M) == ["1", "2", "3", "4"]
    assert 8000 < len(text) < 10_000


def test_full_text_says_how_to_answer() -> None:
    text = gta_policy().text
    assert '{"name": "<tool>", "arguments": {"<argument>": <value>, ...}}' in text
    assert text.startswith("# Tool policy gta\n\nYou are an assistant")


def test_full_text_lists_arguments() -> None:
    text = gta_policy().text
    listed = re.findall(r"^- (\w+) \((\w+)(?:, optional, default (.*))?\): .+$", text, re.M)
    expected = [
        (a.name, a.type, {10: "10", True: "true", None: "null", "red": '"red"'}[a.default])
        if a.optional
        else (a.name, a.type, "")
        for tool in TOOLS.values()
        for a in tool.arguments
    ]
    assert listed == expected


# Every rule of the paper's table, as the text says it.
@pytest.mark.parametrize(
    "sentence",
    [
        "Rule 1 (ImageDescription): If the account type is A, use ImageDescription_v5.",
        "Rule 2 (ImageDescription): If the account type is B or C, use ImageDescription_v4 if the "
        "credits are over 500, otherwise ImageDescription_v3.",
        "Rule 3 (ImageDescription): If the account type is D, use ImageDescription_v2 if the "
        "credits are over 500, otherwise ImageDescription_v1.",
        "Rule 4 (OCR): If the credits are at most 250, use OCR_v5.",
        "Rule 5 (OCR): If the credits are over 250 and at most 750, use OCR_v4 if the account type "
        "is A or B, otherwise OCR_v3.",
        "Rule 6 (OCR): If the credits are over 750, use OCR_v2 if the age is under 21, otherwise "
        "OCR_v1.",
        "Rule 7 (OCR): If the image contains formulas, use MathOCR.",
        "Rule 8 (GoogleSearch): If the age is under 21, use GoogleSearch_v1.",
        "Rule 9 (GoogleSearch): If the age is at least 21, use GoogleSearch_v2 if the credits are "
        "under 500, otherwise GoogleSearch_v3.",
        "Rule 10 (TextToImage): If the account type is A, B or C, use TextToImage_v1.",
        "Rule 11 (TextToImage): If the account type is D, use TextToImage_v2 if the credits are "
        "over 500, otherwise TextToImage_v3.",
        "Rule 12 (RegionAttributeDescription): If the account type is A or B, use "
        "RegionAttributeDescription_v2.",
        "Rule 13 (RegionAttributeDescription): If the account type is C or D, use "
        "RegionAttributeDescription_v1.",
        "Rule 14 (CountGivenObject): If the credits are under 250, use CountGivenObject_v1.",
        "Rule 15 (CountGivenObject): If the credits are at least 250 and under 500, use "
        "CountGivenObject_v2.",
        "Rule 16 (CountGivenObject): If the credits are at least 500 and under 750, use "
        "CountGivenObject_v3.",
        "Rule 17 (CountGivenObject): If the credits are at least 750, use CountGivenObject_v4.",
        "Rule 18 (ImageStylization): If the age is under 21, use ImageStylization_v1.",
        "Rule 19 (ImageStylization): If the age is at least 21 and under 60, use "
        "ImageStylization_v2.",
        "Rule 20 (ImageStylization): If the age is at least 60, use ImageStylization_v3.",
    ],
)
def test_full_rules(sentence: str) -> None:
    assert f"\n{sentence}\n" in gta_policy().text


OCR = [
    "OCR.1 if credits upto 250 then v5",
    "OCR.2 if credits over 250 upto 750 then account A B v4 v3",
    "OCR.3 if credits over 750 then age under 21 v2 v1",
    "OCR.4 if formulas then MathOCR",
]


def test_compact() -> None:
    text = gta_policy("compact").text
    assert text.startswith("policy gta : ImageDescription.1 if account A then v5 ; ")
    assert text.endswith(" ; ImageStylization.3 if age from 60 then v3 end")
    assert " ; " + " ; ".join(OCR) + " ; " in text
    assert text.count(" ; ") == 19


def test_compact_is_one_token_a_word() -> None:
    text = gta_policy("compact").text
    first, *others = text.split()
    words = [first, *(" " + word for word in dict.fromkeys(others))]
    tokenizer = build_tokenizer(words, max_vocab_size=2000)
    assert len(tokenizer(text)["input_ids"]) == len(text.split())


BOTH = Rule("3", "OCR", (Account(("A", "D")), Range("age", under=9)), Choice(Account(("A",)), 1, 2))


def test_a_rule_of_two_tests() -> None:
    assert rule_text(BOTH) == (
        "Rule 3 (OCR): If the account type is A or D, and the age is under 9, use OCR_v1 if the "
        "account type is A, otherwise OCR_v2."
    )
    compact = Rule("OCR.3", "OCR", BOTH.when, BOTH.then)
    assert rule_text(compact, "compact") == (
        "OCR.3 if account A D and age under 9 then account A v1 v2"
    )
    assert when_text(BOTH) == "account type A or D, and age under 9"
    assert when_text(BOTH, "compact") == "account A D and age under 9"


def test_override_names_the_changed_rules_only() -> None:
    text = override_text("gta", [BOTH, Rule("7", "OCR", (Formulas(),), 5)], "full")
    assert text.startswith("# Changed rules of tool policy gta\n\nThe rules below replace ")
    assert re.findall(r"^Rule (\d+)", text, re.M) == ["3", "7"]
    assert text.endswith("\nRule 7 (OCR): If the image contains formulas, use OCR_v5.\n")
    compact = override_text("gta", [Rule("OCR.4", "OCR", (Formulas(),), 5)], "compact")
    assert compact == "change gta : OCR.4 if formulas then v5 end"


def test_profile() -> None:
    profile = Profile("B", 430, 34)
    assert profile_text(profile) == "Account type: B. Credits: 430. Age: 34."
    assert profile_text(profile, "compact") == "account B credits 430 age 34"


def test_an_unknown_style() -> None:
    with pytest.raises(ValueError, match="style 'long' is none of full, compact"):
        profile_text(Profile("B", 430, 34), "long")
