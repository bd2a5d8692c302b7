"""Synthetic users for dialogs: account type, credits and age, drawn so that every rule is needed.

Uniform users reach some branches of the rules rarely, and a bound (250 credits, 21 years) almost
never. So candidates often lie on a bound or one beside it, and of several candidates the dialog
gets the one whose branches have been needed least so far.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from fastmpi.policies.gta.dialogs import Dialog
from fastmpi.policies.gta.policy import GTAPolicy, Routing
from fastmpi.policies.gta.rules import ACCOUNT_TYPES, Profile, Range

CREDITS, AGES = (0, 1000), (14, 80)  # both ends included; the paper does not give its ranges
ON_BOUND = 0.4  # share of the numbers that lie on a bound of a rule or one beside it
CANDIDATES = 64

Branch = tuple[str, str]
"""The id of a rule, and the name it led to."""


class ProfileSource:
    """Draws a profile for each dialog; remembers what it gave."""

    def __init__(self, rng: np.random.Generator, policy: GTAPolicy) -> None:
        self._rng, self._policy = rng, policy
        self._credits = _near_bounds(policy, "credits", CREDITS)
        self._ages = _near_bounds(policy, "age", AGES)
        self._needed: Counter[Branch] = Counter()

    def profile_for(self, dialog: Dialog) -> Profile:
        """The user of this dialog, the same in all of its calls."""
        tools = [routed_tool(self._policy, call.tool) for call in dialog.calls]
        best: tuple[float, list[Branch], Profile] | None = None
        for _ in range(CANDIDATES):
            profile = self._draw()
            branches = [branch(self._policy.route(t, profile, f)) for t, f in tools]
            # A branch that nobody has needed yet outweighs any number of common ones.
            novelty = sum((1 + self._needed[place]) ** -3 for place in branches)
            if best is None or novelty > best[0]:
                best = (novelty, branches, profile)
        assert best is not None
        self._needed.update(place for place in best[1] if place[0])
        return best[2]

    def _draw(self) -> Profile:
        kind = ACCOUNT_TYPES[int(self._rng.integers(len(ACCOUNT_TYPES)))]
        return Profile(kind, self._number(self._credits, CREDITS), self._number(self._ages, AGES))

    def _number(self, points: Sequence[int], ends: tuple[int, int]) -> int:
        if points and self._rng.random() < ON_BOUND:
            return points[int(self._rng.integers(len(points)))]
        return int(self._rng.integers(ends[0], ends[1] + 1))


def branch(routing: Routing) -> Branch:
    """Which way through the rules was taken; ("", name) where there are none."""
    return routing.rule, routing.name


def routed_tool(policy: GTAPolicy, tool: str) -> tuple[str, bool]:
    """The tool whose rules lead to gold tool `tool`, and whether because of formulas.

    `("OCR", True)` for MathOCR, to which a rule on the picture sends OCR; else the tool itself.
    `ValueError` for a tool that the policy does not have.
    """
    if tool not in policy.tools:
        raise ValueError(f"policy {policy.name} has no tool {tool!r}")
    for rule in policy.rules:
        if rule.on_picture and tool in rule.targets:
            return rule.tool, True
    return tool, False


def _near_bounds(policy: GTAPolicy, field: str, ends: tuple[int, int]) -> list[int]:
    tests: Iterable[Range] = (
        test for rule in policy.rules for test in rule.tests if isinstance(test, Range)
    )
    bounds = {bound for test in tests if test.field == field for _, bound in test.bounds()}
    near = {bound + step for bound in bounds for step in (-1, 0, 1)}
    return sorted(value for value in near if ends[0] <= value <= ends[1])
