"""The Triton kernels of forest_attention on a GPU, at sizes of training."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from fastmpi.ops.forest_attention import forest_attention, plan_forest
from fastmpi.reference.forest_attention import forest_attention as reference
from fastmpi.reference.forest_attention import forest_mask

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
attend = functools.partial(forest_attention, backend="triton")


def shared_prompt(prompt: int, *lengths: int) -> torch.Tensor:
    """(T,) int32 ends of a prompt and its responses."""
    responses = torch.tensor(lengths)
    ends = prompt + responses.cumsum(0)
    all_ends = torch.cat([ends[-1].expand(prompt), ends.repeat_interleave(responses)])
    return all_ends.to("cuda", torch.int32)


def two_policies() -> torch.Tensor:
    """About 20k rows: two trees, the responses of no length that a block likes."""
    first = shared_prompt(4097, *(300 + 37 * i for i in range(12)))
    second = shared_prompt(1000, *[777] * 9)
    return torch.cat([first, second + len(first)])


FORESTS = {
    "1k prompt, 16 responses": lambda: shared_prompt(1024, *[256] * 16),
    "two policies": two_policies,
    "chain": lambda: shared_prompt(5000, 1),
}


def inputs(total, heads, kv_heads, dim, dtype):
    """Heads first in memory, as models have them. The seed is new, and printed."""
    seed = torch.seed()
    print("seed", seed)
    generator = torch.Generator("cuda").manual_seed(seed % 2**63)
    make = functools.partial(torch.randn, generator=generator, device="cuda", dtype=dtype)
    return [
        make(n, total, dim).transpose(0, 1).requires_grad_() for n in (heads, kv_heads, kv_heads)
    ]


def run(function, tensors, *args, **options):
    tensors = [x.detach().requires_grad_() for x in tensors]
    out = function(*tensors, *args, **options)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(out.shape, generator=generator).to(out.device, out.dtype)
    return [out.detach(), *torch.autograd.grad(out, tensors, grad)]


def plain(q, k, v, end):
    """torch's own attention under the whole mask, with 16-bit weights as every fused kernel has
    them: left to choose, it computes groups of heads in fp32."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        out = scaled_dot_product_attention(q, k, v, attn_mask=forest_mask(end))
    return out[0].transpose(0, 1)


def relative_error(got, exact):
    return float((got.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", FORESTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("deterministic", [False, True])
def test_as_exact_as_torch(name, dtype, deterministic):
    """Two heads of one key head, since fp64 holds whole (T, T) matrices."""
    end = FORESTS[name]()
    tensors = inputs(len(end), 2, 1, 128, dtype)
    exact = run(reference, [x.detach().double() for x in tensors], end)
    torchs = run(plain, tensors, end)
    ours = run(attend, tensors, end, deterministic=deterministic)
    for got, theirs, truth in zip(ours, torchs, exact, strict=True):
        assert relative_error(got, truth) <= 1.1 * relative_error(theirs, truth) + 1e-4


@pytest.mark.parametrize("dim", [16, 64, 72, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_head_sizes(dim, dtype):
    end = shared_prompt(300, 100, 0, 37, 200)
    tensors = inputs(len(end), 7, 1, dim, dtype)
    exact = run(reference, [x.detach().double() for x in tensors], end)
    torchs = run(plain, tensors, end)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-4
    for got, theirs, truth in zip(run(attend, tensors, end), torchs, exact, strict=True):
        assert relative_error(got, truth) <= 1.1 * relative_error(theirs, truth) + tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sampled_rows_of_many_heads(dtype):
    """16 heads and 20k rows: rows drawn anew, each against softmax over its own path."""
    end = two_policies()
    q, k, v = (x.detach() for x in inputs(len(end), 16, 2, 128, dtype))
    out = attend(q, k, v, end)
    numbers = torch.arange(len(end), device="cuda")
    for row in torch.randint(len(end), (64,)).tolist():
        path = (numbers <= row) & (row < end)
        keys, values = (x[path].double().repeat_interleave(8, 1) for x in (k, v))
        scores = torch.einsum("hd,khd->hk", q[row].double(), keys) * 128**-0.5
        exact = torch.einsum("hk,khd->hd", scores.softmax(1), values)
        assert relative_error(out[row], exact) < (1e-2 if dtype == torch.bfloat16 else 2e-3)


def test_deterministic_repeats_bit_for_bit():
    end = two_policies()
    tensors = inputs(len(end), 16, 2, 128, torch.bfloat16)
    first, second = (run(attend, tensors, end, deterministic=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_other_forests_compile_nothing():
    from fastmpi.kernels import forest_attention as forward
    from fastmpi.kernels import forest_attention_backward as backward

    kernels = (
        forward._forest_attention_kernel,
        backward._query_grad_kernel,
        backward._key_grad_kernel,
    )
    device = torch.cuda.current_device()
    run(attend, inputs(1024, 4, 2, 128, torch.bfloat16), shared_prompt(1000, 24))
    compiled = [len(kernel.device_caches[device][0]) for kernel in kernels]
    for lengths in ([7], [500, 501], [64] * 40, [3] * 333):
        end = shared_prompt(900, *lengths)
        run(attend, inputs(len(end), 4, 2, 128, torch.bfloat16), end)
    assert [len(kernel.device_caches[device][0]) for kernel in kernels] == compiled


def test_planning_and_attention_wait_for_nothing():
    """After the check of the forest, nothing reads the device: the host runs ahead."""
    end = two_policies()
    tensors = inputs(len(end), 4, 2, 128, torch.bfloat16)
    plan = plan_forest(end, "triton")
    grad = torch.randn_like(attend(*tensors, end))  # and compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        attend(*tensors, end, plan=plan).backward(grad)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_inside_torch_compile():
    compiled = torch.compile(
        lambda q, k, v, end, plan: attend(2 * q, k, v, end, plan=plan) + 1, dynamic=True
    )
    for prompt in (500, 600):
        end = shared_prompt(prompt, 100, 50)
        tensors = inputs(len(end), 4, 2, 64, torch.bfloat16)
        plan = plan_forest(end, "triton")
        eager = attend(2 * tensors[0], *tensors[1:], end, plan=plan) + 1
        assert torch.allclose(compiled(*tensors, end, plan), eager, atol=2e-2)
