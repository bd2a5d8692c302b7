"""The embedded tiny base: where it lies, and the small world it was trained to read.

Leaf module: it imports nothing of fastmpi, so that recipes, tests and the demo may all name the
world that the base understands. `scripts/train_tiny_base.py` makes the base.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ATTRIBUTES: Mapping[str, Sequence[str]] = {
    "shape": ("cube", "sphere", "cylinder"),
    "color": ("red", "green", "blue", "yellow"),
    "size": ("small", "large"),
}
MATERIAL = "rubber"  # of every object in the pictures; no condition tests it
PICTURE_SIZE = (64, 64)
NUM_OBJECTS = (2, 3, 4)
CASES = tuple(f"Case {number}" for number in range(1, 9))


def tiny_base_path() -> Path:
    """Folder of the embedded tiny Qwen2.5-VL: weights, tokenizer, image processor, model card."""
    return Path(__file__).parent / "tiny_base"


def held_out(conditions: Iterable[tuple[str, str]]) -> bool:
    """Whether the tiny base never trained on a tree with these (condition id, value) pairs.

    A tenth of all trees is held out, by a hash of what they test; their cases do not matter.
    """
    text = " ".join(f"{condition}:{value}" for condition, value in sorted(conditions))
    return zlib.crc32(text.encode()) % 10 == 0
