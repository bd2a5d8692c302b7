"""Counted FLOPs against hand counts and against torch's own counter, which sees every product.

torch's counter runs over the attention in plain torch, which computes all T x T pairs, and counts
the rotary embedding's outer product, which is none of a layer's work.
"""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastmpi.data.batch import ForestBatch
from fastmpi.data.samples import Prompt, Sample
from fastmpi.models.flops import Flops, update_flops, visible_pairs
from fastmpi.models.forest_model import ForestModel
from fastmpi.ops.token_logprob import token_logprob

QWENS = ("qwen2_5_vl", "qwen3_vl")


def batch_of(model: ForestModel, *, share: bool = True) -> ForestBatch:
    """Two pictures, three responses to each; windows of the pictures are ragged."""
    rng = np.random.default_rng(0)
    words = model.processor.encode(" red cube then else Case 3 small yes no metal")
    samples = []
    for size in ((100, 160, 3), (84, 56, 3)):
        noise = PIL.Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))
        image = model.processor.image(noise)
        question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
        prompt: Prompt = model.processor.prompt([question], [image])
        samples += [Sample.from_prompt(prompt, rng.choice(words, n)) for n in (3, 5, 9)]
    return ForestBatch.from_samples(samples, model.processor, share=share)


def measured(model: ForestModel, batch: ForestBatch) -> tuple[int, int]:
    """(forward, backward) FLOPs as torch counts them."""
    model.base.set_attn_implementation({"vision_config": "eager"})
    model.attention_backend = "reference"
    scores = batch.sample_scores()

    def loss(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return token_logprob(hidden, head, scores.rows, scores.targets)[0].sum()

    with FlopCounterMode(display=False) as forward:
        value = model(batch, loss)
    with FlopCounterMode(display=False) as backward:
        value.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def all_pairs(counts: Flops, batch: ForestBatch) -> Flops:
    """The attention's counts if it did not skip what is invisible."""
    waste = batch.num_tokens**2 / visible_pairs(batch.subtree_end)
    return Flops(counts.forward * waste, counts.backward * waste)


@pytest.mark.parametrize("family", QWENS)
@pytest.mark.parametrize("trained", ["llm", "all", "merger", "lora"])
def test_equals_torchs_counter(load, family, trained):
    model = load(family)
    if trained == "lora":
        pytest.importorskip("peft")
        model.add_lora(4, 8.0)
    else:
        model.set_trainable(trained != "all", trained == "llm", trained == "merger")
    batch = batch_of(model)
    counts = update_flops(model, [batch])
    parts = (counts.vision, counts.linears, counts.head, all_pairs(counts.attention, batch))
    forward, backward = measured(model, batch)
    config = model.base.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotary = 2 * 3 * (head_dim // 2) * batch.num_tokens
    assert forward == sum(part.forward for part in parts) + rotary
    assert backward == sum(part.backward for part in parts)


def test_hand_counts(load):
    model = load("qwen2_5_vl")
    model.set_trainable()
    config = model.base.config.text_config
    samples = [np.arange(5), np.array([0, 1, 2, 7]), np.array([0, 1, 2, 8, 9])]
    weights = [np.array([0, 0, 0, *[1] * (len(ids) - 3)], np.float32) for ids in samples]
    made = [Sample(ids, (), weight) for ids, weight in zip(samples, weights, strict=True)]
    batch = ForestBatch.from_samples(made, model.processor)
    assert batch.num_tokens == 8  # 3 shared, 2 + 1 + 2
    pairs = (1 + 2 + 3) + (4 + 5) + 4 + (4 + 5)
    assert visible_pairs(batch.subtree_end) == pairs
    hidden, wide, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    kv = hidden * config.num_key_value_heads // config.num_attention_heads
    weights_of_layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * wide
    counts = update_flops(model, [batch])
    assert counts.vision == Flops()
    assert counts.linears.forward == 2 * 8 * layers * weights_of_layer
    assert counts.linears.backward == 2 * counts.linears.forward
    assert counts.attention.forward == 2 * pairs * 2 * hidden * layers
    # rows that predict: the prefix's last, and the first of each longer response
    assert counts.head == Flops(2 * 3 * model.head.numel(), 4 * 3 * model.head.numel())
    assert counts.total == sum(
        part.forward + part.backward for part in (counts.linears, counts.attention, counts.head)
    )


def test_sharing_saves_all_but_head_and_pictures(load):
    model = load("qwen2_5_vl")
    model.set_trainable()
    shared, packed = (update_flops(model, [batch_of(model, share=s)]) for s in (True, False))
    assert shared.vision == packed.vision
    assert shared.linears.total < packed.linears.total
    assert shared.attention.total < packed.attention.total
    # each response's first token has a row of its own without sharing
    assert shared.head.total < packed.head.total


def test_pictures_count_once_over_all_batches(load):
    model = load("qwen2_5_vl")
    model.set_trainable()
    batch = batch_of(model)
    once, twice = update_flops(model, [batch]), update_flops(model, [batch, batch])
    assert twice.vision == once.vision
    assert twice.linears.total == 2 * once.linears.total


def test_checkpointing_adds_the_layers_forward(load):
    model = load("qwen2_5_vl")
    batch = batch_of(model)
    for freeze_vision in (True, False):
        model.set_trainable(freeze_vision)
        plain = update_flops(model, [batch])
        again = update_flops(model, [batch], checkpointing=True)
        assert again.linears.again == plain.linears.forward
        assert again.attention.again == plain.attention.forward
        assert again.head == plain.head
        assert (again.vision.again == 0) == freeze_vision


def test_other_families_are_refused(load):
    model = load("llava")
    with pytest.raises(ValueError, match="vision tower of model type 'llava'"):
        update_flops(model, [batch_of(model)])
