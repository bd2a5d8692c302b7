"""What several prompts begin with is found whole, nested, and never takes a prompt's last token."""

from __future__ import annotations

import numpy as np
import pytest

from fastmpi.rollout.trunks import Trunk, find_trunks


def plain(trunks: list[Trunk]) -> list[tuple[list[int], tuple[int, ...]]]:
    return [(trunk.rows.tolist(), trunk.prompts) for trunk in trunks]


def paths(*rows: list[int]) -> list[np.ndarray]:
    return [np.array(row) for row in rows]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([], []),
        ([[0, 1, 2]], []),
        ([[0, 1, 2], [3, 4]], []),
        ([[0, 1, 2], [0, 1, 3]], [([0, 1], (0, 1))]),
        ([[0, 1, 2], [4, 5, 6], [0, 1, 3], [4, 5, 7]], [([0, 1], (0, 2)), ([4, 5], (1, 3))]),
        # nested: all begin alike, two of them go on together
        (
            [[0, 1, 2, 3, 4], [0, 1, 2, 3, 5], [0, 1, 6, 7]],
            [([0, 1], (0, 1, 2)), ([2, 3], (0, 1))],
        ),
        # too little in common for all is copied into what some have in common
        ([[0, 1, 2, 3], [0, 1, 2, 4], [0, 5, 6]], [([0, 1, 2], (0, 1))]),
        # one prompt is the beginning of the others: its last token stays its own
        ([[0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2, 3, 5]], [([0, 1], (0, 1, 2)), ([2, 3], (1, 2))]),
        ([[0, 1, 2], [0, 1, 2]], [([0, 1], (0, 1))]),
        ([[0], [0]], []),
    ],
)
def test_found(given, found):
    assert plain(find_trunks(paths(*given), min_tokens=2)) == found


@pytest.mark.parametrize("min_tokens", [1, 2, 5])
def test_random_trees(min_tokens):
    """Trunks lie one after the other on their prompts' paths, and hold every row that is worth
    it: nothing of `min_tokens` rows that two prompts share is left in their rests."""
    rng = np.random.default_rng(min_tokens)
    for _ in range(100):
        given = _random_paths(rng)
        done = [0] * len(given)
        for trunk in find_trunks(given, min_tokens):
            assert len(trunk.rows) >= min_tokens and len(trunk.prompts) > 1
            for prompt in trunk.prompts:
                stop = done[prompt] + len(trunk.rows)
                assert given[prompt][done[prompt] : stop].tolist() == trunk.rows.tolist()
                done[prompt] = stop
        rests = [path[start:] for path, start in zip(given, done, strict=True)]
        assert all(len(rest) for rest in rests)
        for one in range(len(rests)):
            for other in range(one):
                if done[one] == done[other]:
                    assert _alike(rests[one], rests[other]) < min_tokens


def _random_paths(rng: np.random.Generator) -> list[np.ndarray]:
    """Paths through a random tree: a row is named by all that lies above it."""
    names: dict[tuple[int, ...], int] = {}
    made = []
    for _ in range(rng.integers(1, 8)):
        steps = rng.integers(0, 2, rng.integers(1, 12)) * (rng.random(1) < 0.7)
        keys = [tuple(steps[: i + 1].tolist()) for i in range(len(steps))]
        made.append(np.array([names.setdefault(key, len(names)) for key in keys]))
    return made


def _alike(one: np.ndarray, other: np.ndarray) -> int:
    """Equal rows at the beginning, without the last token of either."""
    length = min(len(one), len(other)) - 1
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else max(length, 0)
