"""The Triton kernels of forest_attention against their twin in float64.

In the interpreter blocks are small, so that short forests cross them; `shipped` runs the blocks of
a GPU. An error may be no larger than that of torch's own masked attention in the same precision.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from fastmpi.ops import attention_triton
from fastmpi.ops.forest_attention import default_backend, forest_attention, plan_forest
from fastmpi.reference.forest_attention import forest_attention as reference
from fastmpi.reference.forest_attention import forest_mask

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# On CUDA the one that takes a mask and has weights of 16 bits, as every fused kernel.
TORCHS = SDPBackend.EFFICIENT_ATTENTION if DEVICE == "cuda" else SDPBackend.FLASH_ATTENTION
attend = functools.partial(forest_attention, backend="triton", deterministic=False)


def forest(*parents: int) -> torch.Tensor:
    """(T,) int32 ends of the forest in which row k hangs below row `parents[k]`, -1 a root."""
    end = np.arange(1, len(parents) + 1, dtype=np.int32)
    for row in reversed(range(len(parents))):
        if parents[row] >= 0:
            end[parents[row]] = max(end[parents[row]], end[row])
    return torch.from_numpy(end).to(DEVICE)


def responses(prompt: int, *lengths: int) -> list[int]:
    """Parents of a prompt and its responses; a response may be empty."""
    parents = [*range(-1, prompt - 1)]
    for length in lengths:
        start = len(parents)
        parents += [prompt - 1, *range(start, start + length - 1)][:length]
    return parents


def random_parents(total: int, seed: int) -> list[int]:
    """Mostly chains; some rows begin a branch somewhere up their path, some a tree."""
    rng, path, parents = np.random.default_rng(seed), [-1], []
    for row in range(total):
        if rng.random() < 0.1:
            path = path[: rng.integers(1, len(path) + 1)]
        parents.append(path[-1])
        path.append(row)
    return parents


FORESTS = {
    "one row": [-1],
    "chain": responses(70),
    "whole blocks": responses(64),
    "every row a root": [-1] * 45,
    "a leaf on every row": [p for row in range(20) for p in (2 * row - 2 if row else -1, 2 * row)],
    "responses, some empty": responses(37, 20, 0, 9, 1, 0, 14),
    "two trees": [*responses(30, 5, 7), *(p + 42 if p >= 0 else -1 for p in responses(20, 8, 9))],
    "random 1": random_parents(67, 1),
    "random 2": random_parents(80, 2),
}
HEADS = [(1, 1), (2, 2), (2, 1), (4, 2), (4, 1), (7, 1)]


def inputs(total, heads=2, kv_heads=1, dim=16, dtype=torch.float32, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((total, heads, dim), (total, kv_heads, dim), (total, kv_heads, dim))
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    tensors[0] *= spread
    return [x.to(DEVICE, dtype).requires_grad_() for x in tensors]


def plain(q, k, v, end, scale=None):
    """torch's own attention under the whole mask."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    with sdpa_kernel([TORCHS, SDPBackend.MATH]):
        out = scaled_dot_product_attention(q, k, v, attn_mask=forest_mask(end), scale=scale)
    return out[0].transpose(0, 1)


def run(function, tensors, *args, **kwargs):
    """Output and gradients, for fixed gradients of the output."""
    tensors = [x.detach().requires_grad_() for x in tensors]
    out = function(*tensors, *args, **kwargs)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(out.shape, generator=generator).to(out.device, out.dtype)
    return [out.detach(), *torch.autograd.grad(out, tensors, grad)]


def relative_error(got, exact):
    """Where all is close to zero, as gradients of a row that sees itself alone: to 0.01."""
    return float(
        (got.double() - exact).norm() / exact.norm().clamp(min=0.01 * exact.numel() ** 0.5)
    )


def check(tensors, end, scale=None, **options):
    """Kernels no worse than torch's own attention, for output and gradients."""
    exact = run(reference, [x.detach().double() for x in tensors], end, scale=scale)
    torchs = run(plain, tensors, end, scale=scale)
    ours = run(attend, tensors, end, scale=scale, **options)
    narrow = tensors[0].dtype != torch.float32
    for name, *triple in zip(("out", "dq", "dk", "dv"), ours, torchs, exact, strict=True):
        error, allowed = (relative_error(x, triple[2]) for x in triple[:2])
        assert error <= allowed * 1.1 + (1e-4 if narrow else 1e-5), (name, error, allowed)
        assert triple[0].dtype == tensors[0].dtype and triple[0].shape == triple[2].shape


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Memory that nothing wrote is NaN, and lists of queries are cut for few programs."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    monkeypatch.setattr(attention_triton, "_PROGRAMS", 6)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def shipped(monkeypatch):
    """Blocks as on a Hopper GPU."""
    from fastmpi.kernels import forest_attention_tiles

    monkeypatch.setattr(forest_attention_tiles, "architecture", lambda: 90)


@pytest.mark.parametrize("number, name", list(enumerate(FORESTS)))
def test_forests(number, name):
    end = forest(*FORESTS[name])
    heads = HEADS[number % len(HEADS)]
    dtype = (torch.float32, torch.float16)[number % 2]
    check(inputs(len(end), *heads, dim=16 + 8 * (number % 3), dtype=dtype, seed=number), end)


@pytest.mark.parametrize("heads, kv_heads", HEADS)
def test_heads(heads, kv_heads):
    end = forest(*random_parents(35, heads))
    check(inputs(35, heads, kv_heads, seed=heads), end, scale=0.4)


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
def test_shipped_blocks(shipped, dim):
    end = forest(*responses(130, 30, 25))
    check(inputs(185, 1, 1, dim=dim, dtype=torch.float16, seed=dim), end)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_deterministic_repeats(dtype):
    end = forest(*responses(60, 20, 10))
    tensors = inputs(90, 2, 1, dtype=dtype)
    first, second = (run(attend, tensors, end, deterministic=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    check(tensors, end, deterministic=True)


def test_determinism_is_torchs_by_default(monkeypatch):
    seen = []
    monkeypatch.setattr(attention_triton, "attend", lambda *args: seen.append(args[-1]) or args[0])
    q, k, v = inputs(3)
    for enabled in (True, False):
        torch.use_deterministic_algorithms(enabled)
        forest_attention(q, k, v, forest(-1, 0, 1), backend="triton")
    assert seen == [True, False]


@pytest.mark.parametrize("spread", [30.0, 1e-3])
def test_large_and_small_scores(spread):
    end = forest(*random_parents(50, 4))
    check(inputs(50, spread=spread), end)


@pytest.mark.parametrize("scale", [0.0, -0.7, 3.0])
def test_any_scale(scale):
    end = forest(*random_parents(40, 5))
    check(inputs(40), end, scale=scale)


def test_strides():
    """Heads before rows, as models have them, and slices of one projection; nothing is copied."""
    end = forest(*random_parents(41, 6))
    generator = torch.Generator().manual_seed(2)
    heads_first = torch.randn(2, 41, 16, generator=generator).to(DEVICE).transpose(0, 1)
    both = torch.randn(41, 2, 1, 48, generator=generator).to(DEVICE)
    ours = attend(heads_first, both[:, 0, :, :16], both[:, 1, :, 32:], end)
    plainly = attend(heads_first.contiguous(), both[:, 0, :, :16].clone(), both[:, 1, :, 32:], end)
    assert torch.equal(ours, plainly)
    tensors = [x.detach().requires_grad_() for x in (heads_first, both[:, 0, :, :16])]
    attend(*tensors, tensors[1], end).sum().backward()  # its gradient is one number, expanded
    exact = [x.detach().double().requires_grad_() for x in tensors]
    reference(*exact, exact[1], end).sum().backward()
    for ours, theirs in zip(tensors, exact, strict=True):
        assert torch.allclose(ours.grad.double(), theirs.grad, atol=1e-5)


def test_columns_may_be_apart():
    end = forest(*random_parents(20, 7))
    q, k, v = (x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in inputs(20))
    check([q, k, v], end)


def test_branches_do_not_meet():
    """A branch changed beyond reason leaves other rows bit-identical, and takes no gradient."""
    end = forest(*responses(30, 20, 25))
    inside = torch.arange(30, 50, device=DEVICE)
    outside = torch.cat([torch.arange(30), torch.arange(50, 75)]).to(DEVICE)
    tensors = inputs(75)
    changed = [x.detach().index_fill(0, inside, 1e4) for x in tensors]
    with torch.no_grad():
        before, after = attend(*tensors, end), attend(*changed, end)
    assert torch.equal(before[outside], after[outside])
    grads = torch.autograd.grad(attend(*tensors, end)[outside].sum(), tensors)
    assert not any(grad[inside].any() for grad in grads)


def test_no_rows():
    tensors = inputs(0)
    out = attend(*tensors, torch.zeros(0, dtype=torch.int32, device=DEVICE))
    assert out.shape == (0, 2, 16)
    assert all(g.numel() == 0 for g in torch.autograd.grad(out.sum(), tensors))


def test_one_plan_for_layers_of_different_sizes():
    end = forest(*random_parents(40, 8))
    plan = plan_forest(end, "triton")
    for dim in (16, 32):
        tensors = inputs(40, dim=dim)
        with torch.no_grad():
            assert torch.equal(attend(*tensors, end, plan=plan), attend(*tensors, end))


def operator_arguments(deterministic):
    """What `attend` gives to the operator, and what its backward gives."""
    end = forest(*random_parents(40, 9))
    schedules = attention_triton.prepare(end)
    q, k, v = inputs(40)
    lists = schedules.of_keys(16, 32, None if deterministic else 6)
    rows = schedules.of_queries(32, 16)
    return q, k, v, end, rows, rows, *lists, 0.25


@pytest.mark.skipif(DEVICE == "cuda", reason="the lists are of the interpreter's blocks")
@pytest.mark.parametrize("deterministic", [False, True])
def test_operators_obey_torch(deterministic):
    forward = operator_arguments(deterministic)
    torch.use_deterministic_algorithms(False)  # opcheck compares memory that nothing wrote
    torch.library.opcheck(torch.ops.fastmpi.forest_attention.default, forward)
    q, k, v, end, _, *lists = forward
    q, k, v = (x.detach() for x in (q, k, v))
    out, lse = torch.ops.fastmpi.forest_attention(q, k, v, end, *forward[4:])
    backward = (q, k, v, out, out, lse, end, *lists)
    torch.library.opcheck(torch.ops.fastmpi.forest_attention_backward.default, backward)


def test_log_sum_exp():
    q, k, v, end, *rest = operator_arguments(True)
    _, lse = torch.ops.fastmpi.forest_attention(q, k, v, end, *rest)
    scores = torch.einsum("qhd,khd->hqk", q, k.expand_as(q)) * 0.25
    exact = scores.double().masked_fill(~forest_mask(end), -torch.inf).logsumexp(-1)
    assert not lse.requires_grad
    assert torch.allclose(lse.double(), exact, rtol=0, atol=2e-6)


def test_default_and_refusals():
    q, k, v = inputs(3)
    end = forest(-1, 0, 1)
    assert default_backend(q) == ("triton" if DEVICE == "cuda" else "sdpa")
    assert default_backend(q.double()) == "sdpa"
    with pytest.raises(ValueError, match="'triton' takes float32, bfloat16 or float16, not"):
        attend(*(x.double() for x in (q, k, v)), end)
    with pytest.raises(ValueError, match="'triton' takes heads up to 256, not 272"):
        attend(*inputs(3, dim=272), end)
    with pytest.raises(ValueError, match="'sdpa' does not take deterministic"):
        forest_attention(q, k, v, end, backend="sdpa", deterministic=True)
