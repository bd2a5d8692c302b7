"""`gradient_checkpointing: auto`: on only where a step would not fit into memory without it.

Unusual: the decision is made before the first sample is seen, for the largest micro-batch that the
settings allow, so it is the same on every process and after a resume.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from fastmpi.models.memory import update_memory
from fastmpi.models.sizes import BatchShape, Precision, TextShape, Training

if TYPE_CHECKING:
    from fastmpi.config import TrainingConfig
    from fastmpi.models.forest_model import ForestModel


def wants_checkpointing(
    args: TrainingConfig, model: ForestModel, device: torch.device, *, reference: bool = False
) -> bool:
    """What the setting comes to. model: with its trained parts chosen. reference: whether a frozen
    copy is kept beside it."""
    if args.gradient_checkpointing != "auto":
        return bool(args.gradient_checkpointing)
    rows = args.max_tokens_per_microbatch
    tiled = args.attention_backend == "sdpa" or (
        args.attention_backend == "auto" and device.type != "cuda"
    )
    memory = update_memory(
        TextShape.of(model.base.config),
        Precision.of(getattr(torch, args.dtype), autocast=args.bf16),
        training_of(model, args, reference=reference),
        BatchShape.of_chain(rows) if tiled else BatchShape(rows, rows),
        checkpointing=False,
        microbatches=2,
        fused=device.type == "cuda",
    )
    return memory.peak > budget_bytes(args, device)


def budget_bytes(args: TrainingConfig, device: torch.device) -> int:
    """Bytes that a step may use: the stated budget, else all memory of the device."""
    if args.memory_budget_gib is not None:
        return int(args.memory_budget_gib * 2**30)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("there is no GPU here: memory_budget_gib must say what it has")
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def training_of(model: ForestModel, args: TrainingConfig, *, reference: bool) -> Training:
    """What trains of `model`, as the memory formulas take it."""
    parts = model.parts()
    targets = args.lora_target_modules
    return Training(
        sum(part.parameters for part in parts),
        sum(part.trainable for part in parts),
        model.head.requires_grad,
        lora_rank=args.lora_r if args.use_peft else 0,
        adapters=7 if targets is None else len(targets),
        reference=reference,
    )
