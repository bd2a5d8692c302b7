"""Launches of forest attention for the compile gate: shipped dtypes and head sizes."""

from __future__ import annotations

from functools import partial

import torch

from fastmpi.ops.forest_attention import forest_attention


def _forward_and_backward(head_dim: int, dtype: torch.dtype) -> None:
    shapes = ((256, 4, head_dim), (256, 2, head_dim), (256, 2, head_dim))
    q, k, v = (torch.randn(shape).to(dtype).requires_grad_() for shape in shapes)
    end = torch.full((256,), 256, dtype=torch.int32)
    forest_attention(q, k, v, end, backend="triton").sum().backward()


CASES = {
    f"forest_attention D={head_dim} {str(dtype).removeprefix('torch.')}": partial(
        _forward_and_backward, head_dim, dtype
    )
    for dtype in (torch.bfloat16, torch.float16)
    for head_dim in (64, 80, 96, 128, 256)
}
