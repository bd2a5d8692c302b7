"""Decoded pictures to what a vision tower takes, in numpy.

The resize is Pillow's antialiased bicubic for 8-bit pictures, to the last bit: weights are
normalised in float64 and rounded to 22 bits, the sums are integers, and 8 bits are kept between
the two passes. Sizes are rounded as transformers' image processors round them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]
Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

PRECISION_BITS = 22
PILLOW_13 = int(PIL.__version__.split(".")[0]) >= 13  # see `vertical_first`
MAX_ASPECT = 200


@dataclass(frozen=True)
class PatchRule:
    """How the Qwen-VL families cut a picture.

    Patches of `patch_size` squared pixels, in blocks of `merge_size` squared patches that become
    one token; the resized picture has between `min_pixels` and `max_pixels` pixels.
    """

    patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int


@dataclass(frozen=True)
class CropRule:
    """How CLIP takes a picture: the shortest edge resized, then a crop from the centre."""

    shortest_edge: int
    height: int
    width: int


def smart_resize(height: int, width: int, rule: PatchRule) -> tuple[int, int]:
    """The size a picture is resized to: whole blocks of patches, the area within its bounds."""
    if min(height, width) < 1:
        raise ValueError(f"a picture of {height} x {width} is empty")
    if max(height, width) / min(height, width) > MAX_ASPECT:
        raise ValueError(
            f"a picture of {height} x {width} is more than {MAX_ASPECT} times as long as wide"
        )
    factor = rule.patch_size * rule.merge_size
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > rule.max_pixels:
        beta = math.sqrt(height * width / rule.max_pixels)
        new_height = max(factor, math.floor(height / beta / factor) * factor)
        new_width = max(factor, math.floor(width / beta / factor) * factor)
    elif new_height * new_width < rule.min_pixels:
        beta = math.sqrt(rule.min_pixels / (height * width))
        new_height = math.ceil(height * beta / factor) * factor
        new_width = math.ceil(width * beta / factor) * factor
    return new_height, new_width


def crop_size(height: int, width: int, rule: CropRule) -> tuple[int, int]:
    """The size of the whole picture before the crop."""
    longer = int(rule.shortest_edge * max(height, width) / min(height, width))
    return (longer, rule.shortest_edge) if width <= height else (rule.shortest_edge, longer)


def bicubic_weights(size: int, new_size: int) -> tuple[Int64, Int64]:
    """Each new sample as a sum over old ones: first (new,), weights (new, taps) in 22 bits."""
    scale = size / new_size
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    centre = (np.arange(new_size) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), size)
    taps = np.arange((last - first).max())
    offsets = (taps + first[:, None]) - centre[:, None] + 0.5
    weights = np.where(taps < (last - first)[:, None], _bicubic(offsets * (1 / stretch)), 0.0)
    # summed from left to right, as a loop does; np.sum adds in pairs
    weights /= np.add.accumulate(weights, axis=1)[:, -1:]
    scaled = weights * (1 << PRECISION_BITS)
    return first, np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5)).astype(np.int64)


def _bicubic(x: Float64) -> Float64:
    """Keys' cubic with a = -1/2."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def vertical_first(height: int, width: int, new_height: int, new_width: int) -> bool:
    """The pass that Pillow takes first: along rows, but since version 13 along columns where the
    height shrinks by more than twice what the width does."""
    return PILLOW_13 and height - new_height > max(0, 2 * (width - new_width))


def resize(image: UInt8, height: int, width: int) -> UInt8:
    """``PIL.Image.fromarray(image).resize((width, height), BICUBIC)`` of an image (H, W, 3)."""
    passes = [(1, width), (0, height)]
    if vertical_first(image.shape[0], image.shape[1], height, width):
        passes.reverse()
    for axis, new_size in passes:
        image = _resize_along(image, axis, new_size)
    return image


def _resize_along(image: UInt8, axis: int, new_size: int) -> UInt8:
    size = image.shape[axis]
    if size == new_size:
        return image
    first, weights = bicubic_weights(size, new_size)
    lines = np.moveaxis(image, axis, 0)
    total = np.full((new_size, *lines.shape[1:]), 1 << (PRECISION_BITS - 1), np.int64)
    for tap in range(weights.shape[1]):  # taps past the end have no weight
        line = lines[np.minimum(first + tap, size - 1)]
        total += line * weights[:, tap].reshape(-1, *[1] * (lines.ndim - 1))
    blended = np.clip(total >> PRECISION_BITS, 0, 255).astype(np.uint8)
    return np.moveaxis(blended, 0, axis)


def image_patches(
    images: Sequence[UInt8],  # each (H, W, 3)
    rule: PatchRule,
    *,
    table: NDArray[Any] | None = None,  # (3, 256)
    frames: int = 1,
) -> tuple[NDArray[Any], Int64, Int64]:
    """Patches (N, 3 * frames * p * p) of all pictures, grids (I, 3) in patches, offsets (I + 1,).

    Patches lie in blocks of merge x merge; inside one, (channel, frame, row, column). Their values
    are bytes, or what `table` says of each channel's bytes.
    """
    patches, grids = [], []
    for image in images:
        resized = resize(image, *smart_resize(image.shape[0], image.shape[1], rule))
        rows, columns = (side // rule.patch_size for side in resized.shape[:2])
        patches.append(_cut(resized, rows, columns, rule))
        grids.append((1, rows, columns))
    dim = 3 * rule.patch_size**2
    joined = np.concatenate([np.zeros((0, dim), np.uint8), *patches])
    counts = [len(rows) for rows in patches]
    values = joined if table is None else expand_patches(joined, table, frames)
    return values, np.array(grids, np.int64).reshape(-1, 3), np.cumsum([0, *counts])


def _cut(image: UInt8, rows: int, columns: int, rule: PatchRule) -> UInt8:
    """The patches (rows * columns, 3 * p * p) of one resized picture."""
    m, p = rule.merge_size, rule.patch_size
    blocks = image.reshape(rows // m, m, p, columns // m, m, p, 3)
    return blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3 * p * p)


def image_crops(
    images: Sequence[UInt8], rule: CropRule, *, table: NDArray[Any] | None = None
) -> NDArray[Any]:
    """The crops (I, 3, height, width) of pictures of any sizes."""
    crops = [np.zeros((0, 3, rule.height, rule.width), np.uint8)]
    for image in images:
        height, width = crop_size(image.shape[0], image.shape[1], rule)
        top, left = (height - rule.height) // 2, (width - rule.width) // 2
        whole = resize(image, height, width)
        crop = whole[top : top + rule.height, left : left + rule.width]
        crops.append(crop.transpose(2, 0, 1)[None])
    joined = np.concatenate(crops)
    if table is None:
        return joined
    return expand_patches(joined.reshape(len(joined), -1), table, 1).reshape(joined.shape)


def value_table(
    mean: Sequence[float], std: Sequence[float], rescale_factor: float = 1 / 255
) -> NDArray[np.float32]:
    """The normalised value of every byte of every channel (3, 256), rounded where transformers'
    processors round: rescaled in float64, normalised in float32."""
    rescaled = (np.arange(256, dtype=np.float64) * rescale_factor).astype(np.float32)
    columns = [np.asarray(values, np.float32).reshape(-1, 1) for values in (mean, std)]
    return (rescaled - columns[0]) / columns[1]


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Finite float32 values rounded to bfloat16, to even, as its 16 bits."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def expand_patches(patches: UInt8, table: NDArray[Any], frames: int) -> NDArray[Any]:
    """Values of bytes (N, 3 * n), the frame repeated: (N, 3 * frames * n)."""
    n = patches.shape[1] // 3
    by_channel = patches.reshape(len(patches), 3, n)
    values = np.stack([table[c][by_channel[:, c]] for c in range(3)], axis=1)
    repeated = np.broadcast_to(values[:, :, None], (len(patches), 3, frames, n))
    return repeated.reshape(len(patches), 3 * frames * n)
