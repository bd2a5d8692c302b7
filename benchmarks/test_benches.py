"""Every arm of every case of every bench, through pytest-benchmark.

    pytest benchmarks/ -k "policy_head and frozen"

The cases are those of `fastmpi bench`, which alone interleaves the arms and judges their errors;
use it for a claim, and this to watch one arm. On the CPU the shapes are small, and nothing is
compiled, since that takes longer than all of them.
"""

from __future__ import annotations

import importlib
import time
from typing import Any

import pytest
import torch

from fastmpi.bench import BENCHES
from fastmpi.benchmarks.harness import Case, Outputs, Unavailable

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_CPU = DEVICE.type == "cpu"
SECONDS = 0.2 if ON_CPU else 2.0  # for the rounds of an arm
MOST_ROUNDS = 10


def all_arms() -> list[Any]:
    """One parameter for each arm, named bench, case, arm."""
    return [
        pytest.param(case, arm, id=f"{bench}-{case.name}-{arm}")
        for bench in BENCHES
        for case in importlib.import_module(f"fastmpi.benchmarks.bench_{bench}").cases(
            DEVICE, ON_CPU
        )
        for arm in case.arms
    ]


@pytest.mark.parametrize("case, arm", all_arms())
def test_bench(case: Case, arm: str, benchmark: Any) -> None:
    if ON_CPU and arm == "compile":
        pytest.skip("compiled on CUDA only")
    try:
        run = case.arms[arm]()
    except Unavailable as reason:
        pytest.skip(str(reason))

    def finished() -> Outputs:
        outputs = run()
        if not ON_CPU:
            torch.cuda.synchronize()
        return outputs

    began = time.perf_counter()
    finished()  # warms up
    rounds = int(SECONDS / (time.perf_counter() - began))
    benchmark.group = case.name
    outputs = benchmark.pedantic(finished, rounds=min(max(rounds, 1), MOST_ROUNDS))
    assert all(isinstance(output, torch.Tensor) for output in outputs.values())
