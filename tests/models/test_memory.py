"""The memory formulas against what torch really holds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastmpi.data.batch import ForestBatch
from fastmpi.data.processor import Processor
from fastmpi.data.samples import Prompt, Sample
from fastmpi.models.forest_model import ForestModel
from fastmpi.models.memory import rollout_memory, update_memory
from fastmpi.models.sizes import BatchShape, Precision, TextShape, Training
from fastmpi.models.tiny import tiny_config, tiny_tokenizer
from fastmpi.ops.token_logprob import token_loss
from fastmpi.rollout.native import NativeEngine
from fastmpi.rollout.sampling import SamplingParams

sys.path.insert(0, str(Path(__file__).parents[1]))
from allocations import Allocations  # noqa: E402

TOLERANCE = 0.15  # of the target of the command


def middling(family: str, folder: Any, dtype: torch.dtype, wide: int = 128) -> ForestModel:
    """Large enough that activations, weights and logits all matter."""
    config: Any = tiny_config(family, tiny_tokenizer(family))
    text = config.text_config
    text.hidden_size, text.intermediate_size = wide, wide * 5 // 2
    text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads = 4, 8, 4
    text.head_dim = wide // 4 if family == "qwen3_vl" else wide // 8
    if family == "qwen2_5_vl":
        text.rope_parameters["mrope_section"] = [wide // 64, wide * 3 // 128, wide * 3 // 128]
    if getattr(text, "layer_types", None):
        text.layer_types = ["full_attention"] * 4
    config.vision_config.out_hidden_size = wide
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    forest = ForestModel(model, Processor.from_pretrained(folder))
    forest.set_trainable()
    return forest.train()


def batch_of(model: ForestModel, prefix: int = 400, own: int = 150) -> ForestBatch:
    rng = np.random.default_rng(0)
    words = model.processor.encode(" red cube then else Case 3 small yes no metal")
    shared = Prompt(rng.choice(words, prefix))
    samples = [Sample.from_prompt(shared, rng.choice(words, own)) for _ in range(4)]
    return ForestBatch.from_samples(samples, model.processor)


def training_of(model: ForestModel, rank: int = 0) -> Training:
    parts = model.parts()
    everything, trained = (sum(getattr(p, n) for p in parts) for n in ("parameters", "trainable"))
    return Training(everything, trained, model.head.requires_grad, lora_rank=rank)


def measured(model: ForestModel, batches: list[ForestBatch], *, autocast: bool) -> int:
    """Peak of the second of two optimiser steps, without the optimiser's own state at its start."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    narrow = torch.bfloat16 if autocast else None

    def loss_of(batch: ForestBatch) -> torch.Tensor:
        def head(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            s = batch.scores()
            with torch.autocast("cpu", enabled=False):
                return token_loss(hidden, weight, s.rows, s.targets, s.weights, dtype=narrow).loss

        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return model(batch, head)

    with Allocations() as count:
        count.hold(model)
        for _ in range(2):
            count.peak = 0
            for batch in batches:
                loss_of(batch).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return count.peak


CASES = [
    # family, LoRA rank, checkpointing, dtype, autocast, micro-batches, width
    ("qwen2_5_vl", 0, False, torch.float32, False, 1, 128),
    ("qwen2_5_vl", 0, True, torch.float32, False, 2, 128),
    ("qwen2_5_vl", 8, False, torch.float32, True, 1, 128),
    ("qwen2_5_vl", 8, True, torch.float32, False, 2, 128),
    ("qwen2_5_vl", 0, False, torch.bfloat16, False, 1, 128),
    ("qwen2_5_vl", 0, True, torch.float32, True, 1, 256),
    ("qwen3_vl", 0, False, torch.float32, False, 2, 128),
    ("llava", 0, False, torch.float32, False, 1, 128),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c)).replace("torch.", ""))
def test_an_update_holds_what_the_formula_says(tiny_folder, case):
    family, rank, checkpointing, dtype, autocast, microbatches, wide = case
    model = middling(family, tiny_folder(family), dtype, wide)
    if rank:
        pytest.importorskip("peft")
        model.add_lora(rank, 16)
    if checkpointing:
        model.gradient_checkpointing()
    batch = batch_of(model)
    found = measured(model, [batch] * microbatches, autocast=autocast)
    said = update_memory(
        TextShape.of(model.base.config),
        Precision.of(dtype, autocast=autocast),
        training_of(model, rank),
        BatchShape.of(batch, tiled=True),
        checkpointing=checkpointing,
        microbatches=microbatches,
    )
    assert said.peak == pytest.approx(found, rel=TOLERANCE), said


def test_a_rollout_holds_what_the_formula_says(tiny_folder):
    model = middling("qwen2_5_vl", tiny_folder("qwen2_5_vl"), torch.float32).eval()
    rng = np.random.default_rng(0)
    words = model.processor.encode(" red cube then else Case 3 small yes no metal")
    shared = rng.choice(words, 300)
    prompts = [Prompt(np.concatenate([shared, rng.choice(words, 100)])) for _ in range(3)]
    params = SamplingParams(max_tokens=64, stop_token_ids=())
    with Allocations() as count:
        count.hold(model)
        NativeEngine(model).generate(prompts, 16, params)
    said = rollout_memory(
        TextShape.of(model.base.config),
        Precision.of(torch.float32),
        held_tokens=600 + 48 * 63,
        read_tokens=600,
        prompt_lengths=[400] * 48,
        response_tokens=64,
        parts=3,
        logits_held=2,
    )
    weights = sum(p.numel() * 4 for p in model.parameters())
    assert weights + said.peak == pytest.approx(count.peak, rel=TOLERANCE)
    assert said.unshared - said.shared == (400 * 48 - 600) * 2 * 64 * 4 * 4


def test_numbers_by_hand():
    text = TextShape(2, 8, 8, 4, 2, 16, 10)
    assert text.linear_parameters == 2 * (2 * 8 * 12 + 3 * 8 * 16)
    assert text.key_value_bytes(Precision(4, 2)) == 2 * 4 * 2 * 2
    training = Training(1000, 100, True)
    said = update_memory(text, Precision(4, 4), training, BatchShape(6, 3), checkpointing=False)
    layer = 2 * (32 + 32 + 4) + 2 * 4 * 8 + 4 * 4 * 16 + 4 * 8 + 2 * 4 * 8 + 4 * 2 + 2 * 4 * 4
    around = 8 * (8 + 4 + 4) + 2 * 4 * 4
    assert (said.weights, said.gradients, said.optimizer) == (4000, 400, 800)
    assert said.layers == 6 * (2 * layer + around)
    assert said.head == 4 * 3 * 10 * 4 + 10 * 8 * 4 + 3 * 8 * 4
    again = update_memory(text, Precision(4, 4), training, BatchShape(6, 3), checkpointing=True)
    assert again.layers == 6 * (2 * 8 * 4 + around)
    assert again.working - said.working == 6 * layer


def test_shards_hold_a_part_and_gather_a_layer():
    text, batch = TextShape(2, 8, 8, 4, 2, 16, 10), BatchShape(6, 3)
    layer, precision = 2 * 8 * 12 + 3 * 8 * 16, Precision(4, 2)
    training = Training(2000, 1600, True, reference=True, shards=4)
    said = update_memory(text, precision, training, batch, checkpointing=False)
    held = (said.weights, said.reference, said.gradients, said.optimizer)
    assert held == (2000, 2000, 1600, 3200)
    gathered = 2 * 4 * (2000 - 2 * layer) + layer * (2 * 2 + 2 + 4)
    again = update_memory(text, precision, training, batch, checkpointing=True)
    assert said.casts == again.casts == gathered
    lora = Training(2000, 100, False, lora_rank=8, shards=4)
    said = update_memory(text, precision, lora, batch, checkpointing=False)
    assert said.casts == 4 * (2000 - 2 * layer) + layer * 2 * 2


def test_gradients_meet_activations_only_where_there_are_several_micro_batches():
    text, batch = TextShape(2, 8, 8, 4, 2, 16, 10), BatchShape(6, 3)
    training = Training(10**6, 10**6, True)
    one, two = (
        update_memory(text, Precision(4, 4), training, batch, checkpointing=False, microbatches=n)
        for n in (1, 2)
    )
    assert one.peak == 16 * 10**6 + one.working
    assert two.peak == 16 * 10**6 + two.activations + max(two.head, two.working)
