"""Launches of the kernel of `patch_embed`: patches of 14 and of 16 pixels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fastmpi.kernels.patch_embed import patch_embed

EMBEDDING = 1280
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def _patch_embed(pixels: int, dtype: torch.dtype) -> None:
    patches = torch.zeros(16, pixels, dtype=torch.uint8)
    weight = torch.zeros(EMBEDDING, pixels, dtype=dtype)
    patch_embed(patches, weight, torch.zeros(EMBEDDING))


CASES: dict[str, Callable[[], Any]] = {
    f"patch_embed {side}x{side} {name}": partial(_patch_embed, 3 * side * side, dtype)
    for side in (14, 16)
    for name, dtype in DTYPES.items()
}
