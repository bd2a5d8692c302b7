"""The bench of rollouts: the arms write the same, and say why where they cannot run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastmpi.benchmarks.bench_rollout import (
    G,
    cases,
    continuous,
    differing,
    exact,
    generate,
    make_inputs,
    native,
    small_shapes,
)
from fastmpi.benchmarks.harness import Unavailable


@pytest.mark.parametrize("number", [1, 2])
def test_arms_write_the_same(number: int) -> None:
    shape = replace(small_shapes()[number], prompts=2, policy=70, image=16, new_tokens=3)
    shape = replace(shape, image=16 if number == 1 else 0)
    inputs = make_inputs(shape, torch.device("cpu"))
    wanted = exact(inputs)
    assert wanted["tokens"].shape == (2 * G, 3)
    arms = [
        native(inputs),
        native(inputs, min_shared_tokens=10**9),
        native(inputs, memory_gib=inputs.quarter_gib),
        generate(inputs),
    ]
    for arm in arms:
        assert differing(arm(), wanted) == 0


def test_what_cannot_run_says_why() -> None:
    shape = replace(small_shapes()[0], prompts=1, new_tokens=1)
    with pytest.raises(Unavailable, match="takes no pictures"):
        continuous(make_inputs(shape, torch.device("cpu")))


def test_cases_are_listed_without_work() -> None:
    names = [case.name for case in cases(torch.device("cpu"), True)]
    assert len(set(names)) == 4 and all("G=16" in name for name in names)
    large = cases(torch.device("cuda"), False)
    assert "policy=4096 prompt=1152" in large[1].name
