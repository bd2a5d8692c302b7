"""Rows of noise and random words, a policy before them, and what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image

from fastmpi.data.processor import Processor
from fastmpi.models.tokenizer import SYLLABLES
from fastmpi.policies.policy import Policy
from fastmpi.stages.rows import shuffled

Row = dict[str, Any]

EDGE = 28  # pixels of one picture token's side: two patches of 14
MAX_IMAGE_TOKENS = 1024
POLICY_ID = "rules"
SEED = 42  # of every trainer


def words(rng: np.random.Generator, count: int) -> str:
    """Random words of one token each."""
    return "".join(f" {word}" for word in rng.choice(SYLLABLES, count))


def random_policy(rng: np.random.Generator, length: int) -> Policy:
    """A system turn of `length` words."""
    return Policy(POLICY_ID, [{"role": "system", "content": words(rng, length)}])


def random_row(rng: np.random.Generator, number: int, image_tokens: int, question: int) -> Row:
    """A picture that no other row shows, of about `image_tokens`, and a question."""
    height = int(image_tokens**0.5)
    size = (height * EDGE, image_tokens // height * EDGE, 3)
    picture = PIL.Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))
    asked = words(rng, question)
    return {"id": str(number), "policy_id": POLICY_ID, "images": [picture], "prompt": asked}


def before_shuffling(rows: Sequence[Row]) -> list[Row]:
    """`rows` in an order that the trainer's shuffling of its first epoch undoes."""
    found: list[Row] = [{}] * len(rows)
    for row, place in zip(rows, shuffled(len(rows), SEED, 0), strict=True):
        found[place] = row
    return found


def large_picture_processor(made: Processor) -> Processor:
    """`made` for pictures of up to MAX_IMAGE_TOKENS tokens, which never samples the end of a
    response."""
    from transformers import Qwen2VLImageProcessorPil

    sizes = {"shortest_edge": EDGE**2, "longest_edge": MAX_IMAGE_TOKENS * EDGE**2}
    pictures = Qwen2VLImageProcessorPil(patch_size=EDGE // 2, merge_size=2, size=sizes)
    processor = Processor(made.config, made.tokenizer, pictures)
    processor.forbidden_token_ids = (*made.forbidden_token_ids, *made.eos_token_ids)
    return processor
