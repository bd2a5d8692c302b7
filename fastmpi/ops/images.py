"""Decoded pictures to what a vision tower takes, in C++. Twin: `fastmpi.reference.images`.

A call takes a batch of pictures of any sizes, works on `num_threads` threads (by default those of
FASTMPI_NUM_THREADS, or all processors) without holding the GIL, and gives the same bytes on any
number of them. Pictures are uint8 arrays (H, W, 3) or RGB pictures of Pillow, which are read where
they lie. Results go into `out` where one is given, so that a loop can reuse its memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from fastmpi import _C
from fastmpi.ops.arguments import integer_array
from fastmpi.ops.threads import thread_count
from fastmpi.reference.images import (
    PILLOW_13,
    CropRule,
    PatchRule,
    bfloat16_bits,
    value_table,
)

__all__ = [
    "CropRule",
    "ImagePatches",
    "PatchRule",
    "bfloat16_bits",
    "expand_patches",
    "image_crops",
    "image_patches",
    "patch_grids",
    "resize",
    "value_table",
]

UInt8 = NDArray[np.uint8]
Int64 = NDArray[np.int64]
Picture = UInt8 | PIL.Image.Image


class ImagePatches(NamedTuple):
    """Patches of a batch: picture i's are rows offsets[i]:offsets[i + 1]."""

    patches: NDArray[Any]  # (N, 3 * frames * patch_size ** 2)
    grids: Int64  # (I, 3) t, h, w in patches
    offsets: Int64  # (I + 1,)


def patch_grids(sizes: Int64, rule: PatchRule) -> Int64:
    """Grids (I, 3) of pictures of the sizes (I, 2): t, h, w in patches.

    A `ValueError` names a picture that is empty or more than 200 times as long as wide.
    """
    sizes = integer_array("sizes", sizes, np.int64, ndim=2)
    return _C.patch_grids(sizes, *_numbers(rule))


def image_patches(
    images: Sequence[Picture],
    rule: PatchRule,
    *,
    table: NDArray[Any] | None = None,  # (3, 256), of `value_table`
    frames: int = 1,
    out: NDArray[Any] | None = None,  # (at least N, 3 * frames * p * p)
    num_threads: int | None = None,
) -> ImagePatches:
    """Patches of all pictures in the order of Qwen2-VL, Qwen2.5-VL and Qwen3-VL.

    Without a table, the resized bytes, one frame. With one, its values, and the frame repeated
    `frames` times: ``value_table(mean, std)`` and 2 give what transformers' PIL processors give,
    bit for bit; ``bfloat16_bits`` of it the same in bfloat16, as uint16. A `ValueError` names the
    picture that is not RGB in bytes or too thin, or says what is wrong with table or memory.
    """
    pixels = [_pixels(image, f"picture {i}") for i, image in enumerate(images)]
    sizes = np.array([array.shape[:2] for array in pixels], np.int64).reshape(-1, 2)
    grids = patch_grids(sizes, rule)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(grids.prod(axis=1))])
    shape = (int(offsets[-1]), 3 * frames * rule.patch_size**2)
    out = _memory(out, shape, np.uint8 if table is None else table.dtype)
    threads = thread_count(num_threads)
    _C.image_patches(pixels, *_numbers(rule), frames, table, PILLOW_13, threads, out)
    return ImagePatches(out, grids, offsets)


def image_crops(
    images: Sequence[Picture],
    rule: CropRule,
    *,
    table: NDArray[Any] | None = None,  # (3, 256), of `value_table`
    out: NDArray[Any] | None = None,  # (at least I, 3, height, width)
    num_threads: int | None = None,
) -> NDArray[Any]:
    """Crops (I, 3, height, width) as CLIP takes them: bytes, or the values of `table`."""
    pixels = [_pixels(image, f"picture {i}") for i, image in enumerate(images)]
    shape = (len(pixels), 3, rule.height, rule.width)
    out = _memory(out, shape, np.uint8 if table is None else table.dtype)
    sizes = (rule.shortest_edge, rule.height, rule.width)
    _C.image_crops(pixels, *sizes, table, PILLOW_13, thread_count(num_threads), out)
    return out


def resize(
    image: Picture,
    height: int,
    width: int,
    *,
    out: UInt8 | None = None,  # (height, width, 3)
    num_threads: int | None = None,
) -> UInt8:
    """The picture resized, to the last bit as the installed Pillow does it (bicubic)."""
    pixels = _pixels(image, "image")
    if not (0 < height <= _C.MAX_IMAGE_SIDE and 0 < width <= _C.MAX_IMAGE_SIDE):
        raise ValueError(f"sides must be in 1..{_C.MAX_IMAGE_SIDE}, got {height} x {width}")
    out = _memory(out, (height, width, 3), np.uint8)
    _C.resize_image(pixels, PILLOW_13, thread_count(num_threads), out)
    return out


def expand_patches(
    patches: UInt8,  # (N, 3 * n)
    table: NDArray[Any],  # (3, 256), of `value_table`
    frames: int = 1,
    *,
    out: NDArray[Any] | None = None,  # (at least N, 3 * frames * n)
    num_threads: int | None = None,
) -> NDArray[Any]:
    """The values (N, 3 * frames * n) of bytes that `image_patches` or `image_crops` gave."""
    patches = np.ascontiguousarray(patches)
    if patches.ndim != 2:
        raise ValueError(f"patches must be 2-D, got shape {patches.shape}")
    out = _memory(out, (patches.shape[0], patches.shape[1] * frames), table.dtype)
    _C.expand_patches(patches, table, frames, thread_count(num_threads), out)
    return out


def _numbers(rule: PatchRule) -> tuple[int, int, int, int]:
    return rule.patch_size, rule.merge_size, rule.min_pixels, rule.max_pixels


def _pixels(image: Picture, name: str) -> UInt8:
    """The pixels (H, W, 3), or (H, W, 4) with a byte of padding where Pillow keeps them so."""
    if isinstance(image, PIL.Image.Image):
        return _pillow_pixels(image, name)
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ValueError(
            f"{name} must be uint8 of shape (H, W, 3), got {array.dtype} {array.shape}"
        )
    return np.ascontiguousarray(array)


def _pillow_pixels(image: PIL.Image.Image, name: str) -> UInt8:
    if image.mode != "RGB":
        raise ValueError(f"{name} has mode {image.mode!r}: convert it to RGB first")
    import pyarrow

    try:
        rows = pyarrow.array(image)  # of four bytes a pixel, where they lie
    except (ValueError, MemoryError, TypeError):  # in several pieces, as large pictures are
        return np.asarray(image)
    return rows.flatten().to_numpy().reshape(image.height, image.width, 4)


def _memory(out: NDArray[Any] | None, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """`out`, cut to `shape` along its first axis, or new memory."""
    if out is None:
        return np.empty(shape, dtype)
    if out.ndim != len(shape) or out.shape[1:] != shape[1:] or out.dtype != dtype:
        raise ValueError(
            f"out must be {np.dtype(dtype)} of shape {shape}, got {out.dtype} {out.shape}"
        )
    if len(out) < shape[0]:
        raise ValueError(f"out has {len(out)} rows, and {shape[0]} are needed")
    return out[: shape[0]]
