"""Native ops of fastmpi: use them through fastmpi.ops, which checks the arguments.

Arrays must be C-contiguous and of the exact dtype, else a TypeError.
"""

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

def assign_image_slots(
    ids: Int64,
    offsets: Int64,
    image_token_id: int,
    shown: Int32,
    shown_offsets: Int64,
    tokens_per_image: Int32,
) -> Int32: ...
def build_forest(
    ids: Int64, image_slots: Int32, offsets: Int64, share: bool
) -> tuple[Int64, Int32, Int32, Int32, Int32]: ...
def distinct_keys(keys: NDArray[np.uint8]) -> tuple[Int32, Int64]: ...
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
def linear_forest_positions(
    image_slots: Int32, parent: Int32, tokens_per_image: Int32
) -> tuple[Int32, Int32]: ...
def linear_positions(
    image_slots: Int32, offsets: Int64, tokens_per_image: Int32
) -> tuple[Int32, Int32]: ...
def mrope_batch_positions(
    image_slots: Int32, lengths: Int64, grids: Int32, merge_size: int
) -> tuple[Int32, Int32]: ...
def mrope_forest_positions(
    image_slots: Int32, parent: Int32, grids: Int32, merge_size: int
) -> tuple[Int32, Int32]: ...
def mrope_positions(
    image_slots: Int32, offsets: Int64, grids: Int32, merge_size: int
) -> tuple[Int32, Int32]: ...
def plan_microbatches(
    ids: Int64, image_slots: Int32, offsets: Int64, max_tokens: int, share: bool
) -> list[Int64]: ...
