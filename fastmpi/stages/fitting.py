"""What fits into memory: `gradient_checkpointing: auto` and `max_tokens_per_microbatch: auto`.

Unusual: both follow from formulas of the settings, the model and the samples, and from no
measurement. So they are the same on every process, in every run and after a resume, as long as the
budget is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from fastmpi.data.batch import ForestBatch, microbatches
from fastmpi.models.memory import UpdateMemory, update_memory
from fastmpi.models.sizes import BatchShape, Precision, TextShape, Training

if TYPE_CHECKING:
    from fastmpi.config import TrainingConfig
    from fastmpi.data.batch import TokenRule
    from fastmpi.data.samples import Sample
    from fastmpi.models.forest_model import ForestModel

USUAL_TOKENS = 16384  # of a micro-batch, where both are "auto": checkpointing is off if they fit
_MAX_TOKENS = 2**20  # of a micro-batch in any memory: more bring nothing
_SHRINK = 0.8  # of a cut that does not fit


@dataclass(frozen=True)
class StepMemory:
    """The memory of an optimiser step, by its largest micro-batch. tiled: whether attention runs by
    "sdpa". fused: the kernels of CUDA. budget: bytes."""

    text: TextShape
    precision: Precision
    training: Training
    tiled: bool
    fused: bool
    budget: int
    checkpointing: bool = False

    def update(self, shape: BatchShape, num_batches: int = 2) -> UpdateMemory:
        """Of a step of so many micro-batches, none larger than `shape`."""
        return update_memory(
            self.text,
            self.precision,
            self.training,
            shape,
            checkpointing=self.checkpointing,
            microbatches=num_batches,
            fused=self.fused,
        )

    def fits(self, shape: BatchShape) -> bool:
        return self.update(shape).peak <= self.budget

    def one_sequence(self, rows: int) -> BatchShape:
        """No forest of as many rows takes more; in tiles, which repeat a few keys more where there
        are branches, a percent or so."""
        return BatchShape.of_chain(rows) if self.tiled else BatchShape(rows, rows)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sample that fits; `ValueError` where none does."""
        low, high = 0, _MAX_TOKENS
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (
                (middle, high) if self.fits(self.one_sequence(middle)) else (low, middle - 1)
            )
        if not low:
            fixed = self.update(BatchShape(1, 1)).peak / 2**30
            raise ValueError(
                f"a budget of {self.budget / 2**30:.3g} GiB does not hold the model, its gradients "
                f"and the optimiser's state ({fixed:.3g} GiB): raise memory_budget_gib, or train "
                "less of it (use_peft)"
            )
        return low

    def cut(
        self, samples: Sequence[Sample], rule: TokenRule, *, share: bool = True
    ) -> list[ForestBatch]:
        """The samples as few large forests, each of which fits. What attention copies follows from
        a forest's shape and not from its tokens alone, so it is cut, looked at, and cut smaller, at
        the least to samples that are alone."""
        tokens, least = _MAX_TOKENS, max(len(sample.ids) for sample in samples)
        while True:
            batches = microbatches(samples, rule, tokens, share=share)
            shapes = [BatchShape.of(batch, tiled=self.tiled) for batch in batches]
            too_large = [shape.rows for shape in shapes if not self.fits(shape)]
            if not too_large or tokens == least:
                return batches
            smallest = self.longest if tokens > self.longest else least
            tokens = max(smallest, int(_SHRINK * min(tokens, *too_large)))


def step_memory(
    args: TrainingConfig,
    model: ForestModel,
    device: torch.device,
    *,
    reference: bool = False,
    shards: int = 1,
) -> StepMemory:
    """Of training `model`, its trained parts chosen, on `device`. reference: whether a frozen copy
    is kept beside it. shards: processes that share one model."""
    tiled = args.attention_backend == "sdpa" or (
        args.attention_backend == "auto" and device.type != "cuda"
    )
    precision = Precision.of(getattr(torch, args.dtype), autocast=args.bf16)
    training = replace(training_of(model, args, reference=reference), shards=shards)
    kept = getattr(args, "kept_rollout_bytes", 0)
    if getattr(args, "keeps_copy", False):
        kept += training.trained * precision.weights
    memory = StepMemory(
        TextShape.of(model.base.config),
        precision,
        training,
        tiled=tiled,
        fused=device.type == "cuda",
        budget=budget_bytes(args, device) - kept,
    )
    return replace(memory, checkpointing=_wants_checkpointing(args, memory))


def _wants_checkpointing(args: TrainingConfig, memory: StepMemory) -> bool:
    """What the setting comes to."""
    if args.gradient_checkpointing != "auto":
        return bool(args.gradient_checkpointing)
    tokens = args.max_tokens_per_microbatch
    rows = USUAL_TOKENS if tokens == "auto" else tokens
    return not memory.fits(memory.one_sequence(rows))


def budget_bytes(args: TrainingConfig, device: torch.device) -> int:
    """Bytes that a step may use: the stated budget, else all memory of the device."""
    if args.memory_budget_gib is not None:
        return int(args.memory_budget_gib * 2**30)
    if device.type != "cuda":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(device).total_memory)
    if "auto" in (args.gradient_checkpointing, args.max_tokens_per_microbatch):
        raise ValueError("there is no GPU here: memory_budget_gib must say what it has")
    return 0  # nobody asks


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
