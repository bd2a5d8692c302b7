"""Tool policies for tests: random ones, of all kinds of rules, and profiles for them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastmpi.policies.gta.policy import GTAPolicy
from fastmpi.policies.gta.rules import (
    ACCOUNT_TYPES,
    FIELDS,
    Account,
    Choice,
    Formulas,
    Profile,
    Range,
    Rule,
    Target,
    Test,
    boundary_profiles,
)
from fastmpi.policies.gta.tools import Argument, Tool, tool_table

READER = Tool("reader", "Reads.", (Argument("image", "image", "the image"),))


def random_policy(seed: int, style: str) -> GTAPolicy:
    """One to three versioned tools, each of one to nine rules, some of them on the picture."""
    rng = np.random.default_rng(seed)
    tools = [READER]
    rules: list[Rule] = []
    for number in range(int(rng.integers(1, 4))):
        tool = Tool(f"Tool{number}_x", "Works.", READER.arguments, int(rng.integers(2, 6)))
        tools.append(tool)
        cells = [tuple(tests) for tests in _cells(rng, 2)]
        if rng.random() < 0.5:
            cells.append((Formulas(),))
        for place in rng.permutation(len(cells)):
            own = sum(rule.tool == tool.name for rule in rules) + 1
            rule_id = str(len(rules) + 1) if style == "full" else f"{tool.name}.{own}"
            rules.append(Rule(rule_id, tool.name, cells[place], _then(rng, tool)))
    tips = ("Read first.",) if style == "full" else ()
    return GTAPolicy(f"p{seed}", tool_table(tools), tuple(rules), tips, style)


def every_profile(policy: GTAPolicy, seed: int = 0) -> list[tuple[Profile, bool]]:
    """All boundary profiles and a few others, without and with formulas in the picture."""
    rng = np.random.default_rng(seed)
    others = [
        Profile(str(rng.choice(ACCOUNT_TYPES)), int(rng.integers(1000)), int(rng.integers(100)))
        for _ in range(50)
    ]
    profiles = [*boundary_profiles(policy.rules), *others]
    return [(profile, formulas) for profile in profiles for formulas in (False, True)]


def _cells(rng: np.random.Generator, depth: int) -> Iterator[list[Test]]:
    """Conditions that divide all profiles among them, of one or two tests each."""
    for test in _division(rng, str(rng.choice(["account", *FIELDS]))):
        if depth > 1 and rng.random() < 0.3:
            other = next(n for n in ("account", *FIELDS) if n != _subject(test))
            for inner in _division(rng, other):
                yield [test, inner]
        else:
            yield [test]


def _division(rng: np.random.Generator, subject: str) -> list[Test]:
    if subject == "account":
        kinds = rng.permutation(ACCOUNT_TYPES)
        cut = int(rng.integers(1, 4))
        return [Account(tuple(sorted(map(str, part)))) for part in (kinds[:cut], kinds[cut:])]
    low, high = sorted(int(n) for n in rng.choice(np.arange(2, 99), 2, replace=False))
    closed = bool(rng.random() < 0.5)  # does a bound belong to the numbers below it?
    below, above = ("at_most", "over") if closed else ("under", "at_least")
    return [
        Range(subject, **{below: low}),
        Range(subject, **{above: low, below: high}),
        Range(subject, **{above: high}),
    ]


def _subject(test: Test) -> str:
    return "account" if isinstance(test, Account) else getattr(test, "field", "formulas")


def _then(rng: np.random.Generator, tool: Tool) -> Target | Choice:
    targets: list[Target] = [*range(1, tool.versions + 1), "reader"]
    first, second = (targets[i] for i in rng.permutation(len(targets))[:2])
    if rng.random() < 0.5:
        return first
    test = _division(rng, str(rng.choice(["account", *FIELDS])))[0]
    return Choice(test, first, second)
