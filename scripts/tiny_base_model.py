"""The tiny base's architecture, how rows become tensors, and how its accuracy is measured.

Unusual: a 64x64 picture is four visual tokens, one for each quadrant: conjunctions ("a small red
cube") are the bottleneck, and here one token holds one object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tiny_base_gta import Call, GTATasks
from tiny_base_tasks import TASK_WORDS, Question, Tasks
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastmpi.data.processor import Processor
from fastmpi.data.samples import Prompt, Sample
from fastmpi.models.tiny import qwen_token_ids, text_settings
from fastmpi.models.tokenizer import build_tokenizer, compact_words
from fastmpi.ops.positions import mrope_positions
from fastmpi.policies.gta.tiny import NUM_TOOLS, words

MAX_NEW_TOKENS = 24
MAX_NEW_CALL_TOKENS = 80


def new_base(seed: int) -> tuple[torch.nn.Module, Processor]:
    """A random Qwen2.5-VL of the base's size, and its processor."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLImageProcessorPil,
    )

    tokenizer = build_tokenizer([*compact_words(TASK_WORDS), *words()], max_vocab_size=1500)
    text = text_settings(
        tokenizer,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=0.05,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
    )
    vision = {
        "depth": 2,
        "hidden_size": 128,
        "out_hidden_size": 128,
        "intermediate_size": 384,
        "num_heads": 4,
        "patch_size": 16,
        "fullatt_block_indexes": [0, 1],
        "initializer_range": 0.05,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        **qwen_token_ids(tokenizer),
    )
    # Larger pictures shrink to 4,096 pixels: four to six visual tokens, as in training.
    pictures = Qwen2VLImageProcessorPil(
        patch_size=16, size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    )
    torch.manual_seed(seed)
    return Qwen2_5_VLForConditionalGeneration(config), Processor(config, tokenizer, pictures)


@dataclass(frozen=True)
class Batch:
    """Padded rows: ids (B, L), positions (3, B, L), targets and weights of the token after each."""

    ids: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    pixels: dict[str, Tensor]  # pixel_values and image_grid_thw, empty for text


def collate(samples: Sequence[Sample], processor: Processor) -> Batch:
    """Right-padded tensors; padding needs no mask, because nothing before it looks at it."""
    length = max(len(sample.ids) for sample in samples)
    ids = np.full((len(samples), length), processor.tokenizer.pad_token_id)
    weights = np.zeros((len(samples), length), np.float32)
    positions = np.zeros((3, len(samples), length), np.int64)
    for row, sample in enumerate(samples):
        count = len(sample.ids)
        ids[row, :count] = sample.ids
        weights[row, :count] = sample.weights
        positions[:, row, :count] = _positions(sample, processor)
    targets = torch.from_numpy(ids).roll(-1, 1)
    weights = torch.from_numpy(weights).roll(-1, 1)  # weights[:, 0] is 0 by definition
    images = [image for sample in samples for image in sample.images]
    return Batch(
        torch.from_numpy(ids), torch.from_numpy(positions), targets, weights, _pixels(images)
    )


def losses(
    model: torch.nn.Module, batch: Batch, *, bf16: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Targets (M,), their log-probabilities, and whether each is the most likely token.

    With `bf16` matrices multiply in bfloat16; attention and the residual stream stay fp32.
    """
    scored = batch.weights > 0
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), _Fp32Attention():
        hidden = model.model(
            input_ids=batch.ids, position_ids=batch.positions, use_cache=False, **batch.pixels
        ).last_hidden_state
        logits = model.lm_head(hidden[scored]).float()
    targets = batch.targets[scored]
    logprob = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    return targets, logprob, logits.argmax(-1) == targets


class _Fp32Attention(TorchFunctionMode):
    """Keeps attention out of autocast: torch's fused bf16 one is half as fast on the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return func(*(x.float() for x in args[:3]), *args[3:], **(kwargs or {}))


@torch.no_grad()
def greedy(
    model: torch.nn.Module,
    processor: Processor,
    prompts: Sequence[Prompt],
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[str]:
    """The model's greedy responses, by transformers' own `generate` on left-padded prompts."""
    length = max(len(prompt.ids) for prompt in prompts)
    ids = torch.full((len(prompts), length), processor.tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt.ids) :] = torch.from_numpy(prompt.ids)
        mask[row, length - len(prompt.ids) :] = 1
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        mm_token_type_ids=(ids == processor.image_token_id).int(),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        **_pixels([image for prompt in prompts for image in prompt.images]),
    )
    return [processor.decode(row[length:].tolist()) for row in out]


def accuracy(
    model: torch.nn.Module,
    tasks: Tasks,
    count: int,
    depth: int,
    *,
    with_policy: bool = True,
    pictured: bool = False,
    unseen: bool = True,
    batch_size: int = 128,
) -> float:
    """Share of exact boxed answers on trees (and scenes) that training never met."""
    right = 0
    for start in range(0, count, batch_size):
        size = min(batch_size, count - start)
        questions = [
            tasks.question(tasks.tree(depth, unseen=unseen), pictured=pictured) for _ in range(size)
        ]
        prompts = [tasks.prompt(question, with_policy=with_policy) for question in questions]
        responses = greedy(model, tasks.processor, prompts)
        right += sum(map(_is_right, responses, questions))
    return right / count


def call_accuracy(
    model: torch.nn.Module,
    tools: GTATasks,
    count: int,
    *,
    with_policy: bool = True,
    unseen: bool = True,
    batch_size: int = 128,
) -> dict[str, float]:
    """Shares of right tool names and of calls right in every argument, on unseen policies."""
    right = {"tool": 0, "call": 0}
    for start in range(0, count, batch_size):
        size = min(batch_size, count - start)
        calls = [tools.question(NUM_TOOLS, unseen=unseen) for _ in range(size)]
        prompts = [tools.prompt(call, with_policy=with_policy) for call in calls]
        responses = greedy(model, tools.processor, prompts, MAX_NEW_CALL_TOKENS)
        for response, call in zip(responses, calls, strict=True):
            name = f"{call.row['answer'].partition(', ')[0]}, "
            right["call"] += _is_right(response, call)
            right["tool"] += f"</think>\\boxed{{{name}" in response
    return {name: number / count for name, number in right.items()}


def _is_right(response: str, question: Question | Call) -> bool:
    return response.endswith(f"</think>\\boxed{{{question.row['answer']}}}")


def _positions(sample: Sample, processor: Processor) -> np.ndarray:
    slots = np.where(sample.ids == processor.image_token_id, 0, -1).astype(np.int32)
    grids = np.array([image.grid for image in sample.images], np.int32).reshape(-1, 3)
    offsets = np.array([0, len(sample.ids)], np.int64)
    return mrope_positions(slots, offsets, grids, processor.merge_size)[0]


def _pixels(images: Sequence) -> dict[str, Tensor]:
    if not images:
        return {}
    grids = torch.tensor([image.grid for image in images])
    return {"pixel_values": torch.cat([image.pixels for image in images]), "image_grid_thw": grids}
