"""ops/arguments.py: what reaches C++ is C-contiguous, aligned and of the exact type."""

from __future__ import annotations

import numpy as np
import pytest

from fastmpi import _C
from fastmpi.ops.arguments import integer_array
from fastmpi.ops.forest import build_forest


def unaligned(values: list[int], dtype: type) -> np.ndarray:
    return np.frombuffer(b"x" + np.array(values, dtype).tobytes(), dtype, offset=1)


def test_unaligned_arrays_are_copied() -> None:
    ids, slots = unaligned([5, 6, 5], np.int64), unaligned([-1, -1, -1], np.int32)
    assert not ids.flags.aligned
    assert integer_array("ids", ids, np.int64).flags.aligned
    forest = build_forest(ids, slots, unaligned([0, 2, 3], np.int64))
    assert forest.tokens.tolist() == [5, 6]


def test_the_extension_refuses_unaligned_arrays() -> None:
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _C.build_forest(unaligned([5], np.int64), np.zeros(1, np.int32), np.array([0, 1]), True)
