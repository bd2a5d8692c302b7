"""The Triton kernels of decode_attention on a GPU, at sizes of rollouts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from fastmpi.ops.decode_attention import DecodePlan, DecodeShape, Segment, decode_attention
from fastmpi.reference.decode_attention import decode_attention as reference

sys.path.insert(0, str(Path(__file__).parent))
from decode_trees import Tree, inputs, planned  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
ROUNDING = {torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float32: 2e-6}


def wave(policy=4096, prompts=4, prompt=1100, responses=16):
    """A policy, prompts below it, responses below those; lengths from 0 to 300."""
    slots = prompts * responses
    segments = [Segment(0, policy, range(slots))] if policy else []
    for index in range(prompts):
        below = range(index * responses, (index + 1) * responses)
        segments.append(Segment(policy + index * prompt, prompt - index, below))
    return Tree(segments, [(37 * slot) % 301 for slot in range(slots)])


def of(tree, heads, kv_heads, dim, dtype):
    device = torch.zeros(0, device="cuda").device
    return DecodeShape(len(tree.lengths), heads, kv_heads, dim, dtype, device)


def relative_error(got, exact):
    return float((got.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("heads, kv_heads, dim", [(16, 2, 128), (28, 4, 128), (8, 8, 64)])
def test_as_exact_as_its_numbers(heads, kv_heads, dim, dtype):
    tree = wave()
    shape = of(tree, heads, kv_heads, dim, dtype)
    tensors = inputs(tree, shape)
    exact = reference(*(x.double() for x in tensors[:5]), tensors[5], tree.segments)
    out = decode_attention(*tensors, planned(tree, shape, "triton", 1024))
    assert relative_error(out, exact) <= ROUNDING[dtype]


@pytest.mark.parametrize("dim", [16, 72, 80, 96, 256])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_head_sizes(dim, dtype):
    tree = wave(600, 2, 130, 5)
    shape = of(tree, 7, 1, dim, dtype)
    tensors = inputs(tree, shape)
    exact = reference(*(x.double() for x in tensors[:5]), tensors[5], tree.segments)
    out = decode_attention(*tensors, planned(tree, shape, "triton", 64))
    assert relative_error(out, exact) <= ROUNDING[dtype]


def test_runs_repeat_and_other_slots_change_no_bit():
    tree = wave()
    shape = of(tree, 16, 2, 128, torch.bfloat16)
    tensors = inputs(tree, shape)
    out = decode_attention(*tensors, planned(tree, shape, "triton", 1024))
    assert torch.equal(decode_attention(*tensors, planned(tree, shape, "triton", 2048)), out)
    alone = [
        Segment(s.start, s.length, [slot for slot in s.slots if slot % 3 == 1])
        for s in tree.segments
    ]
    tensors[0][::3] = 5.0
    other = decode_attention(*tensors, planned(tree._replace(segments=alone), shape, "triton", 999))
    assert torch.equal(other[1::3], out[1::3])


def test_fewer_slots_change_no_bit():
    """As when a batch shrinks: the first slots of the same memory."""
    tree = wave()
    shape = of(tree, 16, 2, 128, torch.bfloat16)
    tensors = inputs(tree, shape)
    out = decode_attention(*tensors, planned(tree, shape, "triton", 999))
    q, *shared, own_keys, own_values, lengths = tensors
    for count in (1, 20, 33):
        below = [(s, [slot for slot in s.slots if slot < count]) for s in tree.segments]
        few = Tree([s._replace(slots=slots) for s, slots in below if slots], tree.lengths[:count])
        plan = planned(few, of(few, 16, 2, 128, torch.bfloat16), "triton", 999)
        own = own_keys[:, :count], own_values[:, :count], lengths[:count]
        assert torch.equal(decode_attention(q[:count], *shared, *own, plan), out[:count])


def test_a_graph_replays_with_grown_lengths_and_other_segments():
    tree = wave()
    shape = of(tree, 16, 2, 128, torch.bfloat16)
    tensors = inputs(tree, shape, spare=8)
    plan = planned(tree, shape, "triton", 1024)
    decode_attention(*tensors, plan)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = decode_attention(*tensors, plan)
    for segments in (tree.segments, tree.segments[1:], [], tree.segments[:3]):
        plan.update(segments)
        tensors[5].add_(1)
        tensors[0].normal_()
        graph.replay()
        assert torch.equal(out, decode_attention(*tensors, plan))
        exact = reference(*(x.double() for x in tensors[:5]), tensors[5], segments)
        assert relative_error(out, exact) <= ROUNDING[torch.bfloat16]


def test_it_waits_for_nothing():
    tree = wave()
    shape = of(tree, 16, 2, 128, torch.bfloat16)
    tensors = inputs(tree, shape)
    plan = planned(tree, shape, "triton", 1024)
    decode_attention(*tensors, plan)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        decode_attention(*tensors, plan)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_other_waves_compile_nothing():
    from fastmpi.kernels import decode_attention as kernels

    jitted = (kernels._decode_attention_kernel, kernels._merge_parts_kernel)
    device = torch.cuda.current_device()

    def compiled():
        return [len(kernel.device_caches[device][0]) for kernel in jitted]

    counts = []
    for tree in (wave(), wave(0, 1, 50, 3), wave(17, 7, 1000, 9)):
        shape = of(tree, 16, 2, 128, torch.bfloat16)
        for parts in (1023, 2048):
            plan = DecodePlan(shape, max_parts=parts)
            plan.update(tree.segments)
            decode_attention(*inputs(tree, shape), plan)
            counts.append(compiled())
    assert counts[-1] == counts[0]
