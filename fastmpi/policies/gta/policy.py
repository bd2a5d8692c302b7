"""GTAPolicy: tools, the rules that route each user to a version of them, and tips.

Rules and tools are data; `gta_policy()` is the paper's. Text, gold calls and reasoning come from
the same rules, so that none of them can differ from the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastmpi.policies.clevr_text import checked_style
from fastmpi.policies.gta.rules import Choice, Profile, Rule, Target, Test, check_rules, rules_of
from fastmpi.policies.gta.table import TIPS, paper_rules
from fastmpi.policies.gta.text import override_text, policy_text, target_name
from fastmpi.policies.gta.tools import TOOLS, Tool, tool_table
from fastmpi.policies.policy import Policy
from fastmpi.settings import did_you_mean


@dataclass(frozen=True)
class Step:
    """One answered question on the way to a version.

    `tests` are a rule's whole condition, or, where `inner`, the test of the choice inside it.
    """

    rule: str
    tests: tuple[Test, ...]
    satisfied: bool
    inner: bool = False


@dataclass(frozen=True)
class Routing:
    """The name to call, and the questions that led to it; none for a tool of one version."""

    name: str
    steps: tuple[Step, ...] = ()

    @property
    def rule(self) -> str:
        """The id of the rule that applied; "" where none did, for a tool of one version."""
        return next((s.rule for s in self.steps if s.satisfied and not s.inner), "")

    @property
    def cited(self) -> list[str]:
        """The ids of all rules that were gone through, in their order."""
        return [step.rule for step in self.steps if not step.inner]


@dataclass(frozen=True)
class GTAPolicy:
    """A tool policy. `name` is also its policy_id.

    A rule of an unknown tool or version, an id that is there twice, a versioned tool whose rules
    leave a gap or overlap, and tips in the compact style, which shows none, are a `ValueError`.
    """

    name: str
    tools: Mapping[str, Tool]
    rules: tuple[Rule, ...]
    tips: tuple[str, ...] = ()
    style: str = "full"

    def __post_init__(self) -> None:
        checked_style(self.style)
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            raise ValueError(f"policy name {self.name!r}: one word of letters, digits, _, . and -")
        if self.style == "compact" and self.tips:
            raise ValueError(f"policy {self.name}: the compact style shows no tips")
        self._check_lines()
        ids = [rule.id for rule in self.rules]
        for rule in self.rules:
            self._check_rule(rule, ids)
        for tool in self.tools.values():
            self._check_tool(tool)

    @property
    def text(self) -> str:
        """The policy as a model reads it, in the policy's style."""
        return policy_text(self)

    def rule(self, rule_id: str) -> Rule:
        """The rule of that id, or a `ValueError` that names the nearest one there is."""
        by_id = {rule.id: rule for rule in self.rules}
        if rule_id not in by_id:
            raise ValueError(
                f"policy {self.name} has no rule {rule_id!r}{did_you_mean(rule_id, by_id)}"
            )
        return by_id[rule_id]

    def route(self, tool: str, profile: Profile, formulas: bool = False) -> Routing:
        """Which name a user calls `tool` by; `formulas`: the image contains formulas.

        Goes through the tool's rules in order, those on the picture first, up to the one that
        applies.
        """
        if tool not in self.tools:
            raise ValueError(
                f"policy {self.name}: no tool {tool!r}{did_you_mean(tool, self.tools)}"
            )
        steps = []
        for rule in rules_of(self.rules, tool):
            applies = rule.applies(profile, formulas)
            steps.append(Step(rule.id, rule.when, applies))
            if applies:
                return self._chosen(rule, profile, tuple(steps))
        assert self.tools[tool].versions == 1, f"no rule of {tool} for {profile}"
        return Routing(tool, tuple(steps))

    def override(self, changed: Sequence[Rule]) -> tuple[str, GTAPolicy]:
        """Replace the rules of the same ids: the text of the block, and the policy it leads to.

        A change of an unknown rule or of another tool's, one that changes nothing, and changes
        that leave a gap or an overlap are a `ValueError`.
        """
        by_id = {rule.id: rule for rule in changed}
        if len(by_id) < len(changed) or not changed:
            raise ValueError(f"override of policy {self.name}: one rule or more, each once")
        for rule in changed:
            old = self.rule(rule.id)
            if rule.tool != old.tool:
                raise ValueError(f"override: rule {rule.id} is one of {old.tool}, not {rule.tool}")
            if rule == old:
                raise ValueError(f"override: rule {rule.id} is the same as before")
        rules = tuple(by_id.get(rule.id, rule) for rule in self.rules)
        return override_text(self.name, changed, self.style), replace(self, rules=rules)

    def to_policy(self, block: str | None = None) -> Policy:
        """The policy as one system turn; `block` is shown in its place, as an override."""
        metadata = {"gta": self.to_json(), "style": self.style}
        if block is not None:
            metadata["override"] = "block"
        turn = {"role": "system", "content": self.text if block is None else block}
        return Policy(self.name, [turn], metadata=metadata)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "style": self.style,
            "tools": [tool.to_json() for tool in self.tools.values()],
            "rules": [rule.to_json() for rule in self.rules],
            "tips": list(self.tips),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GTAPolicy:
        """Read what `to_json` gave; anything else is a `ValueError`."""
        try:
            if not isinstance(data["tips"], list):
                raise TypeError("tips are a list")
            tools = tool_table(map(Tool.from_json, data["tools"]))
            rules = tuple(map(Rule.from_json, data["rules"]))
            return cls(data["name"], tools, rules, tuple(data["tips"]), data["style"])
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"tool policy: {error!r}") from error

    def _check_lines(self) -> None:
        """A description or tip is one line, and none that would be read as a rule."""
        tools = self.tools.values()
        shown = [tool.description for tool in tools]
        shown += [argument.description for tool in tools for argument in tool.arguments]
        for text in [*shown, *self.tips]:
            if text != " ".join(text.split()) or text.startswith(("Rule ", "#")):
                raise ValueError(
                    f"policy {self.name}: a description or tip is one line without stray white "
                    f"space, and begins neither with 'Rule ' nor with '#': {text!r}"
                )

    def _check_rule(self, rule: Rule, ids: Sequence[str]) -> None:
        if rule.tool not in self.tools:
            raise ValueError(
                f"rule {rule.id}: no tool {rule.tool!r}{did_you_mean(rule.tool, self.tools)}"
            )
        pattern = "" if self.style == "full" else re.escape(rule.tool) + r"\."
        if not re.fullmatch(pattern + "[0-9]{1,9}", rule.id) or ids.count(rule.id) > 1:
            form = "a number" if self.style == "full" else f"{rule.tool}.<number>"
            raise ValueError(f"rule {rule.id!r}: the id is {form}, each once")
        for target in rule.targets:
            self._check_target(rule, target)

    def _check_target(self, rule: Rule, target: Target) -> None:
        tool = self.tools[rule.tool]
        if isinstance(target, int):
            known = tool.versions > 1 and 1 <= target <= tool.versions
        else:
            # Where it leads is final: a versioned tool would need rules once more.
            known = target != tool.name and target in self.tools
            known = known and self.tools[target].versions == 1
        if not known:
            raise ValueError(
                f"rule {rule.id}: {target!r} is no version of {tool.name}, and no tool"
            )

    def _check_tool(self, tool: Tool) -> None:
        own = list(rules_of(self.rules, tool.name))
        check_rules(tool.name, own)
        on_profile = [rule for rule in own if not rule.on_picture]
        if (tool.versions > 1) != bool(on_profile):
            raise ValueError(
                f"tool {tool.name} has {tool.versions} versions and {len(on_profile)} rules for "
                "profiles"
            )

    def _chosen(self, rule: Rule, profile: Profile, steps: tuple[Step, ...]) -> Routing:
        if not isinstance(rule.then, Choice):
            return Routing(target_name(rule.tool, rule.then), steps)
        yes = rule.then.test.holds(profile)
        target = rule.then.yes if yes else rule.then.no
        last = Step(rule.id, (rule.then.test,), yes, inner=True)
        return Routing(target_name(rule.tool, target), (*steps, last))


def gta_policy(style: str = "full", name: str = "gta") -> GTAPolicy:
    """The paper's policy: 14 tool types of 32 names, 20 rules and, in full style, 4 tips."""
    tips = TIPS if checked_style(style) == "full" else ()
    return GTAPolicy(name, TOOLS, paper_rules(style), tips, style)


def swapped_versions(
    policy: GTAPolicy, order: np.random.Generator | Mapping[str, Sequence[int]] | None = None
) -> tuple[Rule, ...]:
    """The rules that change where versions change places, for `GTAPolicy.override`.

    `order` gives for each tool its new versions: version k becomes `order[tool][k - 1]`. None
    reverses all tools, as the paper does with OCR; a generator draws a permutation of each, never
    the one that is. Rules that stay the same are left out.
    """
    orders = _orders(policy, order)
    changed = [_reordered(rule, orders[rule.tool]) for rule in policy.rules if rule.tool in orders]
    return tuple(rule for rule in changed if rule not in policy.rules)


def _orders(
    policy: GTAPolicy, order: np.random.Generator | Mapping[str, Sequence[int]] | None
) -> dict[str, Sequence[int]]:
    counts = {tool.name: tool.versions for tool in policy.tools.values() if tool.versions > 1}
    if order is None:
        return {tool: range(count, 0, -1) for tool, count in counts.items()}
    if isinstance(order, np.random.Generator):
        return {tool: _shuffled(order, count) for tool, count in counts.items()}
    for tool, versions in order.items():
        if sorted(versions) != list(range(1, counts.get(tool, 0) + 1)):
            raise ValueError(f"order of {tool!r}: {versions} are not its versions, each once")
    return dict(order)


def _shuffled(rng: np.random.Generator, count: int) -> list[int]:
    same = list(range(1, count + 1))
    drawn = same
    while drawn == same:
        drawn = [int(version) for version in rng.permutation(same)]
    return drawn


def _reordered(rule: Rule, order: Sequence[int]) -> Rule:
    def new(target: Target) -> Target:
        return order[target - 1] if isinstance(target, int) else target

    if isinstance(rule.then, Choice):
        then = replace(rule.then, yes=new(rule.then.yes), no=new(rule.then.no))
        return replace(rule, then=then)
    return replace(rule, then=new(rule.then))
