"""The bench of forest_attention: its exact answer, its counts, and arms that all agree with it."""

from __future__ import annotations

import pytest
import torch

from fastmpi.benchmarks import bench_forest_attention as bench
from fastmpi.benchmarks import forest_problem
from fastmpi.benchmarks.forest_problem import Heads, Problem, Tree, worst_error
from fastmpi.benchmarks.harness import Unavailable, run_case
from fastmpi.reference.forest_attention import forest_attention as reference
from fastmpi.reference.forest_attention import forest_mask

CPU = torch.device("cpu")
TREE = Tree(prompt=11, branches=3, length=5)


def problem(backward=True, dtype=torch.float32, heads=bench.TINY, tree=TREE):
    return Problem(tree, heads, backward, CPU, dtype)


def test_tree_is_a_prompt_with_branches():
    end = Tree(2, 2, 3).subtree_end(CPU)
    assert end.tolist() == [8, 8, 5, 5, 5, 8, 8, 8] and end.dtype == torch.int32
    assert Tree(2, 2, 3).paths(CPU).tolist() == [[0, 1, 2, 3, 4], [0, 1, 5, 6, 7]]


@pytest.mark.parametrize("tree", [TREE, bench.TINY_TREE, Tree(1, 1, 1)])
def test_work_is_counted_by_the_mask(tree):
    assert tree.visible_pairs == forest_mask(tree.subtree_end(CPU)).sum()
    assert tree.repeated_pairs == tree.branches * sum(range(1, tree.sample + 1))


@pytest.mark.parametrize("name", bench.TREES)
def test_causal_row_is_of_equal_work(name):
    tree = bench.TREES[name]
    assert tree.causal_rows * (tree.causal_rows + 1) / 2 == pytest.approx(
        tree.visible_pairs, rel=1e-3
    )


def test_flops_of_a_pair():
    forward, both = problem(backward=False), problem()
    assert forward.flops(10) == 10 * 4 * 32 * 4  # pairs, two products, head size, heads
    assert both.flops(10) == 3.5 * forward.flops(10)


@pytest.mark.parametrize("heads", [bench.TINY, Heads("all judged", 2, 1, 8), Heads("mha", 2, 2, 8)])
@pytest.mark.parametrize("rows_at_once", [3, 100])
def test_exact_is_the_reference_of_the_first_key_head(heads, rows_at_once, monkeypatch):
    monkeypatch.setattr(forest_problem, "EXACT_ROWS", rows_at_once)
    drawn = problem(heads=heads)
    *inputs, grad = (x.double() for x in drawn.tensors)
    leaves = [x.requires_grad_() for x in inputs]
    out = reference(*leaves, TREE.subtree_end(CPU))
    wanted = (out, *torch.autograd.grad(out, leaves, grad))
    found = drawn.exact()
    assert list(found) == ["out", "dq", "dk", "dv"]
    for value, expected in zip(found.values(), drawn.judged(*wanted), strict=True):
        assert torch.allclose(value, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("case", bench.cases(CPU, small=True), ids=lambda case: case.name)
def test_arms_agree_with_float64(case):
    found = run_case(case, device=CPU, runs=1)
    assert found["arms"].keys() | found["missing"].keys() == case.arms.keys()
    assert set(found["missing"]) <= {"flex", "prefix_grouper", "fa4"}
    assert set(found["missing"].values()) <= {"not installed", "needs a CUDA device"}
    assert found["arms"].pop("causal")["error"] is None  # it has another answer
    outputs = ["out", "dq", "dk", "dv"] if "backward" in case.name else ["out"]
    for arm in found["arms"].values():
        assert list(arm["errors"]) == outputs
        assert arm["error"] < 2e-6 and max(arm["errors"].values()) < 1e-6
    assert found["counts"]["packed_sdpa_ms"] > 0
    assert ("fastmpi_new_length_ms" in found["counts"]) == ("backward" in case.name)


@pytest.mark.parametrize("arm", ["prefix_grouper", "fa4"])
def test_a_peer_that_is_missing_is_named(arm, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="not installed"):
        bench.ARMS[arm](problem(), {})


def test_the_worst_output_is_the_error():
    exact = {"out": torch.tensor([4.0, 1.0]), "dq": torch.tensor([10.0])}
    outputs = {"out": torch.tensor([4.0, 2.0]), "dq": torch.tensor([11.0])}
    assert worst_error(outputs, exact) == 0.25
    assert worst_error({"dq": torch.tensor([torch.nan])}, exact) != 0
    assert worst_error({}, exact) is None


def test_a_backend_that_refuses_says_why():
    with pytest.raises(Unavailable, match="unknown attention backend 'none'"):
        bench._backend(problem(), {}, "none")


def test_the_fastest_of_torch_runs_and_all_are_told(monkeypatch):
    slow = {"cudnn": 3.0, "flash": None, "efficient": 2.0}
    order = iter(slow)

    def median_ms(run, device):
        ms = slow[next(order)]
        if ms is None:
            raise RuntimeError("No available kernel")
        return ms

    taken = []
    timed = bench._timed
    monkeypatch.setattr(bench, "_median_ms", median_ms)
    monkeypatch.setattr(
        bench, "_timed", lambda p, attend, *rest: taken.append(attend) or timed(p, attend, *rest)
    )
    monkeypatch.setattr(bench, "_causal_backends", lambda device: bench.CUDA_BACKENDS)
    counts: dict[str, float] = {}
    run = bench._packed(problem(), counts)
    assert counts == {"packed_cudnn_ms": 3.0, "packed_efficient_ms": 2.0}
    assert run.__closure__ is not None
    attends = [cell.cell_contents for cell in run.__closure__ if cell.cell_contents in taken]
    assert attends == [taken[2]]


def test_no_kernel_of_torch_is_no_result(monkeypatch):
    def median_ms(run, device):
        raise RuntimeError("No available kernel")

    monkeypatch.setattr(bench, "_median_ms", median_ms)
    with pytest.raises(Unavailable, match="no kernel of torch takes these shapes: No available"):
        bench._causal(problem(), {})


def test_cases_of_the_gpu_are_listed_without_one():
    listed = bench.cases(torch.device("cuda"), small=False)
    assert len(listed) == 16 and len({case.name for case in listed}) == 16
    assert listed[0].name == "7B forward 1k + 16 x 256"
    assert set(listed[0].arms) == {
        *("fastmpi", "triton", "sdpa", "flex", "packed"),
        *("prefix_grouper", "cascade", "fa4", "causal"),
    }
    assert listed[0].counts["flops"] == 4 * 128 * 28 * bench.TREES["1k + 16 x 256"].visible_pairs
