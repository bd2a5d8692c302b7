"""Kernels run on the device of their tensors, whatever the current one is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from fastmpi.ops.decode_attention import DecodePlan, DecodeShape, Segment, decode_attention
from fastmpi.ops.forest_attention import forest_attention
from fastmpi.ops.group_advantage import group_advantage
from fastmpi.ops.patch_embed import patch_embed
from fastmpi.ops.policy_loss import policy_loss
from fastmpi.ops.token_logprob import token_logprob

pytest.importorskip("triton")


def attention(ones: Callable[..., torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    q = ones(4, 1, 16).requires_grad_()
    return forest_attention(q, q, q, ids.int() + 4, backend="triton")


def decode(ones: Callable[..., torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    q, pool, own = ones(4, 1, 16), ones(1, 8, 16), ones(1, 4, 2, 16)
    plan = DecodePlan(DecodeShape(4, 1, 1, 16, q.dtype, q.device), backend="triton", max_parts=4)
    plan.update([Segment(0, 8, [0, 1, 2, 3])])
    return decode_attention(q, pool, pool, own, own, ids.int() + 1, plan)


def loss(ones: Callable[..., torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    logprob = ones(4).requires_grad_()
    options = {"importance_sampling_level": "sequence", "backend": "triton"}
    return policy_loss(
        logprob, ids, weights=ones(4), rewards=ones(4), groups=ids, old_logprob=ones(4), **options
    ).loss


OPS = {
    "forest_attention": attention,
    "decode_attention": decode,
    "policy_loss": loss,
    "group_advantage": lambda ones, ids: group_advantage(ones(4), ids, backend="triton").mean,
    "patch_embed": lambda ones, ids: patch_embed(
        ones(4, 27).byte(), ones(2, 3, 2, 3, 3).requires_grad_(), ones(3), ones(3), backend="triton"
    ),
    "token_logprob": lambda ones, ids: token_logprob(
        ones(4, 8).requires_grad_(), ones(16, 8), ids, ids, backend="triton"
    )[0],
}


@pytest.mark.parametrize("name", OPS)
def test_launches_are_guarded(name, device, launches, monkeypatch):
    guarded: list[str] = []

    @contextmanager
    def device_of(tensor: torch.Tensor) -> Any:
        assert tensor.device.type == device.type
        before = len(launches)
        yield
        guarded.extend(launches[before:])

    monkeypatch.setattr(torch.cuda, "device_of", device_of)

    def ones(*shape: int) -> torch.Tensor:
        return torch.ones(shape, device=device)

    out = OPS[name](ones, torch.zeros(4, dtype=torch.int64, device=device))
    if out.requires_grad:
        out.sum().backward()
    assert launches and guarded == launches
