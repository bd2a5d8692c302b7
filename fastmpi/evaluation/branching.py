"""Whether the conditions that responses cite are those that the right reasoning cites.

The branching error (paper section 6) is a distance between histograms: how often each condition is
cited by the responses, and how often by the gold reasoning of the same questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastmpi.evaluation.metrics import NOTHING, RESAMPLES, Figure, Item, ratio, wilson_interval
from fastmpi.policies.citations import citations, condition_ids, gold_citations
from fastmpi.policies.policy import Policy

BLOCK = 100  # resamples computed at once


@dataclass(frozen=True)
class _Histograms:
    """What the N responses to one policy's questions cite.

    items: (N,) int, their places among all items. cited: (N,) int, citations of each.
    differences: (N, C + 1) int, per condition how much more often the response cites it than the
    gold reasoning; the last column counts ids that do not exist.
    """

    items: np.ndarray
    cited: np.ndarray
    differences: np.ndarray


def branching(items: Sequence[Item], policies: Mapping[str, Policy]) -> dict[str, Figure]:
    """`unknown_citations` and `branching_error` of responses.

    unknown_citations: share of all citations whose id the policy does not have; n 0 where nothing
    is cited. branching_error: per policy, sum over ids of |citations by the responses - citations
    by the gold reasoning|, divided by the number of the policy's conditions and by its responses
    / 100; then the mean over policies. 0 is best; the unit is citations per condition and 100
    responses. Ids that do not exist add to the sum and not to the number of conditions.
    """
    by_policy = _histograms(items, policies)
    return {"unknown_citations": _unknown(by_policy), "branching_error": _error(by_policy)}


def _histograms(items: Sequence[Item], policies: Mapping[str, Policy]) -> list[_Histograms]:
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(item["policy_id"], []).append(place)
    return [
        _histogram(np.array(chosen), [items[i] for i in chosen], policies[name])
        for name, chosen in places.items()
    ]


def _histogram(places: np.ndarray, items: Sequence[Item], policy: Policy) -> _Histograms:
    column = {condition: number for number, condition in enumerate(condition_ids(policy))}
    differences = np.zeros((len(items), len(column) + 1), dtype=np.int64)
    cited = np.zeros(len(items), dtype=np.int64)
    for number, item in enumerate(items):
        # All ids that do not exist share a column: the gold reasoning never cites one.
        ids = Counter(column.get(c.id, -1) for c in citations(item["response"], policy))
        cited[number] = ids.total()
        for place, count in ids.items():
            differences[number, place] += count
        for condition in gold_citations(policy, item):
            differences[number, column[condition]] -= 1
    return _Histograms(places, cited, differences)


def _unknown(by_policy: Sequence[_Histograms]) -> Figure:
    """A ratio of sums. At 0 and 1 resamples show no spread: there it is Wilson's interval of as
    many shares as there are responses that cite."""
    unknown = np.concatenate([h.differences[:, -1] for h in by_policy]) if by_policy else []
    cited = np.concatenate([h.cited for h in by_policy]) if by_policy else []
    if not (total := int(np.sum(cited))):
        return NOTHING
    found = ratio(unknown, cited)
    if 0 < np.sum(unknown) < total:
        return found
    n = int(np.count_nonzero(cited))
    return Figure(found.value, *wilson_interval(found.value * n, n), found.n)


def _error(by_policy: Sequence[_Histograms]) -> Figure:
    """The error, and the percentiles of its bootstrap over items, less the bootstrap's bias.

    Noise adds to an absolute difference, so resamples lie above the value itself.
    """
    n = sum(len(h.items) for h in by_policy)
    if not n:
        return NOTHING
    value = float(_errors(by_policy, np.ones((1, n)))[0])
    rng = np.random.default_rng(0)
    # How often each of the n items is drawn in each resample; blocks bound the memory.
    weights = (rng.multinomial(n, np.full(n, 1 / n), BLOCK) for _ in range(RESAMPLES // BLOCK))
    drawn = np.concatenate([_errors(by_policy, block.astype(float)) for block in weights])
    low, high = np.nanpercentile(drawn, [2.5, 97.5]) - (np.nanmean(drawn) - value)
    return Figure(value, max(0.0, float(low)), float(high), n)


def _errors(by_policy: Sequence[_Histograms], weights: np.ndarray) -> np.ndarray:
    """weights: (B, N), how often each item counts -> (B,) errors."""
    total, policies = np.zeros(len(weights)), np.zeros(len(weights))
    for h in by_policy:
        chosen = weights[:, h.items]
        distance = np.abs(chosen @ h.differences).sum(1)
        responses = chosen.sum(1)
        conditions = h.differences.shape[1] - 1
        total += 100 * distance / np.maximum(conditions * responses, 1)
        policies += responses > 0
    return total / policies
