"""Trees of responses for the tests of decode_attention, and numbers drawn for them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastmpi.ops.decode_attention import DecodePlan, DecodeShape, Segment

CPU = torch.device("cpu")


class Tree(NamedTuple):
    """Segments, and the own lengths of the slots."""

    segments: list[Segment]
    lengths: list[int]


TREES = {
    "no segments": Tree([], [3, 1, 5]),
    "one row": Tree([Segment(2, 7, [0])], [1]),
    "a prompt": Tree([Segment(0, 33, [0, 1, 2, 3])], [4, 1, 9, 2]),
    "a policy, two prompts": Tree(
        [Segment(0, 20, [0, 1, 2, 3]), Segment(20, 9, [0, 1]), Segment(29, 12, [2, 3])],
        [1, 6, 3, 3],
    ),
    "equally spaced prompts": Tree(
        [Segment(i * 10, 7 + i, [2 * i, 2 * i + 1]) for i in range(4)], [1, 2, 3, 4, 5, 6, 7, 8]
    ),
    "slots out of order, prompts of equal lengths": Tree(
        [Segment(0, 5, [5, 3]), Segment(8, 5, [0, 4]), Segment(16, 5, [1, 2])], [2] * 6
    ),
    "prompts of different numbers of responses": Tree(
        [Segment(0, 5, [0, 1]), Segment(6, 5, [2]), Segment(12, 5, [3, 4, 5])], [1, 2, 2, 3, 1, 2]
    ),
    "empty slots": Tree([Segment(0, 6, [1, 3]), Segment(6, 5, [3])], [0, 2, 0, 7, 0]),
    "segments alone": Tree([Segment(0, 6, [0, 1]), Segment(9, 3, [1])], [0, 0, 0]),
    "nothing at all": Tree([], [0, 0]),
    "three levels": Tree(
        [
            Segment(0, 11, [0, 1, 2, 3, 4, 5]),
            Segment(11, 7, [0, 1, 2]),
            Segment(18, 4, [0, 1]),
            Segment(22, 1, [2]),
            Segment(23, 13, [3, 4, 5]),
        ],
        [1, 2, 3, 4, 5, 6],
    ),
    "the same tokens twice": Tree([Segment(4, 6, [0, 1]), Segment(4, 6, [1])], [3, 2]),
}


def shape_of(tree, heads=4, kv_heads=2, dim=8, dtype=torch.float64, device=CPU):
    return DecodeShape(len(tree.lengths), heads, kv_heads, dim, dtype, device)


def inputs(tree, shape, seed=0, spare=3):
    """q, the four views of one pool, the lengths; `spare` tokens past each end."""
    generator = torch.Generator().manual_seed(seed)
    total = spare + max((s.start + s.length for s in tree.segments), default=0)
    capacity = spare + max(tree.lengths)
    slots = shape.num_slots

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(shape.dtype)

    q = draw(slots, shape.heads, shape.head_dim)
    pools = [draw(shape.kv_heads, total + slots * capacity, shape.head_dim) for _ in range(2)]
    shared = [pool[:, :total] for pool in pools]
    own = [pool[:, total:].view(shape.kv_heads, slots, capacity, -1) for pool in pools]
    lengths = torch.tensor(tree.lengths, dtype=torch.int32, device=shape.device)
    return q, *shared, *own, lengths


def planned(tree, shape, backend=None, max_parts=0):
    plan = DecodePlan(shape, backend=backend, max_parts=max_parts)
    plan.update(tree.segments)
    return plan
