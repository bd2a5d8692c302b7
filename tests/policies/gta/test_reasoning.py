"""Reasoning that the rules write, and the rules that a response cites."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from fastmpi.policies.cited_rule import Citation
from fastmpi.policies.gta.policy import gta_policy
from fastmpi.policies.gta.reasoning import gta_citations, gta_reasoning
from fastmpi.policies.gta.rules import Profile

sys.path.insert(0, str(Path(__file__).parent))
from gta_samples import every_profile, random_policy  # noqa: E402

STYLES = ["full", "compact"]
FULL, COMPACT = gta_policy("full"), gta_policy("compact")
USER = Profile("C", 430, 34)


def test_full() -> None:
    assert gta_reasoning(FULL, "OCR", USER) == (
        "The next step needs OCR. The user has account type C and 430 credits, and is 34 years "
        "old.\n"
        "Rule 7: formulas in the image? No.\n"
        "Rule 4: credits at most 250? No.\n"
        "Rule 5: credits over 250 and at most 750? Yes. Account type A or B? No.\n"
        "The call is OCR_v3."
    )


def test_compact() -> None:
    assert gta_reasoning(COMPACT, "OCR", USER) == (
        "OCR.4 formulas no OCR.1 credits upto 250 no OCR.2 credits over 250 upto 750 yes "
        "account A B no v3"
    )
    assert gta_reasoning(COMPACT, "OCR", USER, formulas=True) == "OCR.4 formulas yes MathOCR"
    assert gta_reasoning(COMPACT, "ImageDescription", Profile("A", 1, 1)) == (
        "ImageDescription.1 account A yes v5"
    )


def test_a_tool_of_one_version() -> None:
    assert gta_reasoning(COMPACT, "Calculator", USER) == "Calculator"
    assert gta_reasoning(FULL, "Calculator", USER) == (
        "The next step needs Calculator. It has one version.\nThe call is Calculator."
    )
    assert gta_citations(gta_reasoning(FULL, "Calculator", USER), FULL) == []


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("seed", [None, *range(12)])
def test_reasoning_cites_truly_what_it_goes_through(seed: int | None, style: str) -> None:
    policy = gta_policy(style) if seed is None else random_policy(seed, style)
    for profile, formulas in every_profile(policy)[::7]:
        for tool in policy.tools:
            routing = policy.route(tool, profile, formulas)
            text = gta_reasoning(policy, tool, profile, formulas)
            cited = [Citation(rule, True, True) for rule in routing.cited]
            assert gta_citations(text, policy) == cited
            assert text.rstrip(".").endswith(routing.name.removeprefix(f"{tool}_"))


def verdicts(text: str, style: str = "full") -> list[tuple[str, str]]:
    """Each cited id: true, false (there is one, with another test) or none."""
    policy = FULL if style == "full" else COMPACT
    words = {(True, True): "true", (True, False): "false", (False, False): "none"}
    return [(c.id, words[c.exists, c.faithful]) for c in gta_citations(text, policy)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rule 4: credits at most 250? No.", [("4", "true")]),
        ("Rule 4 says that the credits are at most 250, which is false.", [("4", "true")]),
        ("rule 4 (credits at most 250)", [("4", "true")]),
        ("Rule 4: credits at most 251? No.", [("4", "false")]),
        ("Rule 4: credits under 250? No.", [("4", "false")]),
        ("Rule 4: credits over 250? No.", [("4", "false")]),
        ("Rule 4: age at most 250? No.", [("4", "false")]),
        ("Rule 4: no.", [("4", "false")]),
        ("Rule 4:\ncredits at most 250? No.", [("4", "false")]),
        ("Rule 14: credits at most 250? No.", [("14", "false")]),
        ("Rule 21: credits at most 250? No.", [("21", "none")]),
        ("Rule 04: credits at most 250? No.", [("04", "none")]),
        ("Rule 4.1: credits at most 250? No.", [("4.1", "none")]),
        ("Rule 4. Credits at most 250? No.", [("4", "true")]),
        ("Rule 5: credits over 250 and at most 750? Yes.", [("5", "true")]),
        ("Rule 5: credits over 250? Yes.", [("5", "false")]),
        (
            "Rule 5: credits over 250 and at most 750? Yes. Account type A or B? No.",
            [("5", "true")],
        ),
        (
            "Rule 5: credits over 250 and at most 750? Yes. Account type A or C? No.",
            [("5", "false")],
        ),
        (
            "Rule 4: credits at most 250? Yes. Account type A or B? No.",
            [("4", "false")],
        ),
        ("Rule 5: account type A or B? No.", [("5", "false")]),
        (
            "Rule 4: credits at most 250? No. Rule 7: formulas in the image? No.",
            [("4", "true"), ("7", "true")],
        ),
        ("By Rule 4 then. Rule 4: credits at most 250? Yes.", [("4", "true")]),
        ("By Rule 4 then. Rule 6: credits over 750? Yes.", [("4", "false"), ("6", "true")]),
        ("Rule 4: credits at most 250? No.</think>Rule 5", [("4", "true")]),
        ("Rule OCR.4, Ruler 5, overrule 6, rule v5, Rule ٤", []),
        ("", []),
    ],
)
def test_full_citations(text: str, expected: list[tuple[str, str]]) -> None:
    assert verdicts(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("OCR.1 credits upto 250 no", [("OCR.1", "true")]),
        ("OCR.1 credits upto 250 yes v5", [("OCR.1", "true")]),
        ("OCR.1 credits upto 250", [("OCR.1", "false")]),
        ("OCR.1 credits upto 251 no", [("OCR.1", "false")]),
        ("OCR.1 credits under 250 no", [("OCR.1", "false")]),
        ("OCR.1 no", [("OCR.1", "false")]),
        ("OCR.9 credits upto 250 no", [("OCR.9", "none")]),
        ("Ocr.1 credits upto 250 no", [("Ocr.1", "none")]),
        ("OCR.2 credits over 250 upto 750 yes account A B no v3", [("OCR.2", "true")]),
        ("OCR.2 credits over 250 upto 750 yes v3", [("OCR.2", "true")]),
        ("OCR.2 credits over 250 upto 750 no account A B no v3", [("OCR.2", "false")]),
        ("OCR.2 credits over 250 upto 750 yes account A C no v3", [("OCR.2", "false")]),
        ("OCR.1 credits upto 250 yes account A B no v3", [("OCR.1", "false")]),
        ("OCR.2 credits over 250 upto 750 yes account A B no yes", [("OCR.2", "false")]),
        (
            "OCR.1 OCR.1 credits upto 250 no",
            [("OCR.1", "false"), ("OCR.1", "true")],
        ),
        (
            "<think>OCR.4 formulas no OCR.1 credits upto 250 yes v5</think>OCR.2",
            [("OCR.4", "true"), ("OCR.1", "true")],
        ),
        ("image/image_1.5 1.5 v1.", []),
        ("", []),
    ],
)
def test_compact_citations(text: str, expected: list[tuple[str, str]]) -> None:
    assert verdicts(text, "compact") == expected


HOSTILE = [
    "Rule ",
    "Rule 1 ",
    "Rule 5: credits over 250 and ",
    "Rule 1." + "1." * 50,
    "OCR.1 ",
    "OCR.2 credits yes ",
    "a" * 1000,
    "rule\n",
    "Rule 99999999999999999999 ",
    "account type A, ",
    "</script><script>alert(1)</script>",
    "__import__('os').system('false') 9**9**9 NaN \u202e\x00",
    "{",
    "1",
    "yes ",
]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_text(piece: str, style: str) -> None:
    """Ten megabytes of anything, cut at the end at any place: no error, and not for long."""
    policy = FULL if style == "full" else COMPACT
    text = piece * (10_000_000 // len(piece))
    start = time.perf_counter()
    citations = gta_citations(text, policy)
    assert time.perf_counter() - start < 1
    assert not any(citation.faithful for citation in citations)
    assert len(citations) < 40_000
