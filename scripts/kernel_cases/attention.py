"""Launches of forest attention for the compile gate: dtypes, head sizes and both kinds of sums."""

from __future__ import annotations

from functools import partial

import torch

from fastmpi.ops.forest_attention import forest_attention


def _forward_and_backward(head_dim: int, dtype: torch.dtype, deterministic: bool) -> None:
    shapes = ((256, 4, head_dim), (256, 2, head_dim), (256, 2, head_dim))
    q, k, v = (torch.randn(shape).to(dtype).requires_grad_() for shape in shapes)
    end = torch.full((256,), 256, dtype=torch.int32)
    out = forest_attention(q, k, v, end, backend="triton", deterministic=deterministic)
    out.sum().backward()


def _case(head_dim: int, dtype: torch.dtype, deterministic: bool = False) -> str:
    """Its name."""
    sums = " deterministic" if deterministic else ""
    return f"forest_attention {head_dim} {str(dtype).removeprefix('torch.')}{sums}"


_OPTIONS: list[tuple] = [
    *((size, dtype) for dtype in (torch.bfloat16, torch.float16) for size in (64, 80, 128, 256)),
    (128, torch.float16, True),
]
CASES = {_case(*o): partial(_forward_and_backward, o[0], o[1], len(o) > 2) for o in _OPTIONS}
