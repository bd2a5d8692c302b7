"""Which beginnings of a call's prompts are kept once for several of them.

The prompts of one policy begin with thousands of equal rows of the forest, the policy. Kept for
each prompt, its keys and values would be held and read as often as there are prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Trunk:
    """Rows that `prompts` (indices, ascending) have at the places start to start + len(rows)."""

    rows: np.ndarray  # (L,) of the forest
    prompts: tuple[int, ...]


def find_trunks(paths: Sequence[np.ndarray], min_tokens: int) -> list[Trunk]:
    """The trunks of prompts whose paths through the forest are `paths`.

    A shorter beginning than `min_tokens` is copied: merging its attention costs more than reading
    it for each prompt. A prompt's trunks, in the order given, are its path's beginning without
    gaps. Its last token is never in one, so that every prompt keeps something of its own.
    """
    return list(_grow(paths, range(len(paths)), 0, 0, min_tokens))


def _grow(
    paths: Sequence[np.ndarray], prompts: Sequence[int], start: int, at: int, min_tokens: int
) -> Iterator[Trunk]:
    """Trunks from place `start` on; the paths of `prompts` are equal from there to `at`."""
    prompts = [prompt for prompt in prompts if len(paths[prompt]) - 1 > at]
    groups: dict[int, list[int]] = {}
    for prompt in prompts:
        groups.setdefault(int(paths[prompt][at]), []).append(prompt)
    for group in groups.values():
        if len(group) == 1:
            continue
        stop = _common(paths, group, at)
        if stop - start >= min_tokens:
            yield Trunk(paths[group[0]][start:stop], tuple(group))
            yield from _grow(paths, group, stop, stop, min_tokens)
        else:
            yield from _grow(paths, group, start, stop, min_tokens)


def _common(paths: Sequence[np.ndarray], prompts: Sequence[int], at: int) -> int:
    """The first place after `at` where the paths differ, or where one is at its last token."""
    stop = min(len(paths[prompt]) for prompt in prompts) - 1
    first = paths[prompts[0]][at:stop]
    for prompt in prompts[1:]:
        different = np.flatnonzero(paths[prompt][at:stop] != first[: stop - at])
        if len(different):
            stop = at + int(different[0])
    return stop
