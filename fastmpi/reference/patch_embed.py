"""The patch embedding of Qwen's vision towers for still images, in plain torch.

Legend: N patches, E embedding, C channels, p patch size. The towers embed pairs of video frames
with a 3-D convolution as large as its input; a still image fills both frames.
"""

from __future__ import annotations

import torch
from torch import Tensor


def patch_embed(
    patches: Tensor,  # (N, C * p * p) uint8
    weight: Tensor,  # (E, C, 2, p, p)
    mean: Tensor,  # (C,)
    std: Tensor,  # (C,)
) -> Tensor:
    """Normalises, duplicates the frame and projects: (N, E) in the weight's dtype."""
    channels, frames, side, _ = weight.shape[1:]
    wide = torch.promote_types(weight.dtype, torch.float32)
    pixels = patches.view(-1, channels, 1, side * side).to(wide) / 255
    pixels = (pixels - mean.to(wide)[:, None, None]) / std.to(wide)[:, None, None]
    both = pixels.expand(-1, -1, frames, -1).to(weight.dtype)  # (N, C, 2, p * p)
    return both.flatten(1) @ weight.flatten(1).T


def fold_patch_weight(weight: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (E, C * p * p) and bias (E,) of the same projection of raw pixels less 128.

    In float32, float64 for a float64 weight. Pixels less 128 are exact in 16 bits, and centred, so
    that products with the folded weight do not cancel against a large bias.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    scale = 1 / (255 * std.to(wide))
    both = weight.to(wide).sum(2).flatten(2)  # (E, C, p * p)
    folded = both * scale[:, None]
    bias = (folded.sum(2) * (128 - 255 * mean.to(wide))).sum(1)
    return folded.flatten(1), bias
