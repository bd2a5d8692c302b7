"""The CLEVR base's architecture: a Qwen2.5-VL whose visual tokens are cells of a picture.

A picture of CLEVR's format, 3 to 2, becomes 256x160 pixels and 8x5 cells of 32 pixels, one visual
token each. A cell holds at most one object, mostly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastmpi.data.processor import Processor
from fastmpi.models.tiny import qwen_token_ids, text_settings
from fastmpi.models.tokenizer import build_tokenizer, compact_words

PICTURE = (256, 160)  # width and height that the vision tower sees
PATCH = 16
MERGE = 2
CELL = PATCH * MERGE
HIDDEN = 128


def new_base(
    seed: int, words: Sequence[str], vision_depth: int = 4
) -> tuple[torch.nn.Module, Processor]:
    """A random Qwen2.5-VL of the base's size, and its processor; `words` are one token each."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLImageProcessorPil,
    )

    tokenizer = build_tokenizer(compact_words(words))
    text = text_settings(
        tokenizer,
        hidden_size=HIDDEN,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=0.05,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
    )
    vision = {
        "depth": vision_depth,
        "hidden_size": HIDDEN,
        "out_hidden_size": HIDDEN,
        "intermediate_size": 384,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "fullatt_block_indexes": list(range(vision_depth)),
        "initializer_range": 0.05,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        **qwen_token_ids(tokenizer),
    )
    pixels = {"shortest_edge": CELL * CELL, "longest_edge": PICTURE[0] * PICTURE[1]}
    pictures = Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=MERGE, size=pixels)
    torch.manual_seed(seed)
    return Qwen2_5_VLForConditionalGeneration(config), Processor(config, tokenizer, pictures)
