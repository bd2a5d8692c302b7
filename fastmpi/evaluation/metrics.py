"""Numbers of an evaluation: shares of right answers, intervals, splits. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Item = Mapping[str, Any]
Z_95 = 1.959963984540054  # the normal quantile of a two-sided 95 % interval


@dataclass(frozen=True)
class Share:
    """`correct` of `n`, with its interval; all fractions from 0 to 1."""

    accuracy: float
    interval: tuple[float, float]
    n: int

    def to_dict(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy, "interval": list(self.interval), "n": self.n}


def wilson_interval(correct: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a share; unlike the normal one it holds at 0 and 1.

    `n` = 0 gives (0, 1). Raises ValueError unless 0 <= correct <= n.
    """
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} correct of {n}")
    if n == 0:
        return 0.0, 1.0
    share, weight = correct / n, z * z / n
    middle = (share + weight / 2) / (1 + weight)
    reach = z / (1 + weight) * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    low = 0.0 if correct == 0 else middle - reach
    return low, 1.0 if correct == n else middle + reach


def share(correct: Sequence[bool]) -> Share:
    """The share of True and its 95 % interval; of nothing, accuracy 0 and n 0."""
    n, right = len(correct), sum(correct)
    return Share(right / n if n else 0.0, wilson_interval(right, n), n)


def split(items: Iterable[Item], key: Callable[[Item], Hashable]) -> dict[Hashable, Share]:
    """The share of right items for each value of `key`, in sorted order."""
    groups: dict[Hashable, list[bool]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item["correct"])
    return {name: share(groups[name]) for name in sorted(groups, key=str)}
