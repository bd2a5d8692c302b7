"""A 128-bit hash of contents, in C++. Twin: `fastmpi.reference.content_hash`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmpi import _C

__all__ = ["content_hash"]

WORD = 2**64 - 1


def content_hash(data: NDArray[Any], header: Sequence[int] = (), mask: int = WORD) -> bytes:
    """16 bytes that tell an array's bytes (each word of 8 taken ``& mask``) and `header` apart.

    header: unsigned numbers that must agree too, such as a shape; the data's length always counts.
    Two inputs of no ill will collide with a chance below 2**-125; this is no cryptographic hash.
    """
    if data.dtype.hasobject:
        raise ValueError(f"no hash of {data.dtype}: it holds addresses")
    return _C.content_hash(np.ascontiguousarray(data), list(header), mask)
