"""Dialogs are split whole, by exact numbers of calls where there are any, and by pictures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastmpi.policies.gta.dialogs import Call, Dialog
from fastmpi.policies.gta.split import split_dialogs


def dialogs(*sizes: int, images: dict[int, list[str]] | None = None) -> list[Dialog]:
    shown = images or {}
    call = Call("Calculator", {"expression": "1"}, "?")
    return [
        Dialog(str(i), tuple(shown.get(i, [f"{i}.jpg"])), (call,) * size)
        for i, size in enumerate(sizes)
    ]


def split(seed: int, given: list[Dialog], num_test: int) -> tuple[list[Dialog], list[Dialog]]:
    return split_dialogs(np.random.default_rng(seed), given, num_test)


def test_gta_gives_the_papers_numbers() -> None:
    # As many dialogs and calls as GTA has.
    sizes = [(1, 2, 3, 4, 2)[i % 5] for i in range(229)]
    sizes[0] += 557 - sum(sizes)
    chosen = set()
    for seed in range(5):
        given = dialogs(*sizes)
        train, test = split(seed, given, 106)
        assert sum(len(d.calls) for d in test) == 106
        assert sum(len(d.calls) for d in train) == 451
        assert sorted([*train, *test], key=lambda d: int(d.id)) == given
        assert [int(d.id) for d in test] == sorted(int(d.id) for d in test)
        chosen.add(tuple(d.id for d in test))
    assert len(chosen) == 5


@pytest.mark.parametrize("seed", range(20))
def test_the_number_is_the_nearest_there_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [int(n) for n in rng.integers(1, 9, 6)]
    wanted = int(rng.integers(1, sum(sizes)))
    _, test = split(seed, dialogs(*sizes), wanted)
    sums = {
        sum(part) for k in range(1, len(sizes)) for part in itertools.combinations(sizes, k)
    }  # fmt: skip
    got = sum(len(d.calls) for d in test)
    assert abs(got - wanted) == min(abs(total - wanted) for total in sums)


def test_dialogs_that_share_a_picture_stay_together() -> None:
    images = {0: ["a"], 3: ["b", "a"], 5: ["c", "b"]}
    for seed in range(10):
        train, test = split(seed, dialogs(1, 1, 1, 1, 1, 1, images=images), 3)
        together = {"0", "3", "5"}
        for part in (train, test):
            assert together & {d.id for d in part} in (set(), together)


def test_neither_split_is_empty() -> None:
    for wanted in (1, 100):
        train, test = split(0, dialogs(3, 5), wanted)
        assert len(train) == len(test) == 1


@pytest.mark.parametrize("given", [dialogs(3), dialogs(1, 2, images={0: ["a"], 1: ["a"]})])
def test_what_cannot_be_split_is_an_error(given: list[Dialog]) -> None:
    with pytest.raises(ValueError, match="cannot be split"):
        split(0, given, 1)
