"""Native ops of fastmpi: use them through fastmpi.ops, which checks the arguments.

Arrays must be C-contiguous, aligned and of the exact dtype, else a TypeError.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt8 = NDArray[np.uint8]

MAX_IMAGE_SIDE: int

def assign_image_slots(
    ids: Int64,
    offsets: Int64,
    image_token_id: int,
    shown: Int32,
    shown_offsets: Int64,
    tokens_per_image: Int32,
) -> Int32: ...
def balanced_bins(costs: Int64, num_bins: int) -> Int32: ...
def build_forest(
    ids: Int64, image_slots: Int32, offsets: Int64, share: bool, num_threads: int
) -> tuple[Int64, Int32, Int32, Int32, Int32]: ...
def content_hash(data: NDArray[Any], header: list[int], mask: int) -> bytes: ...
def distinct_keys(keys: NDArray[np.uint8]) -> tuple[Int32, Int64]: ...
def expand_patches(
    patches: UInt8, table: NDArray[Any], frames: int, num_threads: int, out: NDArray[Any]
) -> None: ...
def expand_placeholders(
    ids: Int64,
    offsets: Int64,
    image_token_id: int,
    shown: Int32,
    shown_offsets: Int64,
    tokens_per_image: Int32,
) -> tuple[Int64, Int64, Int32]: ...
def feature_rows(
    image_slots: Int32, within: Int32, tokens_per_image: Int32
) -> tuple[Int64, Int64]: ...
def image_crops(
    images: list[UInt8],
    shortest_edge: int,
    height: int,
    width: int,
    table: NDArray[Any] | None,
    pillow_13: bool,
    num_threads: int,
    out: NDArray[Any],
) -> None: ...
def image_kernels() -> str: ...
def image_patches(
    images: list[UInt8],
    patch_size: int,
    merge_size: int,
    min_pixels: int,
    max_pixels: int,
    frames: int,
    table: NDArray[Any] | None,
    pillow_13: bool,
    num_threads: int,
    out: NDArray[Any],
) -> None: ...
def linear_forest_positions(
    image_slots: Int32, parent: Int32, tokens_per_image: Int32
) -> tuple[Int32, Int32]: ...
def linear_positions(
    image_slots: Int32, offsets: Int64, tokens_per_image: Int32, num_threads: int
) -> tuple[Int32, Int32]: ...
def mrope_batch_positions(
    image_slots: Int32, lengths: Int64, grids: Int32, merge_size: int, num_threads: int, out: Int32
) -> None: ...
def mrope_forest_positions(
    image_slots: Int32, parent: Int32, grids: Int32, merge_size: int
) -> tuple[Int32, Int32]: ...
def mrope_positions(
    image_slots: Int32, offsets: Int64, grids: Int32, merge_size: int, num_threads: int
) -> tuple[Int32, Int32]: ...
def patch_grids(
    sizes: Int64, patch_size: int, merge_size: int, min_pixels: int, max_pixels: int
) -> Int64: ...
def plan_microbatches(
    ids: Int64, image_slots: Int32, offsets: Int64, max_tokens: int, share: bool
) -> list[Int64]: ...
def plan_ranks(
    ids: Int64,
    image_slots: Int32,
    offsets: Int64,
    groups: Int64,
    num_ranks: int,
    max_tokens: int,
    share: bool,
) -> list[list[Int64]]: ...
def resize_image(image: UInt8, pillow_13: bool, num_threads: int, out: UInt8) -> None: ...
