"""Reasoning about a tool's version, written from the rules; and what a response cites of them.

The answer is known, and the reasoning says how the rules lead to it (the paper's reverse
reasoning). Full style has a line for each rule, compact style one word for each token:

    OCR.1 credits upto 250 no OCR.2 credits over 250 upto 750 yes account A B no v3
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from fastmpi.policies.cited_rule import CITED_CHARACTERS, Citation
from fastmpi.policies.gta.parse import quoted_tests
from fastmpi.policies.gta.policy import GTAPolicy, Routing, Step
from fastmpi.policies.gta.rules import Choice, Profile, Rule, Test
from fastmpi.policies.gta.text import test_text

_FULL_ID = re.compile(r"\brules?\s{1,4}([0-9]{1,40}(?:\.[0-9]{1,40}){0,8})\b", re.IGNORECASE)
_COMPACT_ID = re.compile(r"(?<![^\s>])([A-Za-z]\w*\.[0-9]{1,40})(?!\S)", re.ASCII)


def gta_reasoning(policy: GTAPolicy, tool: str, profile: Profile, formulas: bool = False) -> str:
    """How the rules lead from `profile` to the name that `tool` is called by.

    Goes through the tool's rules in order until one applies, as `GTAPolicy.route` does.
    """
    routing = policy.route(tool, profile, formulas)
    if policy.style == "compact":
        words = [_compact_step(step) for step in routing.steps]
        return " ".join([*words, _compact_name(tool, routing.name)])
    return "\n".join(
        [_opening(tool, profile, routing), *_lines(routing), f"The call is {routing.name}."]
    )


def gta_citations(text: str, policy: GTAPolicy) -> list[Citation]:
    """The rules that a response cites before `</think>`, in their order.

    Full style: "Rule 4" and, up to the end of its line or the next citation, the tests that are
    quoted, as in the policy's words ("the credits are over 250") or without verb ("credits over
    250"); a mention that quotes nothing, right before another of the same rule, only announces it.
    Compact style: the id and the words up to yes or no. A citation is faithful where these are the
    rule's condition, and after it nothing or the test of the rule's choice; one that quotes no
    test is not. Only the first `CITED_CHARACTERS` are read; time is linear.
    """
    text = text[:CITED_CHARACTERS].partition("</think>")[0]
    rules = {rule.id: rule for rule in policy.rules}
    if policy.style == "compact":
        judged = [
            (name, _compact_faithful(rules.get(name), q)) for name, q in _quotes(text, _COMPACT_ID)
        ]
    else:
        judged = [(name, _full_faithful(rules.get(name), q)) for name, q in _full_quotes(text)]
    return [Citation(name, name in rules, faithful) for name, faithful in judged]


def _opening(tool: str, profile: Profile, routing: Routing) -> str:
    if not routing.steps:
        return f"The next step needs {tool}. It has one version."
    return (
        f"The next step needs {tool}. The user has account type {profile.account_type} and "
        f"{profile.credits} credits, and is {profile.age} years old."
    )


def _lines(routing: Routing) -> Iterator[str]:
    """One line for each rule; the test of a choice stands in its rule's line."""
    line = ""
    for step in routing.steps:
        answer = "Yes" if step.satisfied else "No"
        asked = ", and ".join(test_text(test) for test in step.tests)
        if step.inner:
            line += f" {asked[0].upper()}{asked[1:]}? {answer}."
            continue
        if line:
            yield line
        line = f"Rule {step.rule}: {asked}? {answer}."
    if line:
        yield line


def _compact_step(step: Step) -> str:
    asked = " and ".join(test_text(test, "compact") for test in step.tests)
    return f"{'' if step.inner else step.rule + ' '}{asked} {'yes' if step.satisfied else 'no'}"


def _compact_name(tool: str, name: str) -> str:
    """'v3' for a version of the tool itself, else the name of the other tool."""
    version = re.fullmatch(rf"{re.escape(tool)}_(v[0-9]+)", name)
    return version[1] if version else name


def _quotes(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """Each cited id and what follows it, up to the next one."""
    pieces = pattern.split(text)  # what stands before, id, what follows, id, what follows, ...
    yield from zip(pieces[1::2], pieces[2::2], strict=True)


def _full_quotes(text: str) -> Iterator[tuple[str, tuple[Test, ...]]]:
    quotes = [(name, quoted_tests(q.partition("\n")[0])) for name, q in _quotes(text, _FULL_ID)]
    for (name, tests), (after, _) in pairwise([*quotes, ("", ())]):
        if tests or name != after:
            yield name, tests


def _full_faithful(rule: Rule | None, tests: tuple[Test, ...]) -> bool:
    return rule is not None and tests in (rule.when, rule.tests)


def _compact_faithful(rule: Rule | None, quote: str) -> bool:
    if rule is None:
        return False
    groups: list[list[str]] = [[]]
    answers = []
    for word in quote.split():
        if word in ("yes", "no"):
            answers.append(word)
            groups.append([])
        else:
            groups[-1].append(word)
    return groups[:-1] in _faithful_groups(rule, answers)


def _faithful_groups(rule: Rule, answers: Sequence[str]) -> list[list[list[str]]]:
    """The words between answers that quote `rule` truly."""
    when = " and ".join(test_text(test, "compact") for test in rule.when).split()
    accepted = [[when]]
    if isinstance(rule.then, Choice) and answers[:1] == ["yes"]:
        accepted.append([when, test_text(rule.then.test, "compact").split()])
    return accepted
