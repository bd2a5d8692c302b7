"""What the fuzzer found is replayed: every input is answered, by a result or by a refusal."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastmpi import _C

sys.path.insert(0, str(Path(__file__).parent))

from corpus import inputs  # noqa: E402
from entries import ENTRIES, call, decode, run  # noqa: E402


def test_every_entry_point_is_fuzzed() -> None:
    functions = {name for name, value in vars(_C).items() if callable(value)}
    assert functions - {"image_kernels"} == set(ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_input_is_answered(entry: str) -> None:
    answers = {run(_C, entry, data) for data in inputs(entry)}
    assert answers == {True, False}


@pytest.mark.parametrize("entry", ENTRIES)
def test_threads_do_not_disturb_one_another(entry: str) -> None:
    """The same calls on several threads at once, each on arguments of its own."""
    copies = [[decode(_C, entry, data) for data in inputs(entry)] for _ in range(4)]

    def answers(copy: int) -> list[tuple[bool, bytes]]:
        return [call(_C, entry, arguments) for arguments in copies[copy]]

    expected = answers(0)
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(answers, [1, 2, 3]):
            assert found == expected
