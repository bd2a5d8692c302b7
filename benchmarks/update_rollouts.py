"""Models with random weights and rollouts made up for them: what `bench_update` updates.

Legend: S samples, V vocabulary. A prompt is one picture of noise and a question of random tokens;
its responses, of both arms of PolicyRollout, are random tokens that follow this prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastmpi.data.images import Image, content_key
from fastmpi.data.processor import Processor
from fastmpi.data.samples import Prompt, Sample
from fastmpi.models.forest_model import ForestModel
from fastmpi.models.tiny import (
    qwen_token_ids,
    text_settings,
    tiny_image_processor,
    tiny_tokenizer,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SMALL_TEXT = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
}
SMALL_VISION = {
    "depth": 4,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_heads": 4,
    "out_hidden_size": 256,
    "window_size": 112,
    "fullatt_block_indexes": [1, 3],
}
# The configuration that Qwen publishes with Qwen2.5-VL-3B-Instruct.
QWEN_3B_TEXT = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
}
QWEN_3B_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}


@dataclass(frozen=True)
class Rollouts:
    """Given responses and their advantages. samples: (S), those of one prompt side by side.

    prompts: (S) the prompt of each. advantages: (S,) float32.
    """

    samples: list[Sample]
    prompts: list[Prompt]
    advantages: Tensor

    def response(self, sample: int) -> np.ndarray:
        """(R,) ids of one response."""
        return self.samples[sample].ids[len(self.prompts[sample].ids) :]

    def to(self, device: torch.device) -> Rollouts:
        """The same with pixels and advantages on `device`."""
        moved = {
            id(image): replace(image, stored=image.stored.to(device))
            for prompt in self.prompts
            for image in prompt.images
        }

        def shown(part: Any) -> Any:
            return replace(part, images=tuple(moved[id(image)] for image in part.images))

        return Rollouts(
            [shown(sample) for sample in self.samples],
            [shown(prompt) for prompt in self.prompts],
            self.advantages.to(device),
        )

    @property
    def num_scored_tokens(self) -> int:
        """Response tokens of all samples: the normaliser of a token-mean loss."""
        return sum(int((sample.weights != 0).sum()) for sample in self.samples)


def random_model(
    text: Mapping[str, Any],
    vision: Mapping[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
) -> ForestModel:
    """A Qwen2.5-VL of these sizes, embeddings tied, the vision tower frozen, in training mode."""
    from transformers import AutoModelForImageTextToText

    tokenizer = tiny_tokenizer("qwen2_5_vl")
    config = _qwen_config(text, vision, tokenizer)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        base = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    processor = Processor(config, tokenizer, tiny_image_processor("qwen2_5_vl"))
    model = ForestModel(base.to(device), processor)
    model.set_trainable()
    return model.train()


def _qwen_config(
    text: Mapping[str, Any], vision: Mapping[str, Any], tokenizer: Any
) -> PretrainedConfig:
    from transformers import Qwen2_5_VLConfig

    half = text["hidden_size"] // text["num_attention_heads"] // 2
    sections = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]  # (16, 24, 24) of 64
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    sizes = {**text, "max_position_embeddings": 32768, "rope_parameters": rope}
    return Qwen2_5_VLConfig(
        text_config=text_settings(tokenizer, **sizes),
        vision_config={"patch_size": 14, **vision},
        tie_word_embeddings=True,
        **qwen_token_ids(tokenizer),
    )


def random_rollouts(
    processor: Processor,
    *,
    num_prompts: int,
    responses: int,
    image_tokens: int,
    question_tokens: int,
    response_tokens: tuple[int, int],
    seed: int = 0,
) -> Rollouts:
    """`responses` to each prompt, of uniform length in `response_tokens`, with advantages."""
    rng = np.random.default_rng(seed)
    samples, prompts = [], []
    for _ in range(num_prompts):
        prompt = random_prompt(processor, rng, image_tokens, question_tokens)
        for _ in range(responses):
            length = int(rng.integers(response_tokens[0], response_tokens[1] + 1))
            samples.append(Sample.from_prompt(prompt, random_text(processor, rng, length)))
            prompts.append(prompt)
    advantages = rng.standard_normal(len(samples)).astype(np.float32)
    return Rollouts(samples, prompts, torch.from_numpy(advantages))


def random_prompt(
    processor: Processor, rng: np.random.Generator, image_tokens: int, question_tokens: int
) -> Prompt:
    """[vision start, picture, vision end, question]."""
    image = _picture(rng, image_tokens, processor.merge_size)
    config = processor.config
    shown = np.full(image.num_tokens, processor.image_token_id)
    question = random_text(processor, rng, question_tokens)
    parts = [[config.vision_start_token_id], shown, [config.vision_end_token_id], question]
    return Prompt(np.concatenate(parts), (image,))


def _picture(rng: np.random.Generator, num_tokens: int, merge_size: int) -> Image:
    """Noise of about `num_tokens` placeholders: the largest near-square grid that has no more."""
    height = int(num_tokens**0.5)
    grid = (1, height * merge_size, num_tokens // height * merge_size)
    pixels = torch.from_numpy(rng.standard_normal((grid[1] * grid[2], 3 * 2 * 14 * 14), np.float32))
    return Image(content_key(pixels, grid), pixels, grid, grid[1] * grid[2] // merge_size**2)


def random_text(processor: Processor, rng: np.random.Generator, length: int) -> np.ndarray:
    """Random tokens, none of them special."""
    special = set(processor.tokenizer.all_special_ids) | set(processor.forbidden_token_ids)
    ordinary = np.setdiff1d(np.arange(len(processor.tokenizer)), sorted(special))
    return rng.choice(ordinary, length).astype(np.int64)
