"""The cut-down GTAPolicy of the tiny world: random rules, queries about a picture, gold calls.

A policy routes four to six tools by compact rules that the tiny base has not met in training. A
query is one to three words about a picture of the tiny world, after the user's profile:

    account B credits 450 age 20 ; search cube 4

Every word, number and piece of a call's JSON is one token of the base (`words`). The version that
is called follows from the policy; the arguments follow from the query, the picture, or both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastmpi.assets import ATTRIBUTES, held_out
from fastmpi.data.scenes import Scene
from fastmpi.policies.gta.policy import GTAPolicy
from fastmpi.policies.gta.reasoning import gta_reasoning
from fastmpi.policies.gta.rules import ACCOUNT_TYPES, Account, Choice, Profile, Range, Rule, Test
from fastmpi.policies.gta.text import profile_text, test_text
from fastmpi.policies.gta.tiny_queries import (
    IMAGE,
    QUERY_WORDS,
    STYLES,
    answerable,
    call_text,
    sample_query,
)
from fastmpi.policies.gta.tools import TOOLS, Tool

TINY_TOOLS = (
    "OCR",
    "CountGivenObject",
    "ImageDescription",
    "GoogleSearch",
    "RegionAttributeDescription",
    "TextToImage",
    "ImageStylization",
)
NUM_TOOLS = (4, 6)  # fewest and most in a policy
CHOICE_SHARE = 0.4  # of the rules that ask a second question

# Each number is one token of the base.
BOUNDS: Mapping[str, tuple[int, ...]] = {
    "credits": (250, 400, 500, 600, 750),
    "age": (21, 30, 40, 50, 60),
}
NUMBERS: Mapping[str, tuple[int, ...]] = {
    "credits": (0, 100, 200, 249, 250, 251, 300, 400, 499, 500, 501)
    + (600, 700, 749, 750, 751, 800, 900, 1000),
    "age": (15, 20, 21, 22, 25, 30, 35, 40, 45, 50, 55, 59, 60, 61, 65, 70, 75),
}
ACCOUNT_SPLITS = (
    *(("A", "BCD"), ("AB", "CD"), ("AC", "BD"), ("AD", "BC"), ("ABC", "D"), ("ABD", "C")),
    *(("ACD", "B"), ("A", "BC", "D"), ("AB", "C", "D"), ("A", "B", "CD")),
)
FIELDS = ("account", *BOUNDS)

MAX_TRIES = 10_000


def sample_policy(
    rng: np.random.Generator,
    name: str = "gta",
    num_tools: tuple[int, int] = NUM_TOOLS,
    *,
    unseen: bool = True,
) -> GTAPolicy:
    """A random compact policy; `unseen` ones are those that the tiny base never trained on."""
    for _ in range(MAX_TRIES):
        count = int(rng.integers(num_tools[0], num_tools[1] + 1))
        chosen = [TINY_TOOLS[place] for place in rng.permutation(len(TINY_TOOLS))[:count]]
        rules = [rule for tool in chosen for rule in sample_rules(rng, TOOLS[tool])]
        if is_held_out(rules) == unseen:
            return GTAPolicy(name, {t: TOOLS[t] for t in chosen}, tuple(rules), style="compact")
    raise ValueError(f"no policy of {num_tools} tools, unseen: {unseen}, in {MAX_TRIES} draws")


def is_held_out(rules: Sequence[Rule]) -> bool:
    """Whether the tiny base never trains on such tests; the versions do not matter."""
    return held_out(
        (rule.id, " ".join(test_text(t, "compact") for t in rule.tests)) for rule in rules
    )


def sample_rules(rng: np.random.Generator, tool: Tool) -> tuple[Rule, ...]:
    """Two or three rules of one tool that share all profiles among them, in random order."""
    field = str(rng.choice(FIELDS))
    tests = sample_split(rng, field)
    rules = []
    for number, place in enumerate(rng.permutation(len(tests)), start=1):
        then = _then(rng, tool, [name for name in FIELDS if name != field])
        rules.append(Rule(f"{tool.name}.{number}", tool.name, (tests[place],), then))
    return tuple(rules)


def sample_split(rng: np.random.Generator, field: str) -> list[Test]:
    """Two or three tests of `field` (account, credits or age), exactly one of which holds."""
    if field == "account":
        parts = ACCOUNT_SPLITS[rng.integers(len(ACCOUNT_SPLITS))]
        return [Account(tuple(types)) for types in parts]
    count = int(rng.integers(1, 3))
    cuts = sorted(int(bound) for bound in rng.choice(BOUNDS[field], count, replace=False))
    low, high = ("over", "at_most") if rng.random() < 0.5 else ("at_least", "under")
    first, last = Range(field, **{high: cuts[0]}), Range(field, **{low: cuts[-1]})
    between = [Range(field, **{low: cuts[0], high: cuts[1]})] if count == 2 else []
    return [first, *between, last]


def sample_profile(rng: np.random.Generator, rules: Sequence[Rule] = ()) -> Profile:
    """A random profile, for which each of a tool's `rules` is equally likely to apply.

    Where the rule asks a second question, both its answers are equally likely too. `ValueError`
    where no profile of the tiny world reaches one of them.
    """
    if not rules:
        return _any_profile(rng)
    rule, side = rules[int(rng.integers(len(rules)))], bool(rng.integers(2))
    for _ in range(MAX_TRIES):
        profile = _any_profile(rng)
        asked = rule.then.test if isinstance(rule.then, Choice) else None
        if rule.applies(profile) and (asked is None or asked.holds(profile) == side):
            return profile
    raise ValueError(f"rule {rule.id}: no profile of the tiny world leads there")


def sample_row(
    rng: np.random.Generator,
    policy: GTAPolicy,
    scene: Scene,
    *,
    row_id: str,
    image: str,
    tool: str | None = None,
) -> dict[str, Any]:
    """A row of the task: a profile, a query about `scene`, and the gold call.

    `image` is the file of the scene's picture. Without `tool` one of the policy's is drawn whose
    query the scene can answer; a given one that it cannot answer is a `ValueError`.
    """
    able = [name for name in policy.tools if answerable(name, scene)]
    if tool is not None and tool not in able:
        raise ValueError(f"row {row_id}: no query of {tool} about this scene")
    tool = tool or str(rng.choice(able))
    profile = sample_profile(rng, [rule for rule in policy.rules if rule.tool == tool])
    query, arguments = sample_query(rng, tool, scene)
    routing = policy.route(tool, profile)
    return {
        "id": row_id,
        "policy_id": policy.name,
        "images": [image],
        "prompt": f"{profile_text(profile, 'compact')} ; {query}",
        "reasoning": gta_reasoning(policy, tool, profile),
        "answer": call_text(routing.name, arguments),
        "tool": tool,
        "rule": routing.rule,
        "profile": profile.to_json(),
        "formulas": False,
        "dialog": row_id,
    }


def words() -> list[str]:
    """What the base's tokenizer must have as one token each; most with the blank before them."""
    numbers = sorted({n for table in (BOUNDS, NUMBERS) for ns in table.values() for n in ns})
    plain = ["account", "credits", "age", *ACCOUNT_TYPES, "over", "from", "under", "upto"]
    plain += [f"v{version}" for version in range(1, 6)]
    plain += [f"{tool}.{number}" for tool in TINY_TOOLS for number in range(1, 5)]
    plain += ["gta", *QUERY_WORDS, *ATTRIBUTES, *map(str, numbers)]
    first = ["account", "change", *(f"{tool}.1" for tool in TINY_TOOLS)]
    return [*first, *(f" {word}" for word in plain), *_call_words()]


def _call_words() -> list[str]:
    tools = [TOOLS[name] for name in TINY_TOOLS]
    fields = sorted({argument.name for tool in tools for argument in tool.arguments})
    values = [*(v for names in ATTRIBUTES.values() for v in names), *ATTRIBUTES, *STYLES, IMAGE]
    found = ['"name":', ' "arguments":', *(f' "{name}",' for tool in tools for name in tool.names)]
    found += [f'{blank}"{field}":' for field in fields for blank in ("", " ")]
    found += [f' "{value}"{comma}' for value in values for comma in ("", ",")]
    found += [f' "{color}' for color in ATTRIBUTES["color"]]
    found += [f' {shape}"{comma}' for shape in ATTRIBUTES["shape"] for comma in ("", ",")]
    return [*found, ' "(0,', ' "(32,', " 0,", " 32,", " 64,", ' 32)",', ' 64)",']


def _any_profile(rng: np.random.Generator) -> Profile:
    numbers = {field: int(rng.choice(values)) for field, values in NUMBERS.items()}
    return Profile(str(rng.choice(ACCOUNT_TYPES)), **numbers)


def _then(rng: np.random.Generator, tool: Tool, others: Sequence[str]) -> int | Choice:
    if rng.random() >= CHOICE_SHARE:
        return int(rng.integers(1, tool.versions + 1))
    tests = sample_split(rng, str(rng.choice(others)))
    yes, no = (int(version) + 1 for version in rng.choice(tool.versions, 2, replace=False))
    return Choice(tests[rng.integers(len(tests))], yes, no)
