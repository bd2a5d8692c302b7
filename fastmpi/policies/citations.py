"""Which rules a response cites, and which rules the right reasoning cites.

One parser for both styles of ClevrPolicy: "Condition 1.2: color red?" and "C1.2 red". A citation
is an id and the test quoted after it; GTAPolicy's are read by `gta_reasoning`. A response is data:
one pass, linear in its length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

from fastmpi.data.scenes import CLEVR_ATTRIBUTES
from fastmpi.policies.cited_rule import CITED_CHARACTERS, Citation
from fastmpi.policies.clevr_tree import ClevrTree, Node
from fastmpi.policies.gta.policy import GTAPolicy
from fastmpi.policies.gta.reasoning import gta_citations
from fastmpi.policies.gta.rules import Profile
from fastmpi.policies.policy import Policy

VALUES = frozenset(value for values in CLEVR_ATTRIBUTES.values() for value in values)
# One alternative for each thing that matters; \b keeps every scan of a long word short.
_TOKEN = re.compile(
    r"\b(?:condition\s{1,9}|(?-i:C))(?P<id>\d[\d.]{0,199})"
    rf"|\b(?P<word>{'|'.join([*CLEVR_ATTRIBUTES, *sorted(VALUES)])})\b"
    r"|(?P<end>\n)",
    re.IGNORECASE | re.ASCII,
)


def citations(text: str, policy: Policy) -> list[Citation]:
    """What `text` cites of `policy` before `</think>`, in order.

    `ValueError` where the policy's rules are not known.
    """
    rules = _rules(policy)
    if isinstance(rules, GTAPolicy):
        return gta_citations(text, rules)
    return _clevr_citations(text, rules)


def gold_citations(policy: Policy, row: Mapping[str, Any]) -> list[str]:
    """The ids that the right reasoning cites: on the tree's way to `leaf`, or of `tool`'s rules.

    Empty where no rule decides, as for a tool with one version. `ValueError` where the row lacks
    its column or the policy its rules.
    """
    rules = _rules(policy)
    if isinstance(rules, ClevrTree):
        return [node.id for node, _ in rules.path(_column(row, "leaf"))]
    profile = Profile.from_json(_column(row, "profile"))
    return rules.route(_column(row, "tool"), profile, bool(row.get("formulas"))).cited


def condition_ids(policy: Policy) -> list[str]:
    """The ids of all conditions or rules of `policy`."""
    rules = _rules(policy)
    items = rules.rules if isinstance(rules, GTAPolicy) else rules.nodes()
    return [item.id for item in items]


@lru_cache(maxsize=256)
def _rules(policy: Policy) -> ClevrTree | GTAPolicy:
    if (tree := policy.metadata.get("tree")) is not None:
        return ClevrTree.from_json(tree)
    if (tools := policy.metadata.get("gta")) is not None:
        return GTAPolicy.from_json(tools)
    raise ValueError(
        f"policy {policy.policy_id!r}: neither 'tree' nor 'gta' is there; its rules are unknown"
    )


def _clevr_citations(text: str, tree: ClevrTree) -> list[Citation]:
    """A mention that quotes nothing, right before another of the same id, announces it only."""
    nodes = {node.id: node for node in tree.nodes()}
    mentions = [*_mentions(text), ("", [])]
    return [
        _judged(place, quoted, nodes.get(place))
        for (place, quoted), (after, _) in pairwise(mentions)
        if quoted or place != after
    ]


def _mentions(text: str) -> Iterator[tuple[str, list[str]]]:
    """Ids, each with the words of attributes quoted after it, up to and including a value.

    A quote ends with its line or at the next id.
    """
    place, quoted, is_open = None, list[str](), False
    for token in _TOKEN.finditer(text[:CITED_CHARACTERS].partition("</think>")[0]):
        if token["id"]:
            if place is not None:
                yield place, quoted
            place, quoted, is_open = token["id"].rstrip("."), [], True
        elif token["end"]:
            is_open = False
        elif is_open:
            quoted.append(token["word"].lower())
            is_open = quoted[-1] not in VALUES
    if place is not None:
        yield place, quoted


def _judged(place: str, quoted: list[str], node: Node | None) -> Citation:
    if node is None or not quoted:
        return Citation(place, node is not None, False)
    *attributes, value = quoted
    return Citation(place, True, value == node.value and set(attributes) <= {node.attribute})


def _column(row: Mapping[str, Any], name: str) -> Any:
    if row.get(name) is None:
        raise ValueError(f"row {row.get('id')!r} has no {name!r}: what its answer cites is unknown")
    return row[name]
