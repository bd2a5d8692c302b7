"""The bench of pictures: arms of one kind give the same patches, ours to the last bit."""

from __future__ import annotations

import pytest
import torch

from fastmpi.benchmarks import bench_images as bench
from fastmpi.benchmarks.harness import judge

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    """The cases with two little pictures, on one thread and on three."""
    monkeypatch.setattr(bench, "SIZES", {"little": ((60, 90), (200, 31))})
    monkeypatch.setattr(bench, "thread_count", lambda: 3)
    return bench.cases(CPU, small=True)


def test_arms_agree(small):
    assert [case.name for case in small] == ["little, 1 thread", "little, 3 threads"]
    for case in small:
        exact = case.exact()
        errors = {name: judge(case, arm()(), exact)["error"] for name, arm in case.arms.items()}
        threads = torch.get_num_threads()
        assert errors["fastmpi"] == errors["numpy"] == 0
        assert errors.get("fastmpi 1 thread", 0) == 0
        assert max(errors["fastmpi float32"], errors["pil"]) < 1e-7
        assert max(errors["torch"], errors["torch uint8"]) < 0.01  # other roundings
        assert torch.get_num_threads() == threads


def test_one_thread_and_all(monkeypatch):
    monkeypatch.setattr(bench, "thread_count", lambda: 2)
    names = [case.name for case in bench.cases(CPU, small=False)]
    assert names[:2] == ["1024x768, 1 thread", "1024x768, 2 threads"] and len(names) == 4
    monkeypatch.setattr(bench, "thread_count", lambda: 1)
    assert len(bench.cases(CPU, small=True)) == 2
