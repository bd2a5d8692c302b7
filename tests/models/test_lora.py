"""LoRA on the text tower: where it goes, off and on, merged."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from fastmpi.data.batch import ForestBatch
from fastmpi.data.samples import Prompt
from fastmpi.models.forest_model import ForestModel
from fastmpi.models.lora import text_tower_pattern

LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def hidden(forest: ForestModel) -> torch.Tensor:
    prompt = Prompt(np.arange(60, 80))
    with torch.no_grad():
        return forest.hidden(ForestBatch.from_prompts([prompt], forest.processor))


def train_adapter(forest: ForestModel) -> None:
    with torch.no_grad():
        for name, parameter in forest.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)


def adapted(forest: ForestModel) -> set[str]:
    names = (name for name, _ in forest.base.named_parameters() if ".lora_A." in name)
    return {name.partition(".lora_A.")[0] for name in names}


def test_all_linear_layers_of_the_text_tower_and_nothing_else(family, load):
    forest = load(family)
    layers = len(forest.text_tower.layers)
    forest.add_lora(2, 4)
    names = adapted(forest)
    assert all(name.startswith("model.language_model.layers.") for name in names)
    assert {name.rpartition(".")[2] for name in names} == LINEAR
    assert len(names) == layers * len(LINEAR)


def test_named_targets(family, load):
    forest = load(family)
    forest.add_lora(2, 4, ["q_proj", "v_proj"])
    assert {name.rpartition(".")[2] for name in adapted(forest)} == {"q_proj", "v_proj"}


def test_the_pattern_leaves_the_vision_tower_out(family, load):
    base = load(family).base
    pattern = text_tower_pattern(base)
    matched = [name for name, _ in base.named_modules() if re.fullmatch(pattern, name)]
    assert matched and not any("vis" in name or "lm_head" in name for name in matched)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_off_is_the_start_and_on_is_not(family, load, dtype):
    forest = load(family, dtype=dtype)
    before = hidden(forest)
    forest.add_lora(2, 4)
    assert torch.equal(hidden(forest), before), "a fresh adapter does nothing"
    train_adapter(forest)
    after = hidden(forest)
    with forest.adapter_disabled():
        assert torch.equal(hidden(forest), before)
    assert torch.equal(hidden(forest), after) and not torch.allclose(after, before, atol=1e-2)


def test_merging_keeps_the_function(family, load):
    forest = load(family, dtype=torch.float64)
    forest.add_lora(2, 4)
    train_adapter(forest)
    before = hidden(forest)
    forest.merge_lora()
    assert torch.allclose(hidden(forest), before, atol=1e-5) and not adapted(forest)
    assert [part.name for part in forest.parts() if part.trainable] == ["llm"]
    forest.add_lora(2, 4)
    assert torch.allclose(hidden(forest), before, atol=1e-5)


def test_gradient_reaches_the_adapter_alone(family, load):
    forest = load(family)
    forest.add_lora(2, 4)
    train_adapter(forest)
    prompt = Prompt(np.arange(60, 80))
    batch = ForestBatch.from_prompts([prompt], forest.processor)
    forest(batch, lambda hidden, head: (hidden @ head.T).log_softmax(-1)[:, 5].sum()).backward()
    got = {name for name, p in forest.named_parameters() if p.grad is not None}
    expected = {name for name, _ in forest.named_parameters() if ".lora_" in name}
    assert got == expected and all(
        p.grad.abs().max() > 0 for p in forest.parameters() if p.grad is not None
    )


def test_refusals(load):
    forest = load("llava")
    with pytest.raises(ValueError, match="no adapter to merge"):
        forest.merge_lora()
    with pytest.raises(ValueError, match="no adapter to disable"), forest.adapter_disabled():
        pass
    with pytest.raises(ValueError, match="r=0 must be at least 1"):
        forest.add_lora(0, 4)
    with pytest.raises(ValueError, match="called 'lm_head': down_proj, gate_proj"):
        forest.add_lora(2, 4, ["lm_head"])
    with pytest.raises(ValueError, match="called 'fc1'"):
        forest.add_lora(2, 4, ["q_proj", "fc1"])
    forest.add_lora(2, 4)
    with pytest.raises(ValueError, match="has an adapter already"):
        forest.add_lora(2, 4)
