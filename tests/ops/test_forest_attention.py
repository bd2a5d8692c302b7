"""forest_attention against its twin, and the twin against softmax by hand.

Lengths: 1 and 7 (one tile), 129 and 300 (tiles that cut trees), 0.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from fastmpi.ops import attention_flex
from fastmpi.ops.forest_attention import (
    default_backend,
    forest_attention,
    plan_forest,
)
from fastmpi.reference.forest_attention import forest_attention as reference
from fastmpi.reference.forest_attention import forest_mask


def random_forest(total: int, seed: int, *, roots: float = 0.02) -> torch.Tensor:
    """(T,) int32 ends of a random forest in depth-first order; long chains, few roots."""
    rng = np.random.default_rng(seed)
    end = np.zeros(total, np.int32)
    path: list[int] = []
    for row in range(total):
        if rng.random() < roots:
            keep = 0
        else:
            keep = len(path) if rng.random() < 0.8 else int(rng.integers(0, len(path) + 1))
        for ancestor in path[keep:]:
            end[ancestor] = row
        path = [*path[:keep], row]
    end[path] = total
    return torch.from_numpy(end)


def inputs(total, heads=4, kv_heads=2, dim=16, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((total, heads, dim), (total, kv_heads, dim), (total, kv_heads, dim))
    return [torch.randn(s, dtype=dtype, generator=generator).requires_grad_() for s in shapes]


def run(attend, tensors, *args, **kwargs):
    out = attend(*tensors, *args, **kwargs)
    weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return out, torch.autograd.grad((out * weight).sum(), tensors)


def test_twin_is_softmax_over_the_path():
    # rows 0-1 a prefix, 2 and 3-4 its two branches, 5 another root
    end = torch.tensor([5, 5, 3, 5, 5, 6], dtype=torch.int32)
    paths = [[0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 3, 4], [5]]
    q, k, v = inputs(6, heads=2, kv_heads=1)
    out = reference(q, k, v, end, scale=0.3)
    for row, path in enumerate(paths):
        for head in range(2):
            weights = (0.3 * k[path, 0] @ q[row, head]).softmax(0)
            assert torch.allclose(out[row, head], weights @ v[path, 0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("total", [1, 7, 129, 300])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_sdpa_equals_twin(total, seed, kv_heads):
    end = random_forest(total, seed)
    tensors = inputs(total, kv_heads=kv_heads, seed=seed)
    out, grads = run(forest_attention, tensors, end, backend="sdpa", scale=0.2)
    expected, expected_grads = run(reference, tensors, end, scale=0.2)
    assert torch.allclose(out, expected, rtol=0, atol=1e-13)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert torch.allclose(grad, expected_grad, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_as_good_as_plain_torch(dtype):
    end = random_forest(300, 3)
    exact = inputs(300)
    low = [x.detach().to(dtype).requires_grad_() for x in exact]
    truth = reference(*[x.detach().double() for x in low], end)
    plain = torch.nn.functional.scaled_dot_product_attention(
        *[x.transpose(0, 1)[None] for x in low], attn_mask=forest_mask(end), enable_gqa=True
    )[0].transpose(0, 1)
    error = (forest_attention(*low, end, backend="sdpa").double() - truth).abs().max()
    assert error <= 1.5 * (plain.double() - truth).abs().max() + 1e-7


def test_many_roots_read_little():
    end = torch.arange(8, 4097, 8, dtype=torch.int32).repeat_interleave(8)
    assert plan_forest(end, "sdpa").prepared.num_keys == [128] * 32


def test_tiles_are_cut_where_branches_are():
    # a prompt of 200 and three responses of 60; another tree, whose two branches of 10 are short
    ends = [380] * 200 + [260] * 60 + [320] * 60 + [380] * 60
    ends += [600] * 200 + [590] * 10 + [600] * 10
    tiles = plan_forest(torch.tensor(ends, dtype=torch.int32), "sdpa").prepared
    assert tiles.heights == [100, 100, 60, 60, 60, 100, 120]
    assert tiles.num_keys == [100, 200, 260, 260, 260, 100, 220]


def test_plan_serves_many_layers_and_only_its_forest():
    end = random_forest(300, 5)
    plan = plan_forest(end, "sdpa")
    for seed in range(2):
        tensors = inputs(300, seed=seed)
        out = forest_attention(*tensors, end, plan=plan)
        assert torch.equal(out, forest_attention(*tensors, end, backend="sdpa"))
    with pytest.raises(ValueError, match="another forest or another backend"):
        forest_attention(*tensors, end.clone(), plan=plan)
    with pytest.raises(ValueError, match="another forest or another backend"):
        forest_attention(*tensors, end, plan=plan, backend="reference")


def test_a_changed_suffix_leaves_the_others_bit_identical():
    end = torch.tensor([400] * 100 + [200] * 100 + [400] * 200, dtype=torch.int32)
    tensors = [x.detach() for x in inputs(400, dtype=torch.float32)]
    before = forest_attention(*tensors, end)
    changed = [x.clone() for x in tensors]
    for x in changed:
        x[100:200] = 1e4
    after = forest_attention(*changed, end)
    kept = [*range(100), *range(200, 400)]
    assert torch.equal(before[kept], after[kept]) and not torch.equal(before, after)


@pytest.mark.parametrize("total", [1, 128, 129, 700])
@pytest.mark.parametrize("seed", [0, 1])
def test_flex_mask_is_the_forest_rule(total, seed):
    """The block mask drives eager flex_attention, which the CPU runs forward."""
    end = random_forest(total, seed, roots=0.005)
    tensors = [x.detach() for x in inputs(total, dtype=torch.float32)]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not compiled
        out = attention_flex.attend(*tensors, attention_flex.prepare(end), 0.25, flex_attention)
    assert torch.allclose(out, reference(*tensors, end, scale=0.25), atol=2e-6)


def test_flex_blocks_are_the_touched_ones():
    below_a_prefix = random_forest(400, 2) + 300
    end = torch.cat([torch.full((300,), 700, dtype=torch.int32), below_a_prefix])
    mask = attention_flex.prepare(end)
    visible = torch.zeros(768, 768, dtype=torch.bool)
    visible[:700, :700] = forest_mask(end)
    padding = torch.arange(700, 768)
    visible[padding, padding] = True
    rows = torch.arange(768)
    assert torch.equal(mask.mask_mod(0, 0, rows[:, None], rows[None]), visible)
    blocks = visible.view(6, 128, 6, 128).transpose(1, 2).flatten(2)
    assert torch.equal(mask.to_dense()[0, 0].bool(), blocks.any(2))
    fully = torch.zeros(6, 6, dtype=torch.bool)
    for row in range(6):
        count = int(mask.full_kv_num_blocks[0, 0, row])
        fully[row, mask.full_kv_indices[0, 0, row, :count].long()] = True
    assert torch.equal(fully, blocks.all(2)) and fully.any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("total", [7, 300, 1000])
def test_flex_on_cuda(total):
    end = random_forest(total, 0).cuda()
    tensors = [x.detach().float().cuda().requires_grad_() for x in inputs(total, dim=32)]
    out, grads = run(forest_attention, tensors, end, backend="flex")
    expected, expected_grads = run(reference, tensors, end)
    assert torch.allclose(out, expected, atol=5e-3)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert torch.allclose(grad, expected_grad, atol=5e-2)


def test_empty_forest():
    end = torch.zeros(0, dtype=torch.int32)
    assert forest_attention(*inputs(0), end).shape == (0, 4, 16)


def test_default_backend_on_cpu():
    assert default_backend(inputs(3)[0]) == "sdpa"


def test_refusals():
    q, k, v = inputs(6)
    end = random_forest(6, 0)
    cases = [
        ((q[0], k, v, end), "q is .T, Hq, D., k and v are"),
        ((q, k, v[:, :1], end), "q is .T, Hq, D., k and v are"),
        ((q[:5], k, v, end), "does not fit k and v"),
        ((q[:, :3], k, v, end), "does not fit k and v"),
        ((q, k[:, :0], v[:, :0], end), "have no heads"),
        ((q.float(), k, v, end), "need one float"),
        ((q, k, v, end.numpy()), "subtree_end must be a tensor, got ndarray"),
        ((q, k, v, end[:5]), r"subtree_end is \(6,\), not \(5,\)"),
        ((q, k, v, end.long()), "int32, not"),
        ((q, k, v, end * 0), "lies after k"),
        ((q, k, v, end + 1), "at most at T"),
        ((q, k, v, end.to("meta")), "different devices"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            forest_attention(*arguments)
    with pytest.raises(ValueError, match="unknown attention backend 'fast'; known: triton, sdpa"):
        forest_attention(q, k, v, end, backend="fast")
    with pytest.raises(ValueError, match="'flex' needs a CUDA device, not 'cpu'"):
        forest_attention(q, k, v, end, backend="flex")


@pytest.mark.parametrize("total", [7, 300])
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_rows_that_nobody_reads_cost_the_others_nothing(total, backend):
    end = random_forest(total, 3)
    unread = np.random.default_rng(0).random(total) < 0.5
    unread[: total // 2] = True
    tensors = inputs(total)
    plan = plan_forest(end, backend, unread=unread)
    out = forest_attention(*tensors, end, plan=plan)
    read = torch.from_numpy(~unread)
    torch.testing.assert_close(out[read], reference(*tensors, end)[read], rtol=0, atol=1e-12)
    assert backend == "reference" or not out[~read].any()
