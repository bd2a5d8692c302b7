"""The heads that are measured: Qwen2.5-VL's, and small ones for the CPU."""

from __future__ import annotations

import torch

from fastmpi.benchmarks.head_inputs import HeadShape

HEADS = {"3B": (151_936, 2048), "7B": (152_064, 3584)}  # (V, H)
TOKENS = (4096, 16384)


def head_shapes(small: bool) -> list[HeadShape]:
    """Frozen and trained heads of both models; small ones in both precisions of the CPU."""
    if small:
        return [
            HeadShape(256, 2048, 128, trained, dtype, length=64)
            for trained in (False, True)
            for dtype in (torch.float32, torch.bfloat16)
        ]
    return [
        HeadShape(tokens, *head, trained)
        for trained in (False, True)
        for head in HEADS.values()
        for tokens in TOKENS
    ]
