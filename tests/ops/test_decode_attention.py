"""decode_attention on the CPU: the reference against whole rows, the backends against it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from fastmpi.ops.decode_attention import DecodePlan, Segment, decode_attention
from fastmpi.reference.decode_attention import decode_attention as reference

sys.path.insert(0, str(Path(__file__).parent))
from decode_trees import TREES, Tree, inputs, planned, shape_of  # noqa: E402


@pytest.mark.parametrize("name", TREES)
def test_reference_is_torchs_attention_of_whole_rows(name):
    tree = TREES[name]
    q, shared_keys, shared_values, own_keys, own_values, lengths = inputs(tree, shape_of(tree))
    out = reference(
        q, shared_keys, shared_values, own_keys, own_values, lengths, tree.segments, scale=0.3
    )
    for slot, length in enumerate(tree.lengths):
        places = [slice(s.start, s.start + s.length) for s in tree.segments if slot in s.slots]
        keys = torch.cat([*(shared_keys[:, p] for p in places), own_keys[:, slot, :length]], 1)
        values = torch.cat(
            [*(shared_values[:, p] for p in places), own_values[:, slot, :length]], 1
        )
        whole = torch.zeros_like(q[slot])
        if keys.shape[1]:
            whole = scaled_dot_product_attention(
                q[slot][:, None], keys, values, scale=0.3, enable_gqa=True
            )[:, 0]
        assert torch.allclose(out[slot], whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("heads, kv_heads", [(4, 2), (3, 1), (2, 2)])
def test_cpu_is_the_reference(name, heads, kv_heads):
    tree = TREES[name]
    shape = shape_of(tree, heads, kv_heads)
    tensors = inputs(tree, shape)
    out = decode_attention(*tensors, planned(tree, shape))
    assert torch.allclose(out, reference(*tensors, tree.segments), rtol=0, atol=1e-14)


@pytest.mark.parametrize("scale", [0.0, -0.7, 2.0])
def test_any_scale(scale):
    tree = TREES["three levels"]
    tensors = inputs(tree, shape_of(tree))
    out = decode_attention(*tensors, planned(tree, shape_of(tree)), scale=scale)
    assert torch.allclose(out, reference(*tensors, tree.segments, scale=scale), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["three levels", "equally spaced prompts", "empty slots"])
def test_cpu_is_as_exact_as_the_reference(dtype, name):
    tree = TREES[name]
    shape = shape_of(tree, dtype=dtype)
    tensors = inputs(tree, shape)
    exact = reference(*(x.double() for x in tensors[:5]), tensors[5], tree.segments)
    plainly = reference(*tensors, tree.segments)
    out = decode_attention(*tensors, planned(tree, shape))
    assert out.dtype == dtype
    rounding = torch.finfo(dtype).eps  # of each segment's result
    assert (out - exact).norm() <= 1.1 * (plainly - exact).norm() + rounding * exact.norm()


def test_prompts_laid_out_equally_are_one_call():
    tree = TREES["equally spaced prompts"]
    (level,) = planned(tree, shape_of(tree)).prepared.levels
    assert [run.num_segments for run in level.runs] == [4] and level.slots is None
    apart = [Segment(s.start + (i == 2), s.length, s.slots) for i, s in enumerate(tree.segments)]
    (level,) = planned(tree._replace(segments=apart), shape_of(tree)).prepared.levels
    assert [run.num_segments for run in level.runs] == [2, 2]


def test_padding_never_reaches_past_the_last_segment():
    """The pool may end there."""
    segments = [Segment(0, 9, [0]), Segment(10, 8, [1])]
    tree = Tree(segments, [1, 1])
    shape = shape_of(tree)
    (level,) = planned(tree, shape).prepared.levels
    assert [run.num_segments for run in level.runs] == [1, 1]


def test_updates_replace_all_segments():
    tree = TREES["three levels"]
    shape = shape_of(tree)
    tensors = inputs(tree, shape)
    plan = planned(tree, shape)
    for segments in (tree.segments[1:2], [], tree.segments):
        plan.update(segments)
        assert torch.allclose(
            decode_attention(*tensors, plan), reference(*tensors, segments), atol=1e-14
        )


def test_lengths_may_grow_without_an_update():
    tree = TREES["a prompt"]
    tensors = inputs(tree, shape_of(tree))
    plan = planned(tree, shape_of(tree))
    for _ in range(3):
        out = decode_attention(*tensors, plan)
        assert torch.allclose(out, reference(*tensors, tree.segments), atol=1e-14)
        tensors[-1].add_(1)


def test_pool_past_its_lengths_is_never_mixed_in():
    tree = TREES["equally spaced prompts"]
    tensors = inputs(tree, shape_of(tree))
    before = decode_attention(*tensors, planned(tree, shape_of(tree)))
    seen = torch.zeros(tensors[1].shape[1], dtype=torch.bool)
    for segment in tree.segments:
        seen[segment.start : segment.start + segment.length] = True
    for pool in tensors[1:3]:
        pool[:, ~seen] = 1e6
    for pool in tensors[3:5]:
        for slot, length in enumerate(tree.lengths):
            pool[:, slot, length:] = 1e6
    assert torch.equal(decode_attention(*tensors, planned(tree, shape_of(tree))), before)


@pytest.mark.parametrize(
    "segment, message",
    [
        (Segment(-1, 3, [0]), "segment 1 starts at -1"),
        (Segment(0, 0, [0]), "has 0 tokens"),
        (Segment(0, 3, []), "and 0 slots"),
        (Segment(0, 3, [0, 4]), r"slots \[0, 4\] are not different numbers in \[0, 4\)"),
        (Segment(0, 3, [-1]), "are not different"),
        (Segment(0, 3, [2, 2]), "are not different"),
    ],
)
def test_bad_segments(segment, message):
    tree = TREES["a prompt"]
    plan = planned(tree, shape_of(tree))
    with pytest.raises(ValueError, match=message):
        plan.update([*tree.segments, segment])
    assert plan.segments == tuple(tree.segments)  # as before


@pytest.mark.parametrize(
    "index, change, message",
    [
        (0, lambda x: x[:, :2], r"q must have shape \(4, 4, 8\), got \(4, 2, 8\)"),
        (1, lambda x: x[:1], r"shared_keys must have shape \(2, \*, 8\)"),
        (2, lambda x: x[:, 1:], "shared_values must have shape"),
        (3, lambda x: x[:, :3], r"own_keys must have shape \(2, 4, \*, 8\)"),
        (4, lambda x: x[:, :, 1:], "own_values must have shape"),
        (5, lambda x: x[:3], r"own_lengths must have shape \(4\)"),
        (5, lambda x: x.long(), "own_lengths must be int32"),
        (0, lambda x: x.float(), "q must be torch.float64, got torch.float32"),
        (1, lambda x: x.mT.contiguous().mT, "shared_keys must be contiguous in its last"),
        (3, lambda x: x.numpy(), "own_keys must be a tensor"),
        (0, lambda x: x.clone().requires_grad_(), "q requires a gradient"),
        (4, lambda x: x.to("meta"), "own_values must be on cpu, got meta"),
    ],
)
def test_bad_tensors(index, change, message):
    tree = TREES["a prompt"]
    tensors = list(inputs(tree, shape_of(tree)))
    tensors[index] = change(tensors[index])
    with pytest.raises(ValueError, match=message):
        decode_attention(*tensors, planned(tree, shape_of(tree)))


def test_a_segment_past_the_pool():
    tree = TREES["a prompt"]
    plan = planned(Tree([Segment(30, 7, [0])], tree.lengths), shape_of(tree))
    with pytest.raises(ValueError, match="a segment ends at token 37 of a pool of 36"):
        decode_attention(*inputs(tree, shape_of(tree)), plan)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"heads": 3}, "heads a multiple of kv_heads"),
        ({"num_slots": 0}, "sizes are at least 1"),
        ({"dtype": torch.int32}, "needs a float dtype"),
    ],
)
def test_bad_shapes(change, message):
    with pytest.raises(ValueError, match=message):
        replace(shape_of(TREES["a prompt"]), **change)


def test_backends_are_chosen_or_refused():
    shape = shape_of(TREES["a prompt"])
    assert DecodePlan(shape).backend == "cpu"
    assert DecodePlan(replace(shape, device=torch.device("meta"))).backend == "reference"
    with pytest.raises(ValueError, match="unknown decode backend 'flash'"):
        DecodePlan(shape, backend="flash")
    with pytest.raises(ValueError, match="backend 'cpu' needs the CPU, not 'meta'"):
        DecodePlan(replace(shape, device=torch.device("meta")), backend="cpu")


def test_reference_as_a_backend():
    tree = TREES["three levels"]
    tensors = inputs(tree, shape_of(tree))
    out = decode_attention(*tensors, planned(tree, shape_of(tree), "reference"))
    assert torch.equal(out, reference(*tensors, tree.segments))
