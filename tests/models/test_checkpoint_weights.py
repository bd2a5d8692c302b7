"""The names an engine is given are those on disk, and the weights under them the trained ones."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from fastmpi.models.checkpoint_weights import checkpoint_weights
from fastmpi.models.forest_model import ForestModel
from fastmpi.models.tiny import FAMILIES


def load(folder) -> ForestModel:
    return ForestModel.from_pretrained(folder, probe=False, device="cpu")


def change(model: ForestModel) -> None:
    """Another value for every weight, so that a weight that is left out shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand(parameter.shape, generator=generator), alpha=0.1)


def saved(model: ForestModel, folder) -> dict[str, torch.Tensor]:
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_weights_are_those_of_the_saved_folder(family, tiny_folder, tmp_path):
    model = load(tiny_folder(family))
    before = set(load_file(tiny_folder(family) / "model.safetensors"))
    change(model)
    weights, on_disk = checkpoint_weights(model), saved(model, tmp_path)
    assert set(weights) == set(on_disk) == before
    for name, value in on_disk.items():
        assert torch.equal(weights[name], value), name


def test_disk_names_of_qwen_are_those_of_the_published_checkpoint(tiny_folder):
    names = set(checkpoint_weights(load(tiny_folder("qwen2_5_vl"))))
    assert "visual.blocks.0.attn.qkv.weight" in names
    assert "model.layers.0.self_attn.q_proj.weight" in names


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_is_merged_and_leaves_no_name(family, tiny_folder, tmp_path):
    model = load(tiny_folder(family))
    names = set(checkpoint_weights(model))
    model.add_lora(4, 8)
    change(model)
    weights = checkpoint_weights(model)
    assert set(weights) == names
    adapted = next(name for name in sorted(names) if name.endswith("q_proj.weight"))
    on_disk = saved(model, tmp_path)
    assert all(torch.equal(weights[name], value) for name, value in on_disk.items())
    model.merge_lora()
    assert torch.equal(checkpoint_weights(model)[adapted], weights[adapted])


def test_weights_without_an_adapter_are_not_copied(tiny_folder):
    model = load(tiny_folder("qwen2_5_vl"))
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert {weight.data_ptr() for weight in checkpoint_weights(model).values()} <= own


@pytest.mark.parametrize("family", FAMILIES)
def test_no_memory_has_two_names(family, tiny_folder):
    model = load(tiny_folder(family))
    base = model.base
    base.get_output_embeddings().weight = base.get_input_embeddings().weight  # tied
    weights = checkpoint_weights(model)
    assert len({weight.data_ptr() for weight in weights.values()}) == len(weights)
    assert sum(weight.data_ptr() == model.head.data_ptr() for weight in weights.values()) == 1
