"""Which part of a model each parameter belongs to, and which parts train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fastmpi.models.family import Family

_ORDER = ("vision", "merger", "llm", "lora")


@dataclass(frozen=True)
class Part:
    """A row of the table: "vision", "merger", "llm" (embeddings and head with it) or "lora"."""

    name: str
    parameters: int
    trainable: int


def parts(model: PreTrainedModel, family: Family) -> list[Part]:
    """The parts of `model` with their numbers of parameters, those that train among them."""
    total: dict[str, list[int]] = {}
    for part, parameter in _assigned(model, family):
        counts = total.setdefault(part, [0, 0])
        counts[0] += parameter.numel()
        counts[1] += parameter.numel() * parameter.requires_grad
    return [
        Part(name, *total[name]) for name in ("vision", "merger", "llm", "lora") if name in total
    ]


def set_trainable(model: PreTrainedModel, family: Family, frozen: Mapping[str, bool]) -> None:
    """Sets `requires_grad` of every parameter by its part."""
    for part, parameter in _assigned(model, family):
        parameter.requires_grad_(not frozen[part])


def _assigned(model: PreTrainedModel, family: Family) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            yield "lora", parameter
        elif name.startswith(family.merger_prefixes):
            yield "merger", parameter
        elif name.startswith(family.vision_prefix):
            yield "vision", parameter
        else:
            yield "llm", parameter
