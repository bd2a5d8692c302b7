"""Chunks of the fused LM head: their size, their order, their memory, and what they multiply."""

from __future__ import annotations

import pytest
import torch

from fastmpi.ops.token_logprob import token_logprob, token_loss

pytest.importorskip("triton")
from fastmpi.kernels import head_chunks  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS = torch.tensor([3, 0, 3, 6, 3, 5, 0], device=DEVICE)
TARGETS = torch.tensor([4, 10, 1, 0, 4, 7, 2], device=DEVICE)


def _operands():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(8, 24, generator=generator).to(DEVICE)
    head = torch.randn(50, 24, generator=generator).to(DEVICE)
    return hidden.requires_grad_(), head.requires_grad_()


def test_scores_are_sorted_by_row_and_target_and_keep_their_order():
    scores = head_chunks.group_scores(ROWS, TARGETS, 50)
    assert scores.rows.tolist() == [0, 3, 5, 6]
    assert scores.offsets.tolist() == [0, 2, 5, 6, 7]
    assert scores.targets.tolist() == [2, 10, 1, 4, 4, 7, 0]
    assert scores.order.tolist() == [6, 1, 2, 0, 4, 5, 3]


@pytest.mark.parametrize(
    ("vocabulary", "width", "trained", "rows"),
    [
        (152064, 3584, False, 1152),  # 9 x 28 tiles are 1.9 waves of 132 multiprocessors
        (151936, 2048, False, 1024),  # 8 x 16 tiles are one wave
        (152064, 3584, True, 1792),  # fewer sums into a gradient of 2 GB
        (10**7, 64, False, 128),  # never less than a tile
    ],
)
def test_default_size(vocabulary, width, trained, rows):
    assert head_chunks.default_chunk_rows(vocabulary, width, 132, trained=trained) == rows


def test_16_bit_gradients_lie_in_the_second_half_of_their_row():
    logits = torch.zeros(2, 32)
    gradient = head_chunks.in_place_gradient(logits, torch.float16)
    gradient.fill_(1.0)
    assert gradient.shape == (2, 32)
    assert not logits[:, :16].any() and logits[:, 16:].all()
    assert head_chunks.in_place_gradient(logits, torch.float32).data_ptr() == logits.data_ptr()


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-25, 1.0, 1e30])
def test_scale_is_a_power_of_two_near_the_target(size):
    scores = head_chunks.group_scores(ROWS, TARGETS, 50)
    assert head_chunks.gradient_scale(torch.bfloat16, torch.ones(7), scores) is None
    bound = torch.full((7,), size, device=DEVICE)
    scale = head_chunks.gradient_scale(torch.float16, bound, scores)
    assert torch.frexp(scale).mantissa.item() == 0.5
    if size > 1e-30:  # below, float32 has no such scale
        assert 2**7 <= 3 * size * scale.item() <= 2**8  # row 3 has three scores


@pytest.mark.parametrize(
    ("trained", "op", "products"),
    [
        ((), "loss", 1),
        (("hidden",), "loss", 2),
        (("hidden", "head"), "loss", 3),
        ((), "logprob", 1),
        (("hidden",), "logprob", 3),
        (("hidden", "head"), "logprob", 4),
    ],
)
def test_number_of_products(monkeypatch, trained, op, products):
    made = []
    for name in ("product", "add_product"):
        function = getattr(head_chunks, name)
        monkeypatch.setattr(
            head_chunks, name, lambda *args, f=function, **kw: (made.append(f), f(*args, **kw))[1]
        )
    hidden, head = _operands()
    hidden.requires_grad_("hidden" in trained)
    head.requires_grad_("head" in trained)
    if op == "loss":
        value = token_loss(
            hidden, head, ROWS, TARGETS, torch.ones(7, device=DEVICE), backend="triton"
        ).loss
    else:
        value = token_logprob(hidden, head, ROWS, TARGETS, backend="triton")[0].sum()
    if trained:
        value.backward()
    assert len(made) == products
