"""Numbers of an evaluation, each with its 95 % interval. Imports no torch.

A share of right answers has Wilson's interval, everything else a percentile bootstrap over items
(2,000 resamples, always the same ones). Two models, or two ways of asking one, are compared item by
item: the resamples draw pairs, so what makes an item hard for both cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Item = Mapping[str, Any]
Middle = Callable[..., Any]
"""np.mean or np.median."""
Z_95 = 1.959963984540054  # the normal quantile of a two-sided 95 % interval
RESAMPLES = 2000
_MAX_DRAWN = 4_000_000  # values drawn at once, which bounds memory


@dataclass(frozen=True)
class Figure:
    """A number, its 95 % interval [low, high], and the number of items it comes from.

    Shares and scores lie in [0, 1]; other units are in the figure's name ("prefill_ms"). Of no
    items: value 0, n 0, and the widest interval that a share can have.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def interval(self) -> tuple[float, float]:
        return self.low, self.high

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Figure:
        """Reads what `to_dict` gave; `ValueError` where a number is missing."""
        try:
            low, high = float(values["low"]), float(values["high"])
            return cls(float(values["value"]), low, high, int(values["n"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"no figure: {values!r:.80}") from error

    def __str__(self) -> str:
        return f"{self.value:.3f} (95 % {self.low:.3f} to {self.high:.3f}, n {self.n})"


NOTHING = Figure(0.0, 0.0, 1.0, 0)


def wilson_interval(correct: float, n: int, z: float = Z_95) -> tuple[float, float]:
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


def share(correct: Sequence[bool]) -> Figure:
    """The share of True, with Wilson's interval."""
    n, right = len(correct), sum(map(bool, correct))
    return Figure(right / n, *wilson_interval(right, n), n) if n else NOTHING


def mean(values: Sequence[float]) -> Figure:
    """The mean, bootstrapped."""
    return _bootstrapped([values], lambda drawn: drawn[0].mean(-1))


def mean_score(values: Sequence[float]) -> Figure:
    """The mean of scores in [0, 1], bootstrapped.

    Where all are the same the bootstrap sees no spread, and would claim certainty from three items.
    Then it is Wilson's interval of a share of that size: no scores with that mean spread wider.
    """
    n = len(values)
    if n and len(set(values)) == 1:
        return Figure(values[0], *wilson_interval(n * values[0], n), n)
    return mean(values)


def median(values: Sequence[float]) -> Figure:
    """The median, bootstrapped: of times, which have a long tail."""
    return _bootstrapped([values], lambda drawn: np.median(drawn[0], -1))


def ratio(ours: Sequence[float], theirs: Sequence[float], middle: Middle = np.mean) -> Figure:
    """middle(ours) / middle(theirs), paired by position.

    `ValueError` where the latter is zero. Resamples in which it is are left out.
    """
    if len(theirs) and middle(np.asarray(theirs), axis=-1) == 0:
        raise ValueError("a ratio to zero")
    return _bootstrapped(
        [ours, theirs], lambda drawn: _divided(*(middle(values, axis=-1) for values in drawn))
    )


def ratio_of_scores(ours: Sequence[float], theirs: Sequence[float]) -> Figure:
    """mean(ours) / mean(theirs) of scores in [0, 1], paired by position.

    Where the bootstrap sees no spread, as many other pairs as Wilson's interval allows none of n
    to be seen may have 0 above and 1 below, or the other way round.
    """
    found = ratio(ours, theirs)
    if found.low < found.high or not found.n:
        return found
    unseen = wilson_interval(0, found.n)[1]
    above, below = ((1 - unseen) * float(np.mean(values)) for values in (ours, theirs))
    return Figure(found.value, above / (below + unseen), (above + unseen) / below, found.n)


def saved(
    without: Sequence[float], with_policy: Sequence[float], middle: Middle = np.mean
) -> Figure:
    """1 - middle(without) / middle(with_policy), paired: the share of a cost that is gone."""
    left = ratio(without, with_policy, middle)
    return Figure(1 - left.value, 1 - left.high, 1 - left.low, left.n) if left.n else NOTHING


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Figure:
    """mean(ours) - mean(theirs), paired by position.

    Where all pairs differ alike the bootstrap sees no spread. Then as many others as Wilson's
    interval allows none of n to be seen may differ by 1 or -1, the most that scores can.
    """
    found = _bootstrapped([ours, theirs], lambda drawn: (drawn[0] - drawn[1]).mean(-1))
    if found.low < found.high or not found.n:
        return found
    unseen = wilson_interval(0, found.n)[1]
    middle = (1 - unseen) * found.value
    return Figure(found.value, middle - unseen, middle + unseen, found.n)


def paired(
    ours: Iterable[Item], theirs: Iterable[Item], value: Callable[[Item], float | None]
) -> tuple[list[float], list[float]]:
    """A value of the items that both have, by id; an item without it is left out on both sides."""
    others = {item["id"]: value(item) for item in theirs}
    pairs = [(value(item), others.get(item["id"])) for item in ours]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    return [a for a, _ in both], [b for _, b in both]


def split(items: Iterable[Item], key: Callable[[Item], Hashable]) -> dict[str, list[Item]]:
    """The items of each value of `key`, in sorted order of its text; None is left out."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        if (name := key(item)) is not None:
            groups.setdefault(str(name), []).append(item)
    return dict(sorted(groups.items()))


def _divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below == 0, np.nan, above / below)


def _bootstrapped(
    columns: Sequence[Sequence[float]], statistic: Callable[[np.ndarray], np.ndarray]
) -> Figure:
    """`statistic` maps (columns, ..., n) to (...): the value itself, and those of the resamples."""
    values = np.asarray([list(column) for column in columns], dtype=np.float64)  # (columns, n)
    n = values.shape[-1]
    if n == 0:
        return NOTHING
    rng = np.random.default_rng(0)
    drawn = []
    for count in _chunks(n):
        drawn.append(statistic(values[:, rng.integers(0, n, (count, n))]))
    return Figure(float(statistic(values)), *_percentiles(np.concatenate(drawn)), n)


def _percentiles(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def _chunks(n: int) -> Iterable[int]:
    """Numbers of resamples of n items that are drawn at once."""
    most = max(1, _MAX_DRAWN // n)
    for start in range(0, RESAMPLES, most):
        yield min(most, RESAMPLES - start)
