"""The Triton kernels of decode_attention against their twin in float64.

In the interpreter blocks and parts are small, so that short segments cross them; `shipped` runs the
blocks of a GPU. An error may be no larger than that of torch's own attention over each slot's row.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from fastmpi.ops import decode_triton
from fastmpi.ops.decode_attention import DecodePlan, Segment, decode_attention
from fastmpi.reference.decode_attention import decode_attention as reference

pytest.importorskip("triton")
from fastmpi.kernels import decode_attention as decode_attention_kernel  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from decode_trees import TREES, Tree, inputs, planned, shape_of  # noqa: E402

MANY_SLOTS = Tree([Segment(3, 45, range(10)), Segment(50, 4, [9, 2])], [1, 0, 2, 1, 0] * 2)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EDGES = {  # parts of 40 tokens, blocks of 16; items of 16 slots, for 2 heads a key head
    "whole parts": Tree([Segment(0, 80, [0, 1]), Segment(80, 40, [1])], [16, 32]),
    "one token more": Tree([Segment(0, 81, [0, 1]), Segment(81, 41, [1])], [17, 33]),
    "one token less": Tree([Segment(0, 79, [0, 1]), Segment(79, 39, [1])], [15, 31]),
    "more parts than are merged at once": Tree([Segment(0, 650, [1])], [0, 7]),
}


@pytest.fixture(autouse=True)
def small(monkeypatch, poisoned):
    """Parts of 40 tokens, at most 64 own tokens a program, and 5 programs for all items; memory
    that nothing wrote is NaN."""
    monkeypatch.setattr(decode_triton, "PART_TOKENS", 40)
    monkeypatch.setattr(decode_attention_kernel, "OWN_TOKENS", 64)
    monkeypatch.setattr(decode_attention_kernel, "ITEM_PROGRAMS", 5)


def shape(tree, heads=2, kv_heads=1, dtype=torch.float32, dim=16):
    return shape_of(tree, heads, kv_heads, dim=dim, dtype=dtype, device=DEVICE)


def run(tree, tensors, scale=None, max_parts=64):
    heads, kv_heads, dim = tensors[0].shape[1], len(tensors[1]), tensors[0].shape[2]
    of = shape(tree, heads, kv_heads, dtype=tensors[0].dtype, dim=dim)
    return decode_attention(*tensors, planned(tree, of, "triton", max_parts), scale=scale)


def rows(tree, tensors, scale=None):
    """torch's own attention in the same precision, slot by slot over its whole row."""
    q, shared_keys, shared_values, own_keys, own_values, _ = tensors
    out = torch.zeros_like(q)
    for slot, length in enumerate(tree.lengths):
        places = [slice(s.start, s.start + s.length) for s in tree.segments if slot in s.slots]
        keys = torch.cat([*(shared_keys[:, p] for p in places), own_keys[:, slot, :length]], 1)
        values = torch.cat(
            [*(shared_values[:, p] for p in places), own_values[:, slot, :length]], 1
        )
        if keys.shape[1]:
            keys, values = (x.repeat_interleave(q.shape[1] // len(x), 0) for x in (keys, values))
            out[slot] = scaled_dot_product_attention(q[slot][:, None], keys, values, scale=scale)[
                :, 0
            ]
    return out


def check(tree, tensors, scale=None, **options):
    wide = [x.double() for x in tensors[:5]]
    exact = reference(*wide, tensors[5], tree.segments, scale=scale)
    ours = run(tree, tensors, scale, **options)
    assert ours.dtype == tensors[0].dtype and ours.shape == exact.shape
    size = exact.norm().clamp(min=1e-9)
    error, allowed = ((x - exact).norm() / size for x in (ours, rows(tree, tensors, scale)))
    assert error <= allowed * 1.1 + (1e-4 if ours.dtype != torch.float32 else 1e-6)


@pytest.mark.parametrize("number, name", list(enumerate([*TREES, *EDGES])))
def test_trees(number, name):
    tree = (TREES | EDGES)[name]
    dtype = (torch.float32, torch.float16)[number % 2]
    check(tree, inputs(tree, shape(tree, dtype=dtype), seed=number))


@pytest.mark.parametrize("heads, kv_heads", [(1, 1), (3, 3), (4, 2), (14, 2), (32, 1)])
def test_heads(heads, kv_heads):
    tree = Tree([Segment(0, 50, [0, 1]), Segment(50, 3, [1])], [3, 4])
    check(tree, inputs(tree, shape(tree, heads, kv_heads, dtype=torch.float16)))


def test_more_slots_than_an_item_has():
    """Items of 8 slots, for 4 heads a key head."""
    check(MANY_SLOTS, inputs(MANY_SLOTS, shape(MANY_SLOTS, 4, 1)))


def test_greatest_scores_in_the_last_part():
    tree = EDGES["more parts than are merged at once"]
    tensors = inputs(tree, shape(tree))
    tensors[3].mul_(10.0)  # own keys
    check(tree, tensors)


@pytest.mark.parametrize("lengths", [[150, 1, 64], [97, 63, 0], [17, 16, 15]])
@pytest.mark.parametrize("spare", [0, 190])
def test_own_tokens_in_splits(lengths, spare):
    tree = Tree([Segment(0, 5, [0])], lengths)
    check(tree, inputs(tree, shape(tree, 2, 1), spare=spare))


@pytest.mark.parametrize("dim", [8, 24, 80])
def test_head_sizes(dim):
    tree = TREES["three levels"]
    check(tree, inputs(tree, shape(tree, dim=dim, dtype=torch.float16)))


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_shipped_blocks(dim, monkeypatch):
    from fastmpi.kernels import decode_attention_tiles

    monkeypatch.setattr(decode_attention_tiles, "architecture", lambda: 90)
    monkeypatch.setattr(decode_triton, "PART_TOKENS", 512)
    tree = Tree([Segment(0, 600, [0, 1]), Segment(600, 70, [0])], [130, 0])
    check(tree, inputs(tree, shape(tree, 2, 1, dtype=torch.float16, dim=dim)))


@pytest.mark.parametrize("scale", [0.0, -0.7, 30.0, 1e-4])
def test_any_scale(scale):
    tree = TREES["a policy, two prompts"]
    check(tree, inputs(tree, shape(tree)), scale=scale)


def test_runs_repeat_bit_for_bit():
    tree = TREES["three levels"]
    tensors = inputs(tree, shape(tree, dtype=torch.float16))
    assert torch.equal(run(tree, tensors), run(tree, tensors))


def assert_unchanged(got, before):
    """To the last bit on a GPU. In the interpreter numpy multiplies, whose sums depend on where in
    a tile a row lies."""
    same = torch.equal(got, before) if got.is_cuda else torch.allclose(got, before, atol=1e-6)
    assert same


def test_other_slots_change_nothing():
    """Slots 0 and 4 alone, beside fewer others, in another order, with other numbers in others."""
    tree = TREES["three levels"]
    tensors = inputs(tree, shape(tree))
    whole = run(tree, tensors)
    for others in ([], [5, 3], [1, 2, 3]):
        kept = {0, 4, *others}
        fewer = [
            Segment(s.start, s.length, [slot for slot in reversed(s.slots) if slot in kept])
            for s in tree.segments
        ]
        lengths = [n if slot in kept else 0 for slot, n in enumerate(tree.lengths)]
        changed = [x.clone() for x in tensors]
        changed[0][others] = 7.0
        changed[5] = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
        out = run(Tree([s for s in fewer if s.slots], lengths), changed)
        assert_unchanged(out[[0, 4]], whole[[0, 4]])


def test_fewer_slots_change_nothing():
    """As when a batch shrinks: the first slots of the same memory."""
    tree = Tree([Segment(0, 50, range(5)), Segment(50, 45, [1, 3])], [70, 3, 100, 5, 1])
    tensors = inputs(tree, shape(tree))
    whole = run(tree, tensors)
    q, *shared, own_keys, own_values, lengths = tensors
    few = [q[:2], *shared, own_keys[:, :2], own_values[:, :2], lengths[:2]]
    segments = [Segment(0, 50, [0, 1]), Segment(50, 45, [1])]
    assert_unchanged(run(Tree(segments, tree.lengths[:2]), few), whole[:2])


def test_nothing_is_read_past_a_length():
    tree = EDGES["one token more"]
    tensors = inputs(tree, shape(tree))
    before = run(tree, tensors)
    for pool in tensors[1:3]:
        pool[:, 122:] = torch.nan
    for pool in tensors[3:5]:
        for slot, length in enumerate(tree.lengths):
            pool[:, slot, length:] = torch.nan
    assert torch.equal(run(tree, tensors), before)


def test_a_length_past_the_room_reads_all_of_it():
    tree = TREES["a prompt"]
    tensors = inputs(tree, shape(tree), spare=0)
    full = run(tree, [*tensors[:5], torch.full_like(tensors[5], 9)])
    tensors[5].fill_(2_000)
    assert torch.equal(run(tree, tensors), full)


def test_strides():
    """Tokens before heads, and q as the text tower has it; nothing is copied."""
    tree = TREES["a policy, two prompts"]
    of = shape(tree)
    q, *pools, lengths = inputs(tree, of)
    turned = [x.movedim(0, -2).contiguous().movedim(-2, 0) for x in pools]
    wide_q = torch.randn(len(q), 2, 3, 16, device=DEVICE)
    wide_q[:, :, 1] = q
    out = run(tree, [wide_q[:, :, 1], *turned, lengths])
    assert torch.equal(out, run(tree, [q, *pools, lengths]))


def test_updates_keep_addresses_and_leave_nothing_behind():
    tree = TREES["three levels"]
    of = shape(tree)
    tensors = inputs(tree, of)
    plan = planned(tree, of, "triton", 64)
    tables = (plan.prepared.items, plan.prepared.num_items, plan.prepared.first_part)
    before = [table.data_ptr() for table in tables]
    for segments in (tree.segments[4:], [], tree.segments):
        plan.update(segments)
        exact = reference(*tensors, segments)
        assert torch.allclose(decode_attention(*tensors, plan), exact, atol=1e-6)
    assert [table.data_ptr() for table in tables] == before
    assert plan.prepared.items.data_ptr() == before[0]


def test_too_many_parts_are_told():
    tree = MANY_SLOTS  # 2 parts for 10 slots, one more for 2
    plan = DecodePlan(shape(tree), backend="triton", max_parts=22)
    plan.update(tree.segments)
    assert decode_triton.count_parts(tree.segments) == 22
    smaller = DecodePlan(shape(tree), backend="triton", max_parts=21)
    smaller.update(tree.segments[1:])
    with pytest.raises(ValueError, match="need max_parts=22; the plan has room for 21"):
        smaller.update(tree.segments)
    assert smaller.segments == tuple(tree.segments[1:])
    assert smaller.prepared.num_items.item() == 1


def test_room_for_no_parts():
    tree = Tree([], [5, 0])
    check(tree, inputs(tree, shape(tree)), max_parts=0)


def test_operator_obeys_torch():
    tree = TREES["one row"]
    of = shape(tree)
    prepared = planned(tree, of, "triton", 16).prepared
    tables = (prepared.items, prepared.num_items, prepared.first_part)
    operator = torch.ops.fastmpi.decode_attention.default
    torch.library.opcheck(operator, (*inputs(tree, of), *tables, 0.25))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dtype": torch.float64}, "takes float32, bfloat16 or float16, not torch.float64"),
        ({"head_dim": 257}, "takes heads up to 256, not 257"),
        ({"heads": 33, "kv_heads": 1}, "takes up to 32 heads a key head, not 33"),
    ],
)
def test_refusals(change, message):
    of = replace(shape(TREES["a prompt"]), **change)
    with pytest.raises(ValueError, match=f"backend 'triton' {message}"):
        DecodePlan(of, backend="triton")


def test_needs_cuda_where_nothing_is_interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    of = replace(shape(TREES["a prompt"]), device=torch.device("cpu"))
    with pytest.raises(ValueError, match="backend 'triton' needs a CUDA device, not 'cpu'"):
        DecodePlan(of, backend="triton")
