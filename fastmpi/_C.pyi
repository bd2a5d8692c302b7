"""Native ops of fastmpi: use them through fastmpi.ops, which checks the arguments.

Arrays must be C-contiguous and of the exact dtype, else a TypeError.
"""

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

def build_forest(
    ids: Int64, image_slots: Int32, offsets: Int64, share: bool
) -> tuple[Int64, Int32, Int32, Int32, Int32]: ...
def linear_positions(
    image_slots: Int32, offsets: Int64, tokens_per_image: Int32
) -> tuple[Int32, Int32]: ...
def mrope_positions(
    image_slots: Int32, offsets: Int64, grids: Int32, merge_size: int
) -> tuple[Int32, Int32]: ...
def plan_microbatches(
    ids: Int64, image_slots: Int32, offsets: Int64, max_tokens: int, share: bool
) -> list[Int64]: ...
