"""The content hash in Python's own integers: a tree of NH, as `csrc/hash.h` describes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

WORDS, DIGEST_WORDS, SHIFT, LEVELS = 128, 4, 2, 8
WORD, WIDE = 2**64 - 1, 2**128 - 1


def content_hash(data: bytes, header: Sequence[int] = (), mask: int = WORD) -> bytes:
    """16 bytes that tell `data` (each word of 8 bytes taken ``& mask``) and `header` from others.

    header: unsigned words that must agree too, such as a shape.
    """
    words = _level(_words(data, mask), 0)
    level = 1
    while len(words) > DIGEST_WORDS:
        words = _level(words, level)
        level += 1
    words += [0] * (DIGEST_WORDS - len(words))
    words = _level([*words, len(data), len(header), *header], LEVELS - 1)
    folds = KEYS[LEVELS * (WORDS + SHIFT) :]
    return b"".join(_fold(words, folds[8 * i :]).to_bytes(8, "little") for i in range(2))


def _words(data: bytes, mask: int) -> list[int]:
    return [int.from_bytes(data[i : i + 8], "little") & mask for i in range(0, len(data), 8)]


def _level(words: Sequence[int], level: int) -> list[int]:
    """The digests, of four words each, of all blocks."""
    keys = KEYS[level * (WORDS + SHIFT) :]
    digests = []
    for start in range(0, len(words), WORDS):
        block = [*words[start : start + WORDS], *[0] * WORDS][:WORDS]
        for shift in (0, SHIFT):
            total = sum(_product(block, keys[shift:], i) for i in range(0, WORDS, 2)) & WIDE
            digests += [total & WORD, total >> 64]
    return digests


def _product(block: Sequence[int], keys: Sequence[int], i: int) -> int:
    return (block[i] + keys[i] & WORD) * (block[i + 1] + keys[i + 1] & WORD)


def _fold(words: Sequence[int], keys: Sequence[int]) -> int:
    """Multiply-shift: the upper half of a sum of products with 128-bit keys."""
    wide = [keys[2 * i + 1] << 64 | keys[2 * i] for i in range(len(words))]
    return (sum(key * word for key, word in zip(wide, words, strict=True)) & WIDE) >> 64


def _splitmix64(state: int) -> Iterator[int]:
    while True:
        state = state + 0x9E3779B97F4A7C15 & WORD
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & WORD
        z = (z ^ z >> 27) * 0x94D049BB133111EB & WORD
        yield z ^ z >> 31


_numbers = _splitmix64(0x243F6A8885A308D3)
KEYS = [next(_numbers) for _ in range(LEVELS * (WORDS + SHIFT) + 4 * DIGEST_WORDS)]
