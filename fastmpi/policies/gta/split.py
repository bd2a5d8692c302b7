"""Splits dialogs into training and test, by dialog and never by call.

Calls of one dialog share request and pictures, so one of them in each split would leak; dialogs
that show the same picture stay together for the same reason. GTA's 557 calls give the paper's
451 + 106 only if some dialogs hold exactly 106 calls together: a subset sum, solved exactly for
the small numbers that these are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastmpi.policies.gta.dialogs import Dialog

Group = list[int]
"""Numbers of dialogs that stay together."""


def split_dialogs(
    rng: np.random.Generator, dialogs: Sequence[Dialog], num_test: int
) -> tuple[list[Dialog], list[Dialog]]:
    """Training and test dialogs, each in the given order; the latter hold `num_test` calls.

    Where no choice of dialogs holds exactly as many, the nearest number that one does. Neither
    split is empty. `ValueError` where the dialogs cannot be told apart by their pictures.
    """
    groups = _groups(dialogs)
    if len(groups) < 2:
        raise ValueError(
            f"{len(dialogs)} dialogs that share pictures cannot be split into training and test"
        )
    order = [groups[int(i)] for i in rng.permutation(len(groups))]
    sizes = [sum(len(dialogs[i].calls) for i in group) for group in order]
    chosen = {i for place in _choose(sizes, num_test) for i in order[place]}
    train = [dialog for i, dialog in enumerate(dialogs) if i not in chosen]
    return train, [dialogs[i] for i in sorted(chosen)]


def _groups(dialogs: Sequence[Dialog]) -> list[Group]:
    """Dialogs that are linked by pictures they show, in the order of their first ones."""
    group_of: dict[str, Group] = {}
    groups: dict[int, Group] = {}
    for number, dialog in enumerate(dialogs):
        linked = {id(group_of[name]): group_of[name] for name in dialog.images if name in group_of}
        group = sorted([number, *(i for other in linked.values() for i in other)])
        for key in linked:
            del groups[key]
        groups[id(group)] = group
        group_of.update({name: group for i in group for name in dialogs[i].images})
    return sorted(groups.values())


def _choose(sizes: Sequence[int], wanted: int) -> list[int]:
    """Places of sizes that sum up to `wanted`, or as near as can be.

    Each sum is remembered as it is first reached, so the choice follows the (shuffled) order and
    skips only what would not fit.
    """
    most = sum(sizes) - 1  # something must be left
    reached: dict[int, tuple[int, int]] = {}  # sum -> (sum before, the place that was added)
    for place, size in enumerate(sizes):
        for before in sorted({0, *reached}, reverse=True):
            total = before + size
            if total <= most and total not in reached:
                reached[total] = (before, place)
        if wanted in reached:
            break
    total = min(reached, key=lambda value: (abs(value - wanted), value))
    chosen = []
    while total:
        total, place = reached[total]
        chosen.append(place)
    return chosen
