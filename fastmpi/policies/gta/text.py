"""A tool policy in words.

Two styles, as of a decision tree (`fastmpi.policies.clevr_text`). `full` describes tools, rules and
tips to a person, about nine thousand characters for the paper's policy. `compact` is one word for
one token and has only the rules:

    policy gta : OCR.1 if credits upto 250 then v5 ; OCR.2 if credits over 250 upto 750 then
    account A B v4 v3 ; OCR.3 if credits over 750 then age under 21 v2 v1 end

After `then` stands a version, or a second test with the version for yes and the version for no.
`fastmpi.policies.gta.parse` reads both back into the same rules: text and behaviour cannot differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fastmpi.policies.clevr_text import checked_style
from fastmpi.policies.gta.rules import (
    Account,
    Choice,
    Formulas,
    Profile,
    Range,
    Rule,
    Target,
    Test,
)
from fastmpi.policies.gta.tools import Argument, Tool

if TYPE_CHECKING:
    from fastmpi.policies.gta.policy import GTAPolicy

# The words for a bound in both styles.
FULL_BOUNDS = {"over": "over", "at_least": "at least", "under": "under", "at_most": "at most"}
COMPACT_BOUNDS = {"over": "over", "at_least": "from", "under": "under", "at_most": "upto"}

GENERAL_INSTRUCTION = """\
You are an assistant that solves requests about images step by step, by calling tools. You are \
given one or more images, the profile of the user, the request, and the history: the calls that \
were made so far and what they returned. Decide on the next call, and make exactly one.

Answer with a JSON object and nothing else: {"name": "<tool>", "arguments": {"<argument>": \
<value>, ...}}, for example {"name": "CountGivenObject_v2", "arguments": {"image": \
"image/image_1.jpg", "text": "red apple"}}. "name" is one of the names listed below, \
written in full. "arguments" has every argument that the tool needs, with the names and types \
listed there; an optional argument may be left out and then has its default. Do not invent tools, \
arguments or values: what a call needs comes from the images, the request or the history.

Many tools exist in several versions, which differ in speed and quality and are called with the \
same arguments. A user may use only one version of each. Which one it is follows from the \
profile: the account type (A, B, C or D), the credits that are left, and the age in years. First \
choose the type of tool that the request needs next. Then find the routing rule of this tool \
whose condition the profile satisfies; for every profile there is exactly one. A rule about what \
the image contains comes before those about the profile. A tool without a rule has one version, \
and every user may use it."""

OVERRIDE_INSTRUCTION = """\
The rules below replace the rules of the same number in the policy. All other rules, the tools and \
the tips stay as they are."""


def policy_text(policy: GTAPolicy) -> str:
    """The whole policy as text, in its own style."""
    if policy.style == "compact":
        return f"policy {policy.name} : {_compact_rules(policy.rules)} end"
    tools = "\n\n".join(map(_tool_text, policy.tools.values()))
    rules = "\n".join(map(rule_text, policy.rules))
    tips = "\n".join(f"Tip {k}: {tip}" for k, tip in enumerate(policy.tips, start=1))
    return (
        f"# Tool policy {policy.name}\n\n{GENERAL_INSTRUCTION}\n\n# Tools\n\n{tools}\n\n"
        f"# Routing rules\n\n{rules}\n" + (f"\n# Tips\n\n{tips}\n" if tips else "")
    )


def override_text(name: str, rules: Sequence[Rule], style: str) -> str:
    """The block that announces changed rules of policy `name`, and names no other."""
    if checked_style(style) == "compact":
        return f"change {name} : {_compact_rules(rules)} end"
    lines = "\n".join(map(rule_text, rules))
    return f"# Changed rules of tool policy {name}\n\n{OVERRIDE_INSTRUCTION}\n\n{lines}\n"


def profile_text(profile: Profile, style: str = "full") -> str:
    """'Account type: B. Credits: 430. Age: 34.', or 'account B credits 430 age 34'."""
    if checked_style(style) == "compact":
        return f"account {profile.account_type} credits {profile.credits} age {profile.age}"
    return f"Account type: {profile.account_type}. Credits: {profile.credits}. Age: {profile.age}."


def rule_text(rule: Rule, style: str = "full") -> str:
    """One rule, in full style a sentence that says everything: 'Rule 4 (OCR): If the credits ...'.

    >>> rule_text(rule, "compact")
    'OCR.2 if credits over 250 upto 750 then account A B v4 v3'
    """
    name = target_name(rule.tool, rule.targets[0])
    if checked_style(style) == "compact":
        then = _compact_target(rule.targets[0])
        if isinstance(rule.then, Choice):
            then = f"{test_text(rule.then.test, style)} {then} {_compact_target(rule.then.no)}"
        return f"{rule.id} if {when_text(rule, style)} then {then}"
    when = ", and ".join(map(_clause, rule.when))
    if isinstance(rule.then, Choice):
        other = target_name(rule.tool, rule.then.no)
        name = f"{name} if {_clause(rule.then.test)}, otherwise {other}"
    return f"Rule {rule.id} ({rule.tool}): If {when}, use {name}."


def when_text(rule: Rule, style: str = "full") -> str:
    """A rule's condition as reasoning quotes it: 'credits over 250 and at most 750'."""
    joint = ", and " if checked_style(style) == "full" else " and "
    return joint.join(test_text(test, style) for test in rule.when)


def test_text(test: Test, style: str = "full") -> str:
    """One test as reasoning quotes it: 'account type A or B', or 'account A B'."""
    full = checked_style(style) == "full"
    if isinstance(test, Formulas):
        return "formulas in the image" if full else "formulas"
    if isinstance(test, Account):
        return f"account type {_listed(test.types)}" if full else f"account {' '.join(test.types)}"
    return f"{test.field} {_bounds_text(test, full)}"


def target_name(tool: str, target: Target) -> str:
    """The name that is called: 'OCR_v4' for version 4 of OCR, another tool's name as it is."""
    return f"{tool}_v{target}" if isinstance(target, int) else target


def _tool_text(tool: Tool) -> str:
    arguments = "\n".join(map(_argument_text, tool.arguments))
    return f"## {tool.name}\n{_names(tool)}\n{tool.description}\nArguments:\n{arguments}"


def _names(tool: Tool) -> str:
    return f"Name{'s' if tool.versions > 1 else ''}: {', '.join(tool.names)}"


def _argument_text(argument: Argument) -> str:
    kind = argument.type
    if argument.optional:
        kind += f", optional, default {json.dumps(argument.default)}"
    return f"- {argument.name} ({kind}): {argument.description}"


def _compact_rules(rules: Iterable[Rule]) -> str:
    return " ; ".join(rule_text(rule, "compact") for rule in rules)


def _compact_target(target: Target) -> str:
    return f"v{target}" if isinstance(target, int) else target


def _clause(test: Test) -> str:
    """A test as a clause: 'the credits are over 250 and at most 750'."""
    if isinstance(test, Formulas):
        return "the image contains formulas"
    if isinstance(test, Account):
        return f"the account type is {_listed(test.types)}"
    return f"the {test.field} {_verb(test.field)} {_bounds_text(test, True)}"


def _verb(field: str) -> str:
    return "are" if field == "credits" else "is"


def _bounds_text(test: Range, full: bool) -> str:
    words = FULL_BOUNDS if full else COMPACT_BOUNDS
    return (" and " if full else " ").join(
        f"{words[name]} {bound}" for name, bound in test.bounds()
    )


def _listed(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)
