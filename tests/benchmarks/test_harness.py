"""The harness: fair turns, errors against float64, and arms that cannot run."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from fastmpi.benchmarks import harness, timing
from fastmpi.benchmarks.harness import (
    OUT_OF_MEMORY,
    Case,
    Unavailable,
    mean_absolute_error,
    relative_error,
    run_case,
)

CPU = torch.device("cpu")
EXACT = {"y": torch.tensor([3.0, 4.0], dtype=torch.float64)}


def arm(outputs=None, error=None, log=None, name="", fail_at=1):
    """An arm that returns `outputs`, raises `error` from its `fail_at`-th run on, and is logged."""
    calls = []

    def run():
        calls.append(name)
        if log is not None:
            log.append(name)
        if error is not None and len(calls) >= fail_at:
            raise error
        return outputs or {"y": torch.tensor([3.0, 4.0])}

    return lambda: run


def measured(arms, runs=4, **options):
    return run_case(Case("c", arms, **options), device=CPU, runs=runs)


def test_arms_take_turns_forwards_and_backwards():
    log: list[str] = []
    measured({name: arm(log=log, name=name) for name in ("fastmpi", "a", "b")}, runs=4)
    warm_ups = 3 * harness.WARM_UPS
    assert log[:warm_ups] == ["fastmpi"] * 3 + ["a"] * 3 + ["b"] * 3
    there = ["fastmpi", "a", "b"]
    assert log[warm_ups:] == (there + there[::-1]) * 2


def test_a_case_may_warm_up_less():
    log: list[str] = []
    measured({"fastmpi": arm(log=log)}, runs=1, warm_ups=2)
    assert len(log) == 2 + 1


def test_parts_of_runs_stand_beside_their_times():
    class Run:
        parts: dict = {}
        calls = 0

        def __call__(self):
            self.calls += 1
            self.parts = {"rollout": {"ms": float(self.calls)}, "update": {"ms": 1.0}}
            return {"y": torch.ones(1)}

    found = measured({"fastmpi": Run, "a": arm()}, runs=3)["arms"]
    # the fourth run is the first that is timed
    assert found["fastmpi"]["parts"]["rollout"]["ms"]["median"] == 5
    assert "parts" not in found["a"]


@pytest.mark.skipif(not timing.CLEAR_REFS.exists(), reason="Linux tells what is resident")
def test_memory_on_the_cpu_is_that_of_the_run_alone():
    held = torch.ones(2**23)  # 32 MiB before it

    def run():
        more = torch.ones(2**24)
        return {"y": more[:1] + held[:1]}

    found = measured({"fastmpi": lambda: run})["arms"]["fastmpi"]
    assert found["peak_mb"] == pytest.approx(64, abs=8)


def test_errors_are_against_the_exact_outputs():
    off = {"y": torch.tensor([3.0, 4.5])}
    found = measured({"fastmpi": arm(), "a": arm(off)}, exact=lambda: EXACT)["arms"]
    assert found["fastmpi"]["error"] == 0 and found["a"]["error"] == pytest.approx(0.1)
    options = {"exact": lambda: EXACT, "error": mean_absolute_error("y")}
    found = measured({"fastmpi": arm(), "a": arm(off)}, **options)["arms"]
    assert found["a"]["error"] == pytest.approx(0.25)
    assert found["a"]["errors"] == {"y": pytest.approx(0.1)}


def test_outputs_that_only_one_side_has_are_not_judged():
    more = {"logits": torch.ones(3)}
    found = measured({"fastmpi": arm(), "matmul": arm(more)}, exact=lambda: EXACT)["arms"]
    assert found["matmul"]["error"] is None and found["matmul"]["errors"] == {}
    assert found["matmul"]["output_mb"] == 12 / 2**20
    options = {"exact": lambda: EXACT, "error": mean_absolute_error("y")}
    assert measured({"matmul": arm(more)}, **options)["arms"]["matmul"]["error"] is None


def test_nan_is_an_error_that_json_can_hold():
    nan = {"y": torch.tensor([3.0, math.nan])}
    found = measured({"fastmpi": arm(nan)}, exact=lambda: EXACT)
    assert found["arms"]["fastmpi"]["error"] == "nan"
    json.dumps(found, allow_nan=False)


def test_relative_error_of_slices_is_that_of_the_whole(monkeypatch):
    monkeypatch.setattr(harness, "ROWS_AT_ONCE", 3)
    actual, exact = torch.randn(10, 7), torch.randn(10, 7, dtype=torch.float64)
    wanted = (actual.double() - exact).norm() / exact.norm()
    assert relative_error(actual, exact) == pytest.approx(wanted.item())
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0


def test_arms_that_cannot_run_say_why():
    def absent():
        raise Unavailable("not installed")

    found = measured(
        {
            "fastmpi": arm(),
            "trl": absent,
            "liger": arm(error=torch.OutOfMemoryError("CUDA out of memory")),
            "cce": arm(error=RuntimeError("[enforce] can't allocate memory: you tried")),
            "flex": arm(error=KeyError("x")),
            "packed": arm(error=torch.OutOfMemoryError(), fail_at=harness.WARM_UPS + 2),
        }
    )
    assert found["missing"] == {"trl": "not installed", "flex": "failed: KeyError: 'x'"}
    full = {name for name, value in found["arms"].items() if value == OUT_OF_MEMORY}
    assert full == {"liger", "cce", "packed"}
    assert found["ratio"] == {}


def test_our_own_mistakes_are_raised():
    with pytest.raises(KeyError):
        measured({"fastmpi chunk=8": arm(error=KeyError("x"))})


def test_ratio_is_the_peers_time_over_ours(monkeypatch):
    slow = {"fastmpi": 2.0, "a": 6.0}

    class Clock(timing.CpuClock):
        def time(self, run):
            run()
            return {"ms": slow[log[-1]] * 10 ** len(log)}  # both drift alike within a round

    log: list[str] = []
    monkeypatch.setattr(harness, "clock_of", lambda device: Clock())
    found = measured({name: arm(log=log, name=name) for name in slow}, runs=1)
    assert found["ratio"]["a"] == {key: pytest.approx(30.0) for key in ("median", "low", "high")}


def test_every_time_has_its_ratio():
    found = measured({"fastmpi": arm(), "a": arm()})
    assert set(found["arms"]["a"]) >= {"ms", "cpu_ms"} and "a" in found["ratio"]
    assert "a" in found["cpu_ratio"] and found["graph_ratio"] == found["wall_ratio"] == {}


def test_interval_covers_the_median_and_is_the_same_each_time():
    generator = np.random.default_rng(1)
    ours = generator.uniform(1, 2, 40)
    ratio = timing.paired_ratio(ours * generator.normal(3, 0.1, 40), ours)
    assert ratio["low"] < ratio["median"] < ratio["high"]
    assert ratio["low"] == pytest.approx(3, abs=0.15) and ratio["high"] == pytest.approx(
        3, abs=0.15
    )
    assert timing.paired_ratio(3 * ours, ours) == {
        "median": pytest.approx(3), "low": pytest.approx(3), "high": pytest.approx(3)
    }  # fmt: skip


def test_floor_is_the_larger_of_the_two_bounds():
    limits = {"flop_per_s": 1e12, "bytes_per_s": 1e9}
    assert harness.floor_ms({"flops": 1e9}, limits) == 1.0
    assert harness.floor_ms({"flops": 1e9, "bytes": 5e6}, limits) == 5.0
    assert harness.floor_ms({"flops": 1e9}, {}) is None


def test_share_of_the_limit_stands_beside_the_time():
    limits = {"flop_per_s": 1e6}
    case = Case("c", {"fastmpi": arm()}, counts={"flops": 1.0})
    found = run_case(case, device=CPU, runs=1, limits=limits)
    ours = found["arms"]["fastmpi"]
    assert found["floor_ms"] == 1e-3
    assert ours["share"] == pytest.approx(1e-3 / ours["ms"]["median"])


@pytest.mark.gpu
def test_peak_memory_and_graphs_on_a_gpu():
    device = torch.device("cuda")
    x = torch.ones(2**20, device=device)
    case = Case("c", {"fastmpi": lambda: lambda: {"y": x + 1}}, graphed=frozenset(["fastmpi"]))
    ours = run_case(case, device=device, runs=5)["arms"]["fastmpi"]
    assert ours["peak_mb"] == pytest.approx(4, abs=0.1)
    assert 0 < ours["graph_ms"]["median"] <= ours["ms"]["median"] <= ours["wall_ms"]["median"]
