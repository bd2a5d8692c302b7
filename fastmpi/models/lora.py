"""LoRA through peft, on the text tower alone.

Unusual: a saved model is always a plain merged folder. The merged weights are computed beside
the adapter instead of merging and unmerging, which would not give the same bits back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

TEXT_TOWER = "language_model"


def add_lora(
    model: PreTrainedModel, r: int, alpha: float, target_modules: Sequence[str] | None = None
) -> PeftModel:
    """Wraps `model` with a fresh adapter of rank `r`, scaled by `alpha / r`, without dropout.

    target_modules: last names of linear layers of the text tower ("q_proj"); all of them if None.
    `ValueError` for a name that no linear layer of the text tower has.
    """
    from peft import LoraConfig, get_peft_model

    if r < 1:
        raise ValueError(f"LoRA rank r={r} must be at least 1")
    pattern = text_tower_pattern(model, target_modules)
    return get_peft_model(model, LoraConfig(r=r, lora_alpha=alpha, target_modules=pattern))


def text_tower_pattern(model: PreTrainedModel, target_modules: Sequence[str] | None = None) -> str:
    """A regular expression that matches linear layers of the text tower and nothing else."""
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f".{TEXT_TOWER}." in name
    }
    if unknown := sorted(set(target_modules or ()) - linear):
        known = ", ".join(sorted(linear))
        raise ValueError(f"no linear layer of the text tower is called {unknown[0]!r}: {known}")
    names = "|".join(re.escape(name) for name in sorted(target_modules or linear))
    return rf"(.*\.)?{TEXT_TOWER}\..*\.({names})"


@torch.no_grad()
def merged_state_dict(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state of `model` as if its adapters were merged, under the plain model's names.

    model: the inner model of a PeftModel. Equals what `merge_and_unload` leaves behind.
    """
    from peft.tuners.lora import LoraLayer

    state = {
        name.replace(".base_layer.", "."): value
        for name, value in model.state_dict().items()
        if ".lora_" not in name
    }
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            weight = state[f"{name}.weight"].clone()
            for adapter in module.active_adapters:
                weight += module.get_delta_weight(adapter)
            state[f"{name}.weight"] = weight
    return state
