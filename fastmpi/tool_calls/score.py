"""How right a call is: its tool, and its arguments field by field.

The paper's GTAPolicy metrics: tool is 1 for the exact name with its version; argument is the mean
over the fields, each from 0 to 1; overall is the mean of the two. Where the paper is silent:

- The arguments are scored against gold's whatever tool is named.
- The fields are gold's and what the model added. A field that gold has and the model has not, or
  the reverse, is 0. No fields at all is 1.
- An optional argument left out stands for its default: where gold has it the default is what is
  compared, and one that only the model wrote is left out of the mean if it is the default. So
  writing a default or not never changes a score, and added defaults earn nothing.
- A field that is not in the table of kinds is compared as text where both values are text, else
  exactly. Values of different JSON types are never equal: 1, true and "1" differ; 1 and 1.0 do not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastmpi.tool_calls.arithmetic import same_value
from fastmpi.tool_calls.call import Call
from fastmpi.tool_calls.similarity import Similarity, text_similarity

EXACT = frozenset({"position", "color", "image", "k", "top1"})
DEFAULTS: Mapping[str, Mapping[str, Any]] = {  # tool without its version -> optional arguments
    "AddText": {"color": "red"},
    "DrawBox": {"annotation": None},
    "GoogleSearch": {"k": 10},
    "TextToBbox": {"top1": True},
}
_VERSION = re.compile(r"_v[0-9]+$")
_NUMBER = r"\s*(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)\s*"
_CORNERS = re.compile(rf"\s*\({_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\)\s*")
_ABSENT = object()

Box = tuple[float, float, float, float]  # x1, y1, x2, y2


@dataclass(frozen=True)
class CallScore:
    """Each from 0 to 1."""

    tool: float
    argument: float

    @property
    def overall(self) -> float:
        return (self.tool + self.argument) / 2


def score_call(
    call: Call | None,
    gold: Call,
    *,
    similarity: Similarity = text_similarity,
    defaults: Mapping[str, Mapping[str, Any]] = DEFAULTS,
) -> CallScore:
    """The score of one call; None, which is what no call parses to, scores 0."""
    return score_calls([call], [gold], similarity=similarity, defaults=defaults)[0]


def score_calls(
    calls: Sequence[Call | None],
    golds: Sequence[Call],
    *,
    similarity: Similarity = text_similarity,
    defaults: Mapping[str, Mapping[str, Any]] = DEFAULTS,
) -> list[CallScore]:
    """`score_call` of each pair; all texts go through one call of `similarity`."""
    fields = [
        _fields(call, gold, defaults) if call is not None else {}
        for call, gold in zip(calls, golds, strict=True)
    ]
    texts = [pair for found in fields for pair in found.values() if isinstance(pair, tuple)]
    alike = iter(similarity(texts).tolist() if texts else ())
    scores = []
    for call, gold, found in zip(calls, golds, fields, strict=True):
        values = [next(alike) if isinstance(part, tuple) else part for part in found.values()]
        argument = sum(values) / len(values) if values else float(call is not None)
        scores.append(CallScore(float(call is not None and call.name == gold.name), argument))
    return scores


def _fields(
    call: Call, gold: Call, defaults: Mapping[str, Mapping[str, Any]]
) -> dict[str, float | tuple[str, str]]:
    """Field -> its score, or the two texts (predicted, gold) that similarity is still to score."""
    default = defaults.get(_VERSION.sub("", gold.name), {})
    found: dict[str, float | tuple[str, str]] = {}
    for field in gold.arguments | call.arguments:
        right = gold.arguments.get(field, _ABSENT)
        left = call.arguments.get(field, default.get(field, _ABSENT))
        if right is _ABSENT:
            if not _same(left, default.get(field, _ABSENT)):
                found[field] = 0.0
        else:
            found[field] = _compare(field, left, right)
    return found


def _compare(field: str, left: Any, right: Any) -> float | tuple[str, str]:
    texts = isinstance(left, str) and isinstance(right, str)
    if field in EXACT or not texts or left == right:  # gold itself is 1 whatever its kind
        return float(_same(left, right))
    if field == "expression":
        return float(same_value(left, right))
    if field == "bbox":
        return _overlap(left, right)
    return left, right


def _same(left: Any, right: Any) -> bool:
    """Equality of JSON values, where True is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    return bool(left == right)


def _overlap(left: str, right: str) -> float:
    """Intersection over union of two boxes "(x1, y1, x2, y2)"; 0 where either is none."""
    first, second = _box(left), _box(right)
    if first is None or second is None:
        return 0.0
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / (_area(first) + _area(second) - shared)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _box(text: str) -> Box | None:
    """The box, if it is written as one and has an area."""
    found = _CORNERS.fullmatch(text)
    if found is None:
        return None
    x1, y1, x2, y2 = map(float, found.groups())
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None
