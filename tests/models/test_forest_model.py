"""ForestModel around the text tower: features, decoding, what trains, saving, checkpointing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionModel, Qwen3VLVisionModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)

from fastmpi.data.batch import ForestBatch
from fastmpi.data.samples import Prompt
from fastmpi.models import forest_model
from fastmpi.models.attention import ForestPattern
from fastmpi.models.features import ImageFeatures
from fastmpi.models.forest_model import ForestModel
from fastmpi.models.probe import stock_logits
from fastmpi.models.tiny import tiny_model

VISION_TOWERS = (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen3VLVisionModel,
    CLIPVisionModel,
)


def picture(forest: ForestModel, seed: int, size=(60, 90)):
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return forest.processor.image(PIL.Image.fromarray(noise))


def prompts(forest: ForestModel) -> list[Prompt]:
    """Two questions to one picture, and one to another."""
    images = [picture(forest, 0), picture(forest, 0), picture(forest, 1, (100, 50))]
    ends = [" red cube", " red then else", " Case 3"]

    def prompt(image, end):
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": end}]}
        return forest.processor.prompt([message], [image])

    return [prompt(image, end) for image, end in zip(images, ends, strict=True)]


def batch_of(forest: ForestModel) -> ForestBatch:
    return ForestBatch.from_prompts(prompts(forest), forest.processor)


def test_distinct_pictures_are_encoded_once(family, load):
    forest = load(family)
    images = [picture(forest, seed) for seed in (0, 1, 0)]
    features = forest.encode_images(images)
    assert features.keys == (images[0].key, images[1].key)
    assert features.counts == (images[0].num_tokens, images[1].num_tokens)
    alone = forest.encode_images(images[1:2])
    assert torch.allclose(features.select(alone.keys).rows, alone.rows, atol=1e-5)
    assert len(features.deepstack) == (2 if family == "qwen3_vl" else 0)


def test_given_features_are_used_in_any_order(family, load):
    forest = load(family, dtype=torch.float64)
    batch = batch_of(forest)
    features = forest.encode_images([picture(forest, 5), *reversed(batch.images)])
    expected = forest.hidden(batch)
    assert torch.allclose(forest.hidden(batch, features), expected, atol=1e-6)
    wrong = ImageFeatures(
        features.keys, features.counts, features.rows * 2, tuple(x * 2 for x in features.deepstack)
    )
    assert not torch.allclose(forest.hidden(batch, wrong), expected, atol=1e-2)


def test_missing_features_are_named(load):
    forest = load("llava")
    batch = batch_of(forest)
    with pytest.raises(ValueError, match=f"no features of 1 images, .* {batch.images[1].key}"):
        forest.hidden(batch, forest.encode_images(batch.images[:1]))


def test_many_pictures_take_several_passes(family, load, monkeypatch):
    forest = load(family, dtype=torch.float64)
    images = [picture(forest, seed, (40 + 20 * seed, 60)) for seed in range(4)]
    expected = forest.encode_images(images)
    patches = images[0].grid[1] * images[0].grid[2]
    monkeypatch.setattr(forest_model, "_MAX_ROWS_PER_PASS", 2 * patches)
    calls = count_calls(next(m for m in forest.modules() if isinstance(m, VISION_TOWERS)))
    found = forest.encode_images(images)
    assert len(calls) == len(list(forest_model._passes(images))) > 1
    assert found.keys == expected.keys and found.counts == expected.counts
    for rows, others in zip(
        (found.rows, *found.deepstack), (expected.rows, *expected.deepstack), strict=True
    ):
        assert torch.allclose(rows, others, atol=1e-6)


def test_no_pictures_at_all(family, load):
    forest = load(family)
    assert forest.encode_images([]).rows.shape == (0, 64)
    batch = ForestBatch.from_prompts([Prompt(np.array([70, 71]))], forest.processor)
    assert forest.hidden(batch).shape == (2, 64)
    assert torch.equal(forest.hidden(batch, forest.encode_images([])), forest.hidden(batch))


def test_features_carry_gradient_only_where_the_tower_trains(family, load):
    forest = load(family)
    image = picture(forest, 0)
    assert not forest.encode_images([image]).rows.requires_grad and not forest.trains_vision
    forest.set_trainable(freeze_merger=False)
    features = forest.encode_images([image])
    assert features.rows.requires_grad and forest.trains_vision
    features.rows.sum().backward()
    got = {name for name, p in forest.base.named_parameters() if p.grad is not None}
    assert got and all(name.startswith(forest.family.merger_prefixes) for name in got)


class Recorder(ForestPattern):
    """Remembers each layer's keys and values, then serves one row of the batch at a time."""

    def __init__(self, subtree_end: Tensor) -> None:
        super().__init__(subtree_end)
        self.seen: dict[int, list[Tensor]] = {}
        self.path: Tensor | None = None

    def attend(self, layer_idx, q, k, v, scale):
        if self.path is None:
            self.seen[layer_idx] = [k, v]
            return super().attend(layer_idx, q, k, v, scale)
        old_k, old_v = (x[:, :, self.path] for x in self.seen[layer_idx])
        keys, values = torch.cat([old_k, k], 2), torch.cat([old_v, v], 2)
        return torch.nn.functional.scaled_dot_product_attention(
            q, keys, values, scale=scale, enable_gqa=True
        ).transpose(1, 2)


def test_decoding_continues_a_prefill(family, load):
    """The last row of each path again, from recorded keys and values: the prefill's own row."""
    forest = load(family, dtype=torch.float64)
    batch = batch_of(forest)
    pattern = Recorder(batch.subtree_end)
    with torch.no_grad():
        expected = forest.hidden(batch, pattern=pattern)
        for end in batch.offsets[1:]:
            row = int(batch.flat_index[end - 1])
            path = torch.nonzero(batch.subtree_end[:row] > row).squeeze(1)
            pattern.path = path
            hidden = forest.decode(batch.tokens[[row]], batch.position_ids[:, [row]], pattern)
            assert torch.allclose(hidden[0], expected[row], atol=1e-6)


def test_forward_hands_hidden_and_head_to_one_function(family, load):
    forest = load(family)
    batch = batch_of(forest)
    hidden, head = forest(batch, lambda hidden, head: (hidden, head))
    assert torch.equal(hidden, forest.hidden(batch))
    assert head is forest.base.get_output_embeddings().weight and head is forest.head
    assert forest.softcap is None and forest.device.type == "cpu" and forest.dtype == head.dtype


@pytest.mark.parametrize("lora", [False, True])
def test_gradient_checkpointing_changes_nothing(family, load, lora):
    forest = load(family, dtype=torch.float64).train()
    if lora:
        forest.add_lora(2, 4)
    batch = batch_of(forest)
    weight = torch.randn(batch.num_tokens, 64, dtype=torch.float64)

    def gradients() -> list[Tensor]:
        trained = [p for p in forest.parameters() if p.requires_grad]
        loss = (forest.hidden(batch) * weight).sum() + 0 * forest.head.sum()
        return list(torch.autograd.grad(loss, trained, allow_unused=True))

    expected = gradients()
    forest.gradient_checkpointing()
    assert forest.text_tower.layers[0].gradient_checkpointing
    runs = count_calls(forest.text_tower.layers[0].mlp)
    for found, old in zip(gradients(), expected, strict=True):
        assert torch.equal(found, old)
    assert len(runs) == 2, "forward, and again in backward"
    forest.gradient_checkpointing(False)
    assert not forest.text_tower.layers[0].gradient_checkpointing


def count_calls(module: torch.nn.Module) -> list[None]:
    calls: list[None] = []
    module.register_forward_pre_hook(lambda *_: calls.append(None))
    return calls


def test_table_of_what_trains(family, load):
    forest = load(family)
    total = sum(p.numel() for p in forest.parameters())
    assert sum(part.parameters for part in forest.parts()) == total
    assert trains(forest) == {"vision": False, "merger": False, "llm": True}
    table = forest.set_trainable(freeze_vision=False, freeze_merger=False, freeze_llm=True)
    assert {p.name: p.trainable == p.parameters for p in table} == {
        "vision": True,
        "merger": True,
        "llm": False,
    }
    assert not forest.head.requires_grad
    forest.add_lora(2, 4)
    assert trains(forest) == {"vision": False, "merger": False, "llm": False, "lora": True}
    forest.set_trainable(freeze_vision=False, freeze_merger=False)
    assert trains(forest) == {"vision": True, "merger": True, "llm": False, "lora": True}


def trains(forest: ForestModel) -> dict[str, bool]:
    assert all(part.trainable in (0, part.parameters) for part in forest.parts())
    return {part.name: part.trainable > 0 for part in forest.parts()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lora", ["none", "attached", "merged"])
def test_saved_folder_is_a_plain_model(family, tied, lora, tmp_path, capsys):
    from transformers import AutoModelForImageTextToText

    tiny_model(family, folder=tmp_path / "base", tie_word_embeddings=tied)
    forest = ForestModel.from_pretrained(tmp_path / "base", probe=False)
    with torch.no_grad():
        change(forest, lora)
    forest.save_pretrained(tmp_path / "saved")
    prompt = prompts(forest)[0]
    expected = stock_logits(forest, prompt)

    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    assert (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight) == tied
    again = ForestModel.from_pretrained(tmp_path / "saved", probe=False)
    assert again.base.state_dict().keys() == loaded.state_dict().keys()
    found = stock_logits(again, prompts(again)[0])
    if lora == "attached":
        assert torch.allclose(found, expected, atol=1e-5)
        forest.merge_lora()
        expected = stock_logits(forest, prompt)
    assert torch.equal(found, expected)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "fastmpi" not in json.dumps(config) and config["architectures"]
    assert {path.name for path in (tmp_path / "base").iterdir()} <= {
        path.name for path in (tmp_path / "saved").iterdir()
    }


def change(forest: ForestModel, lora: str) -> None:
    """Weights that are not those of the folder, in every part."""
    for parameter in forest.parameters():
        parameter.mul_(1.01)
    if lora == "none":
        return
    forest.add_lora(2, 8)
    for name, parameter in forest.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.1)
    if lora == "merged":
        forest.merge_lora()


def test_unknown_backend_is_named(load):
    with pytest.raises(
        ValueError, match="attention_backend 'fast' is not one of auto, triton, sdpa"
    ):
        load("llava", attention_backend="fast")


def test_backend_reaches_the_op(load):
    forest = load("llava", attention_backend="flex")
    with pytest.raises(ValueError, match="'flex' needs a CUDA device"):
        forest.hidden(batch_of(forest))


def test_autocast(family, load):
    forest = load(family)
    batch = batch_of(forest)
    with torch.no_grad():
        expected = forest.hidden(batch)
        with torch.autocast("cpu", torch.bfloat16):
            found = forest.hidden(batch)
    error = (found - expected).norm() / expected.norm()
    assert 1e-4 < error < 0.05


def test_a_tower_that_disagrees_with_the_processor_is_named(family, load):
    forest = load(family)
    image = picture(forest, 0)
    wrong = replace(image, num_tokens=image.num_tokens + 1)
    message = rf"gives \[{image.num_tokens}\] rows .* expands to \[{image.num_tokens + 1}\]"
    with pytest.raises(ValueError, match=message):
        forest.encode_images([wrong])


def test_loads_in_evaluation_mode(family, load: Callable):
    forest = load(family, dtype=torch.bfloat16)
    assert not forest.training and not forest.base.training and forest.dtype == torch.bfloat16
