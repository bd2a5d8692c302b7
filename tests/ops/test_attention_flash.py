"""The cascade against the twin: nodes, calls, merging, gradients from the global log-sum-exp.

Forests: deep, flat (packed rows), a chain, single tokens, prompts with empty responses. On the CPU
torch's flash kernel for CPUs stands in for flash attention, so that all but the call into CUDA is
judged in fp64; how those calls bind is checked against torch's own schemas and a stand-in module.
"""

from __future__ import annotations

import sys
from importlib import metadata
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from fastmpi.benchmarks.forest_problem import Heads, Problem, Tree
from fastmpi.benchmarks.harness import relative_error
from fastmpi.ops import attention_flash, attention_segments
from fastmpi.ops.attention_segments import Segments
from fastmpi.ops.forest_attention import forest_attention, plan_forest
from fastmpi.reference.forest_attention import forest_attention as reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random_forest(total: int, seed: int, branch: float = 0.2, roots: float = 0.02) -> torch.Tensor:
    """(T,) int32 ends of a random forest in depth-first order."""
    rng = np.random.default_rng(seed)
    end = np.zeros(total, np.int32)
    path: list[int] = []
    for row in range(total):
        keep = len(path)
        if rng.random() < roots:
            keep = 0
        elif rng.random() < branch:
            keep = int(rng.integers(0, len(path) + 1))
        end[path[keep:]] = row
        path = [*path[:keep], row]
    end[path] = total
    return torch.from_numpy(end)


def group(prompt: int, responses: list[int], first: int = 0) -> list[int]:
    """Ends of a prompt with its responses, from row `first` on."""
    stops = np.cumsum([first + prompt, *responses]).tolist()
    ends = [stops[-1]] * prompt
    return ends + [stop for stop, r in zip(stops[1:], responses, strict=True) for _ in range(r)]


FORESTS = {
    "deep": random_forest(120, 0),
    "bushy": random_forest(80, 1, branch=0.6, roots=0.1),
    "chain": torch.full((40,), 40, dtype=torch.int32),
    "flat": torch.arange(7, 71, 7, dtype=torch.int32).repeat_interleave(7),
    "single tokens": torch.arange(1, 10, dtype=torch.int32),
    "one token": torch.ones(1, dtype=torch.int32),
    "one group": torch.tensor(group(20, [5, 1, 9]), dtype=torch.int32),
    "two groups": torch.tensor(group(9, [4, 4]) + group(5, [3, 2], 17), dtype=torch.int32),
    "prompt ends a response": torch.tensor(group(6, [0, 3]), dtype=torch.int32),
}


def inputs(total, heads=4, kv_heads=2, dim=16, dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(total)
    shapes = ((total, heads, dim), (total, kv_heads, dim), (total, kv_heads, dim))
    drawn = (torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes)
    return [x.to(device, dtype).requires_grad_() for x in drawn]


def cascade(q, k, v, end, scale=0.3):
    return attention_flash.attend(q, k, v, attention_flash.prepare(end), scale)


def run(attend, tensors, *forest, **options):
    out = attend(*tensors, *forest, **options)
    weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    return [out, *torch.autograd.grad((out * weight).sum(), tensors)]


@pytest.mark.parametrize("name", FORESTS)
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_equals_twin(name, kv_heads):
    end = FORESTS[name]
    tensors = inputs(len(end), kv_heads=kv_heads)
    found = run(cascade, tensors, end)
    for value, expected in zip(found, run(reference, tensors, end, scale=0.3), strict=True):
        assert torch.allclose(value, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("seed", range(4))
def test_equals_twin_on_other_forests(seed):
    end = random_forest(150, 10 + seed, branch=0.1 * (seed + 1), roots=0.03 * seed)
    tensors = inputs(150)
    found = run(cascade, tensors, end)
    for value, expected in zip(found, run(reference, tensors, end, scale=0.3), strict=True):
        assert torch.allclose(value, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["deep", "one group"])
def test_low_precision_is_as_good_as_plain_torch(name, dtype):
    """Plain torch: one softmax over all keys, operands and result in `dtype`."""
    end = FORESTS[name]
    tensors = inputs(len(end), dtype=dtype)
    exact = run(reference, [x.detach().double().requires_grad_() for x in tensors], end, scale=0.3)
    plain = run(masked_sdpa, tensors, end, scale=0.3)
    for value, other, truth in zip(run(cascade, tensors, end), plain, exact, strict=True):
        limit = (other.double() - truth).abs().max()
        slack = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps * truth.abs().max()
        assert (value.double() - truth).abs().max() <= 1.1 * limit + slack


def test_error_does_not_grow_with_the_depth():
    """40 calls: their shares of a query's gradient are summed wide (narrow, the error doubles)."""
    end = torch.tensor([x for row in range(0, 120, 3) for x in (120, 120, row + 3)]).int()
    tensors = inputs(len(end), dtype=torch.bfloat16)
    exact = run(reference, [x.detach().double().requires_grad_() for x in tensors], end, scale=0.3)
    plain = run(masked_sdpa, tensors, end, scale=0.3)
    assert len(calls_of(end)) == 40
    for value, other, truth in zip(run(cascade, tensors, end), plain, exact, strict=True):
        assert (value.double() - truth).norm() <= 1.4 * (other.double() - truth).norm()


def masked_sdpa(q, k, v, end, scale):
    from fastmpi.reference.forest_attention import forest_mask

    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=forest_mask(end), scale=scale, enable_gqa=True
    )
    return out[0].transpose(0, 1)


def calls_of(end):
    prepared = attention_flash.prepare(end)
    return attention_flash._calls(prepared.tensors, prepared.integers)


@pytest.mark.parametrize(
    "name, count",
    [("chain", 1), ("flat", 1), ("single tokens", 1), ("one group", 2), ("two groups", 2)],
)
def test_one_call_a_depth(name, count):
    assert len(calls_of(FORESTS[name])) == count


def test_one_group_is_read_in_place():
    """No index: a prompt and its responses are two ranges of rows."""
    inside, below = calls_of(FORESTS["one group"])
    assert [len(rows.index) for call in (inside, below) for rows in call[:2]] == [0] * 4
    assert below.queries[:2] == (20, 15) and below.keys[:2] == (0, 20)
    assert below.segments.cu_queries.tolist() == [0, 15]
    assert inside.segments.cu_keys.tolist() == [0, 20, 25, 26, 35]


def test_roots_share_a_call():
    _, below = calls_of(FORESTS["two groups"])
    assert below.queries.index.tolist() == [*range(9, 17), *range(22, 27)]
    assert below.keys.index.tolist() == [*range(9), *range(17, 22)]
    assert below.segments.cu_queries.tolist() == [0, 8, 13]
    assert below.segments.cu_keys.tolist() == [0, 9, 14]


@pytest.mark.parametrize("name", FORESTS)
def test_calls_cover_every_visible_pair_once(name):
    from fastmpi.reference.forest_attention import forest_mask

    end = FORESTS[name]
    seen = torch.zeros(len(end), len(end), dtype=torch.int64)
    rows = torch.arange(len(end))
    for queries, keys, segments in calls_of(end):
        asking, answering = queries.of(rows), keys.of(rows)
        for of_queries, of_keys in attention_segments._slices(segments):
            block = torch.ones(len(asking[of_queries]), len(answering[of_keys]), dtype=torch.int64)
            block = block.tril() if segments.causal else block
            seen[asking[of_queries][:, None], answering[of_keys][None]] += block
    assert torch.equal(seen, forest_mask(end).long())


def test_what_is_no_forest_is_refused():
    end = torch.tensor([2, 3, 3], dtype=torch.int32)
    with pytest.raises(ValueError, match="row 1 ends its subtree at 3, after that of a row above"):
        attention_flash.prepare(end)


def test_negative_scale():
    end = FORESTS["two groups"]
    tensors = inputs(len(end))
    found = run(cascade, tensors, end, scale=-0.5)
    for value, expected in zip(found, run(reference, tensors, end, scale=-0.5), strict=True):
        assert torch.allclose(value, expected, rtol=0, atol=1e-11)


def test_empty_forest():
    tensors = inputs(0)
    assert cascade(*tensors, torch.zeros(0, dtype=torch.int32)).shape == (0, 4, 16)


def test_is_an_operator_of_torch():
    """Schema, fake implementation, autograd and compilation, as torch checks them."""
    prepared = attention_flash.prepare(FORESTS["two groups"])
    tensors = inputs(27)
    arguments = (*tensors, prepared.tensors, prepared.integers, 0.3)
    torch.library.opcheck(torch.ops.fastmpi.cascade_attention, arguments)
    with torch.no_grad():
        out, lse = torch.ops.fastmpi.cascade_attention(*arguments)
    backward = (out, *(x.detach() for x in tensors), out, lse, *arguments[3:])
    torch.library.opcheck(torch.ops.fastmpi.cascade_attention_backward, backward)


def test_is_compiled_without_a_break():
    end = FORESTS["two groups"]
    plan = plan_forest(end, "flash")

    def layer(q, k, v):
        return 2 * forest_attention(3 * q, k, v, end, plan=plan)

    tensors = inputs(27)
    found = run(torch.compile(layer, backend="aot_eager", fullgraph=True), tensors)
    for value, expected in zip(found, run(layer, tensors), strict=True):
        assert torch.equal(value, expected)


def test_takes_views_that_are_not_contiguous():
    """Models hand over (H, T, D) turned to (T, H, D)."""
    end = FORESTS["two groups"]
    turned = [x.detach().transpose(0, 1).contiguous().transpose(0, 1) for x in inputs(27)]
    assert torch.allclose(cascade(*turned, end), reference(*turned, end, scale=0.3), atol=1e-12)


def test_torch_flash_takes_the_call():
    """torch's meta kernels bind the arguments as its CUDA kernels do."""
    q, k, v = (x.detach().to("meta", torch.bfloat16) for x in inputs(27, dim=64))
    lengths = torch.empty(3, dtype=torch.int32, device="meta")
    segments = Segments(lengths, lengths, 8, 9, causal=False)
    out, lse = attention_segments._torch_forward(q, k, v, segments, 0.1)
    assert out.shape == q.shape and lse.shape == (4, 27)
    gradients = attention_segments._torch_backward(out, q, k, v, out, lse, segments, 0.1)
    assert [x.shape for x in gradients] == [q.shape, k.shape, v.shape]


def test_torch_flash_has_the_arguments_we_pass_by_position():
    forward = [a.name for a in torch.ops.aten._flash_attention_forward.default._schema.arguments]
    backward = [a.name for a in torch.ops.aten._flash_attention_backward.default._schema.arguments]
    lengths = ["cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal"]
    assert forward[:10] == ["query", "key", "value", *lengths, "return_debug_mask"]
    assert backward[:14] == [
        *["grad_out", "query", "key", "value", "out", "logsumexp", *lengths],
        *["rng_state", "unused"],
    ]


def flash_attn_stand_in() -> ModuleType:
    """The functions of flash-attn 2.8 that are called, computed by torch's CPU kernel."""
    module = ModuleType("flash_attn.flash_attn_interface")
    forward, backward = attention_segments._cpu_forward, attention_segments._cpu_backward

    def _flash_attn_varlen_forward(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        softmax_scale,
        causal,
        window_size_left=-1,
        window_size_right=-1,
        softcap=0.0,
        alibi_slopes=None,
        return_softmax=False,
        block_table=None,
        leftpad_k=None,
        seqused_k=None,
        zero_tensors=False,
    ):
        assert max_seqlen_q >= 2 and dropout_p == 0.0
        segments = Segments(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal)
        assert (
            max_seqlen_q >= cu_seqlens_q.diff().max() and max_seqlen_k == cu_seqlens_k.diff().max()
        )
        out, lse = forward(q, k, v, segments, softmax_scale)
        return out, lse, None, None

    def _flash_attn_varlen_backward(
        dout,
        q,
        k,
        v,
        out,
        softmax_lse,
        dq,
        dk,
        dv,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        softmax_scale,
        causal,
        window_size_left,
        window_size_right,
        softcap,
        alibi_slopes,
        deterministic,
        rng_state=None,
        zero_tensors=False,
    ):
        assert softmax_lse.is_contiguous() and dout.is_contiguous()
        segments = Segments(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal)
        assert (
            max_seqlen_q >= cu_seqlens_q.diff().max() and max_seqlen_k == cu_seqlens_k.diff().max()
        )
        found = backward(dout, q, k, v, out, softmax_lse, segments, softmax_scale)
        for gradient, value in zip((dq, dk, dv), found, strict=True):
            gradient.copy_(value)

    module._flash_attn_varlen_forward = _flash_attn_varlen_forward
    module._flash_attn_varlen_backward = _flash_attn_varlen_backward
    return module


@pytest.mark.parametrize("name", ["single tokens", "one group", "two groups"])
def test_flash_attn_takes_the_calls(name, monkeypatch):
    end = FORESTS[name]
    tensors = inputs(len(end))
    expected = run(cascade, tensors, end)
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", flash_attn_stand_in())
    for way in ("forward", "backward"):
        through = getattr(attention_segments, f"_flash_attn_{way}")
        monkeypatch.setattr(attention_segments, f"_cpu_{way}", through)
    for value, same in zip(run(cascade, tensors, end), expected, strict=True):
        assert torch.equal(value, same)


@pytest.mark.parametrize(
    "version, used",
    [("2.8.3.post2", "2.8.3.post2"), ("2.7.4", "2.7.4"), ("2.6.3", None), ("4.0.0b36", None)],
)
def test_flash_attn_of_another_interface_is_left_alone(version, used, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: version)
    attention_segments.flash_attn_version.cache_clear()
    assert attention_segments.flash_attn_version() == used
    monkeypatch.undo()
    attention_segments.flash_attn_version.cache_clear()


def test_refusals(monkeypatch):
    refusal = attention_flash.refusal
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert refusal(cpu, torch.float64, 13) == ""
    assert "takes a float dtype" in refusal(cpu, torch.int32, 64)
    assert "needs a CPU or a CUDA device, not 'meta'" in refusal(torch.device("meta"), None, 64)
    assert "not torch.float32" in refusal(cuda, torch.float32, 64)
    assert "multiple of 8, at most 256, not 12" in refusal(cuda, torch.bfloat16, 12)
    assert "not 264" in refusal(cuda, torch.bfloat16, 264)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "compute capability 8.0" in refusal(cuda, torch.float16, 64)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    built = SimpleNamespace(answer=False)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: built.answer)
    monkeypatch.setattr(attention_segments, "flash_attn_version", lambda: None)
    assert "built without flash attention" in refusal(cuda, torch.float16, 64)
    built.answer = True
    assert refusal(cuda, torch.float16, 64) == ""


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FORESTS)
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_on_cuda(name, dtype, dim):
    end = FORESTS[name].cuda()
    tensors = inputs(len(end), heads=8, kv_heads=2, dim=dim, dtype=dtype, device=DEVICE)
    exact = run(reference, [x.detach().double().requires_grad_() for x in tensors], end, scale=0.1)
    plain = run(masked_sdpa, tensors, end, scale=0.1)
    found = run(cascade, tensors, end, scale=0.1)
    for value, other, truth in zip(found, plain, exact, strict=True):
        limit = (other.double() - truth).abs().max()
        rounding = 2 * torch.finfo(dtype).eps * truth.abs().max()
        assert (value.double() - truth).abs().max() <= 1.1 * limit + rounding


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, limit", [(torch.bfloat16, 0.01), (torch.float16, 0.0015)])
def test_on_cuda_at_a_real_size(dtype, limit):
    """A 4k policy above 16 samples of 1k and 256, heads of Qwen2.5-VL-7B; relative errors."""
    tree, heads = Tree(4096, 16, 1280), Heads("7B", 28, 4, 128)
    problem = Problem(tree, heads, True, torch.device("cuda"), dtype)
    *tensors, grad = problem.tensors
    leaves = [x.requires_grad_() for x in tensors]
    out = cascade(*leaves, tree.subtree_end(problem.device), problem.scale)
    found = problem.judged(out, *torch.autograd.grad(out, leaves, grad))
    for value, exact in zip(found, problem.exact().values(), strict=True):
        assert relative_error(value, exact) < limit
