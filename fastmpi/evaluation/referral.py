"""How truly a response's reasoning quotes the rules, by matching its citations to the policy.

No judge is needed: the rules are data. Only what is quoted counts, not what was seen in the
picture nor where the way led. `judge` asks a language model instead, as the paper does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastmpi.evaluation.metrics import Figure, Item, mean_score
from fastmpi.policies.citations import citations, gold_citations
from fastmpi.policies.policy import Policy


def referral(items: Sequence[Item], policies: Mapping[str, Policy]) -> dict[str, Figure]:
    """{"referral": mean of `referral_scores`}, over the items whose right reasoning cites rules."""
    scores = referral_scores(items, policies)
    return {"referral": mean_score([score for score in scores if score is not None])}


def referral_scores(items: Sequence[Item], policies: Mapping[str, Policy]) -> list[float | None]:
    """Per item the share of its citations that are faithful, from 0 to 1; 0 where it cites nothing.

    A citation is faithful where its condition exists and the quoted test is the one that stands
    there. None where the right reasoning cites nothing either, as for a tool with one version.
    """
    return [_score(item, policies[item["policy_id"]]) for item in items]


def _score(item: Item, policy: Policy) -> float | None:
    if not gold_citations(policy, item):
        return None
    found = citations(item["response"], policy)
    return sum(citation.faithful for citation in found) / len(found) if found else 0.0
