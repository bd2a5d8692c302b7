"""The bench of decode_attention: its exact answer, its counts, and arms that all agree with it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from fastmpi.benchmarks import bench_decode_attention as bench
from fastmpi.benchmarks.decode_problem import DecodeProblem, Wave
from fastmpi.benchmarks.forest_problem import Heads
from fastmpi.benchmarks.harness import Unavailable, run_case
from fastmpi.reference.decode_attention import decode_attention as reference

CPU = torch.device("cpu")
WAVES = [Wave(16, 2, 32, 3, 16), Wave(0, 3, 16, 2, 32), Wave(32, 1, 16, 1, 16)]


def problem(wave, dtype=torch.float32, heads=bench.TINY):
    return DecodeProblem(wave, heads, CPU, dtype)


def test_paths_are_policy_prompt_and_own_tokens():
    assert Wave(2, 2, 1, 2, 1).paths(CPU).tolist() == [
        [0, 1, 2, 4], [0, 1, 2, 5], [0, 1, 3, 6], [0, 1, 3, 7],
    ]  # fmt: skip


@pytest.mark.parametrize("wave", WAVES)
@pytest.mark.parametrize("heads", [bench.TINY, Heads("mha", 2, 2, 8)])
def test_exact_is_the_reference(wave, heads):
    drawn = problem(wave, torch.float64, heads)
    found = drawn.exact()["out"]
    assert torch.allclose(found, reference(drawn.q, *drawn.parts(), wave.segments), atol=1e-13)


def test_work_is_counted():
    drawn = problem(Wave(16, 2, 32, 3, 16))
    assert drawn.flops == 6 * (16 + 32 + 16) * 4 * 4 * 64  # slots, tokens, heads, two products
    distinct = 16 + 2 * 32 + 6 * 16
    assert drawn.wave.tokens == distinct
    assert drawn.bytes(distinct) == 4 * 64 * 2 * (2 * distinct + 4 * 6)  # keys, values; q, out


@pytest.mark.parametrize("case", bench.cases(CPU, small=True), ids=lambda case: case.name)
def test_arms_agree_with_float64(case):
    found = run_case(case, device=CPU, runs=1)
    assert found["arms"].keys() == {"fastmpi", "torch", "cascade"}
    assert set(found["missing"]) == {"flash_attn", "flashinfer"}
    assert set(found["missing"].values()) <= {"not installed", "needs a CUDA device"}
    for arm in found["arms"].values():
        assert arm["error"] < 1e-6


@pytest.mark.parametrize("wave", WAVES)
@pytest.mark.parametrize("arm", ["fastmpi", "torch", "cascade"])
def test_arms_agree_on_other_waves(wave, arm):
    drawn = problem(wave, torch.float64)
    assert torch.allclose(bench.ARMS[arm](drawn)()["out"], drawn.exact()["out"], atol=1e-13)


def paged(q, keys, values, block_table):
    """Attention of slots that each read the pages of a row of `block_table`, heads and all."""
    keys, values = (x[block_table.long()].flatten(1, 2).transpose(1, 2) for x in (keys, values))
    scores = q.unflatten(1, (keys.shape[1], -1)) @ keys.mT * q.shape[-1] ** -0.5
    return (scores.softmax(-1) @ values).flatten(1, 2), scores.logsumexp(-1).flatten(1, 2)


def test_flash_attns_pages(monkeypatch):
    def attend(q, keys, values, *, cache_seqlens, block_table):
        assert cache_seqlens.tolist() == [48] * len(q) and block_table.dtype == torch.int32
        return paged(q[:, 0], keys, values, block_table)[0][:, None]

    monkeypatch.setattr(bench, "FLASH_PAGE", 16)
    monkeypatch.setattr(
        bench, "load_cuda", lambda *_: SimpleNamespace(flash_attn_with_kvcache=attend)
    )
    drawn = problem(Wave(0, 3, 16, 2, 32), torch.float64)
    assert torch.allclose(bench._flash_attn(drawn)()["out"], drawn.exact()["out"], atol=1e-13)
    with pytest.raises(Unavailable, match="no multiples of its page of 16 tokens"):
        bench._flash_attn(problem(Wave(0, 3, 15, 2, 32)))


class Cascade:
    """flashinfer's wrapper, as its documentation describes the tables."""

    def __init__(self, num_levels, workspace, layout):
        self.num_levels = num_levels
        assert layout == "NHD"

    def plan(self, qo, kv, pages, last, heads, kv_heads, dim, page_size, *, q_data_type):
        assert (heads, kv_heads, dim, q_data_type) == (4, 2, 64, torch.float64)
        assert len(qo) == len(kv) == len(pages) == len(last) == self.num_levels
        assert all((x == page_size).all() for x in last)
        self.levels = list(zip(qo, kv, pages, strict=True))

    def run(self, q, cache):
        parts = [self.level(q, *cache, *level) for level in self.levels]
        out, lse = (torch.stack(column) for column in zip(*parts, strict=True))
        return (lse.softmax(0)[..., None] * out).sum(0)

    def level(self, q, keys, values, qo, kv, pages):
        bounds = zip(qo, qo[1:], kv, kv[1:], strict=False)
        parts = [
            paged(q[a:b], keys, values, pages[c:d].expand(int(b - a), -1)) for a, b, c, d in bounds
        ]
        return (torch.cat(column) for column in zip(*parts, strict=True))


@pytest.mark.parametrize("wave", WAVES)
def test_flashinfers_levels(wave, monkeypatch):
    module = SimpleNamespace(MultiLevelCascadeAttentionWrapper=Cascade)
    monkeypatch.setattr(bench, "load_cuda", lambda *_: module)
    drawn = problem(wave, torch.float64)
    assert torch.allclose(bench._flashinfer(drawn)()["out"], drawn.exact()["out"], atol=1e-13)


def test_peers_that_are_not_there_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    for arm in ("flash_attn", "flashinfer"):
        with pytest.raises(Unavailable, match=r"not installed|needs a CUDA device|cannot be"):
            bench.ARMS[arm](problem(WAVES[0]))
