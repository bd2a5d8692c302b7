"""Who processes pictures: `fastmpi.ops.images` where it gives transformers' pixels bit for bit.

`rule_of` reads an image processor's settings and decides once, by name; there is no attempt that
falls back. Whatever is not known to be equal is left to transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmpi.ops.images import (
    CropRule,
    PatchRule,
    expand_patches,
    image_crops,
    image_patches,
    value_table,
)

if TYPE_CHECKING:
    import PIL.Image
    from torch import Tensor

Grid = tuple[int, int, int]  # t, h, w in patches

BICUBIC = 3
STEPS = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")


@dataclass(frozen=True, eq=False)
class PixelValues:
    """How bytes, an eighth or a quarter of their size, become what a vision tower takes.

    table: the value of each byte of each channel, `(byte / 255 - mean) / std`; frames: how often a
    patch is repeated.
    """

    table: NDArray[np.float32]  # (3, 256)
    frames: int
    mean: tuple[float, ...]  # (3,)
    std: tuple[float, ...]  # (3,)

    def of(self, stored: Tensor) -> Tensor:
        """float32 of patches (N, 3 * n), their frame repeated, or of a crop (3, height, width)."""
        import torch

        rows = stored.numpy() if stored.ndim == 2 else stored.numpy().reshape(1, -1)
        values = torch.from_numpy(expand_patches(rows, self.table, self.frames))
        return values if stored.ndim == 2 else values.reshape(stored.shape)


def rule_of(image_processor: Any) -> PatchRule | CropRule | str:
    """How `fastmpi.ops.images` repeats what an image processor does, or why it does not.

    Types are compared exactly: a subclass may do anything.
    """
    from transformers import CLIPImageProcessorPil, Qwen2VLImageProcessorPil

    kind = type(image_processor)
    if kind not in (Qwen2VLImageProcessorPil, CLIPImageProcessorPil):
        return f"{kind.__name__} is not a processor that fastmpi repeats"
    if skipped := [step for step in STEPS if not getattr(image_processor, step)]:
        return f"{skipped[0]} is off"
    if image_processor.resample != BICUBIC:
        return f"resample is {image_processor.resample}, not bicubic"
    if image_processor.do_pad:
        return "do_pad is on"
    for name in ("image_mean", "image_std"):
        if len(np.atleast_1d(getattr(image_processor, name))) != 3:
            return f"{name} has not one value a channel"
    if kind is Qwen2VLImageProcessorPil:
        return _patch_rule(image_processor)
    return _crop_rule(image_processor)


def _patch_rule(image_processor: Any) -> PatchRule | str:
    size = dict(image_processor.size)
    if set(size) != {"shortest_edge", "longest_edge"}:
        return f"size has the keys {sorted(size)}"
    if image_processor.do_center_crop:
        return "do_center_crop is on"
    patch, merge = image_processor.patch_size, image_processor.merge_size
    return PatchRule(patch, merge, size["shortest_edge"], size["longest_edge"])


def _crop_rule(image_processor: Any) -> CropRule | str:
    size, crop = dict(image_processor.size), dict(image_processor.crop_size or {})
    if set(size) != {"shortest_edge"}:
        return f"size has the keys {sorted(size)}"
    if not image_processor.do_center_crop:
        return "do_center_crop is off"
    if set(crop) != {"height", "width"} or max(crop.values()) > size["shortest_edge"]:
        return f"crop_size {crop} is not inside the resized picture"
    return CropRule(size["shortest_edge"], crop["height"], crop["width"])


def values_of(image_processor: Any) -> PixelValues:
    """How the bytes that `process` gives become the image processor's own values."""
    mean, std = image_processor.image_mean, image_processor.image_std
    table = value_table(mean, std, image_processor.rescale_factor)
    frames = getattr(image_processor, "temporal_patch_size", 1)
    white = 255 * image_processor.rescale_factor  # 1, unless someone has changed it
    scaled = (tuple(float(value) / white for value in values) for values in (mean, std))
    return PixelValues(table, frames, *scaled)


def process(
    pictures: Sequence[PIL.Image.Image], rule: PatchRule | CropRule
) -> list[tuple[Tensor, Grid | None]]:
    """Bytes of each RGB picture: patches (N, 3 * p * p) and their grid, or a crop (3, H, W)."""
    import torch

    if isinstance(rule, CropRule):
        return [(crop.clone(), None) for crop in torch.from_numpy(image_crops(pictures, rule))]
    patches, grids, offsets = image_patches(pictures, rule)
    parts = torch.from_numpy(patches).split(np.diff(offsets).tolist())
    # copies, since each picture is kept, and let go, on its own
    own = parts if len(parts) == 1 else [part.clone() for part in parts]
    return [(part, (t, h, w)) for part, (t, h, w) in zip(own, grids.tolist(), strict=True)]
