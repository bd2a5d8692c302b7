"""ops/content_hash.py against reference/content_hash.py, and what must and must not tell apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmpi.ops.content_hash import content_hash
from fastmpi.reference import content_hash as reference

RGB_OF_RGBX = 0x00FFFFFF00FFFFFF


def draw(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


# Around a word, a block of 1 KiB, and a block of digests (32 KiB).
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1023, 1024, 1025, 32768, 32769, 70000])
def test_equals_reference(size: int) -> None:
    data = draw(size)
    for header, mask in (((), 2**64 - 1), ((3, 2**64 - 1), RGB_OF_RGBX)):
        expected = reference.content_hash(data.tobytes(), header, mask)
        assert content_hash(data, header, mask) == expected
        assert len(expected) == 16


@given(st.binary(max_size=3000), st.lists(st.integers(0, 2**64 - 1), max_size=5))
def test_equals_reference_for_anything(data: bytes, header: list[int]) -> None:
    array = np.frombuffer(data, np.uint8)
    assert content_hash(array, header) == reference.content_hash(data, header)


def test_every_byte_counts() -> None:
    data = draw(3000)
    seen = {content_hash(data)}
    for i in range(len(data)):
        changed = data.copy()
        changed[i] ^= 1
        seen.add(content_hash(changed))
    assert len(seen) == len(data) + 1


def test_length_order_and_header_count() -> None:
    zeros = np.zeros(5000, np.uint8)
    assert len({content_hash(zeros[:n]) for n in range(5000)}) == 5000
    data = draw(4096)
    swapped = np.concatenate([data[1024:2048], data[:1024], data[2048:]])
    assert content_hash(data) != content_hash(swapped)
    assert len({content_hash(data, header) for header in [(), (0,), (0, 0), (1,), (0, 1)]}) == 5


def test_bits_are_fair() -> None:
    """Of 4,000 hashes of inputs that differ in few bits, each bit is set in about half."""
    hashes = [content_hash(np.array([i], np.int64)) for i in range(4000)]
    bits = np.unpackbits(np.frombuffer(b"".join(hashes), np.uint8).reshape(4000, 16), axis=1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.05  # six deviations


def test_any_dtype_and_layout() -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    assert content_hash(values) == content_hash(values.view(np.uint8))
    assert content_hash(values[:, ::-1]) == content_hash(values[:, ::-1].copy())
    assert content_hash(values) != content_hash(values.T)


def test_padding_bytes_can_be_masked() -> None:
    pixels = draw(400).reshape(-1, 4)
    other = pixels.copy()
    other[:, 3] = 7
    assert content_hash(pixels) != content_hash(other)
    assert content_hash(pixels, (), RGB_OF_RGBX) == content_hash(other, (), RGB_OF_RGBX)


def test_what_cannot_be_hashed() -> None:
    with pytest.raises(ValueError, match="addresses"):
        content_hash(np.array([object()]))
    with pytest.raises(ValueError, match="header has at most"):
        content_hash(draw(3), range(1000))
