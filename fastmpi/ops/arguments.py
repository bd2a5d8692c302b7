"""Checks of the integer arrays that every op on samples takes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def integer_array(name: str, values: Any, dtype: Any, ndim: int = 1) -> NDArray[Any]:
    """`values` C-contiguous, aligned and of `dtype`; a `ValueError` if any value would change."""
    array = np.asarray(values)
    if array.ndim != ndim:
        raise ValueError(f"{name} must be {ndim}-D, got shape {array.shape}")
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must hold integers, got {array.dtype}")
    if array.dtype == dtype:
        return np.require(array, requirements=["C", "ALIGNED"])
    limits = np.iinfo(dtype)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        raise ValueError(f"{name} must fit {np.dtype(dtype)}")
    return np.ascontiguousarray(array, dtype=dtype)


def sample_arrays(
    ids: Any, image_slots: Any, offsets: Any
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """The tokens of S samples, concatenated, and where each sample starts."""
    return (
        integer_array("ids", ids, np.int64),
        integer_array("image_slots", image_slots, np.int32),
        integer_array("offsets", offsets, np.int64),
    )
