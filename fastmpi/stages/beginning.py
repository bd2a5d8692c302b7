"""What a run begins with: the model, what of it trains, what then fits into memory, the optimiser,
and who the run is.

Unusual: what fits is known only when it is known what trains, so the longest sample is remembered
until then.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fastmpi import checkpoint as checkpoints
from fastmpi.config import FREE_ON_RESUME
from fastmpi.models.forest_model import ForestModel
from fastmpi.stages.clock import MicrobatchClock
from fastmpi.stages.features import FeatureCache
from fastmpi.stages.fitting import StepMemory, step_memory
from fastmpi.stages.optimizer import make_optimizer, trained_parameters
from fastmpi.stages.rows import Row, Rows, check_length, policies_digest
from fastmpi.stages.sharding import Shards
from fastmpi.stages.step import OptimizerStep

if TYPE_CHECKING:
    from fastmpi.policies import Policy


class Beginning(OptimizerStep, ABC):
    """Sets up what `OptimizerStep` takes steps with. times_microbatches: see `stages/clock.py`."""

    stage: ClassVar[str]
    times_microbatches = False
    is_sharded: bool
    rows: Rows
    policies: Mapping[str, Policy] | None
    _longest: tuple[Row, int, str] = ({"id": ""}, 0, "")

    def _load_model(self, path: str | Path) -> ForestModel:
        return ForestModel.from_pretrained(
            path,
            dtype=getattr(torch, self.args.dtype),
            # shards go to the device one layer at a time, which the whole model may not fit on
            device="cpu" if self.is_sharded else self.accelerator.device,
            attention_backend=self.args.attention_backend,
            trust_remote_code=self.args.trust_remote_code,
        )

    def begin(self) -> None:
        """Start state: what is trained, the optimiser, and who this run is. `train` calls it."""
        if not self.is_sharded:
            self.model.to(self.accelerator.device)
        self.identity = {
            "stage": self.stage,
            "model": checkpoints.fingerprint(self.model.named_parameters()),
            "rows": self.rows.digest,
            "policies": policies_digest(self.policies),
            "processes": self.accelerator.num_processes,
            "samples_per_step": self.args.samples_per_step * self.accelerator.num_processes,
            "steps_per_window": self.args.steps_per_window,
            "config": {k: v for k, v in self._plain_config().items() if k not in FREE_ON_RESUME},
        }
        self.choose_trained()
        if self.is_sharded:
            self.shard()
        self.parameters = trained_parameters(self.model)
        self.optimizer = make_optimizer(self.parameters, self.args)
        self.features = FeatureCache(self.model, self.precision)
        if self.times_microbatches:
            self.clock = MicrobatchClock(self.model, self.features, self.accelerator.device)

    def choose_trained(self, device: torch.device | None = None) -> None:
        """Which parameters train, and what then fits into memory; called with the stage's starting
        weights in place. device: the one to fit where a setting asks for it, by default the run's
        own; one that is given asks too."""
        args = self.args
        if args.use_peft:
            torch.manual_seed(args.seed)  # a new adapter's weights
            self.model.add_lora(args.lora_r, args.lora_alpha, args.lora_target_modules)
        else:
            self.model.set_trainable(args.freeze_vision, args.freeze_merger, args.freeze_llm)
        on = args.gradient_checkpointing
        if device is not None or "auto" in (on, args.max_tokens_per_microbatch):
            self.memory = self._step_memory(device or self.accelerator.device)
        self.checkpoints_layers = bool(on) if self.memory is None else self.memory.checkpointing
        if self.checkpoints_layers:
            self.model.gradient_checkpointing()
        if self.memory is not None and args.max_tokens_per_microbatch == "auto":
            row, length, what = self._longest
            check_length(row, length, self.memory.longest, what, "memory_budget_gib has room for ")

    def _step_memory(self, device: torch.device) -> StepMemory:
        """Only where it is asked for: the formulas know the text towers of the known families."""
        shards = self.accelerator.num_processes if self.is_sharded else 1
        kept = self.keeps_start
        return step_memory(self.args, self.model, device, reference=kept, shards=shards)

    @property
    def keeps_start(self) -> bool:
        """Whether the starting weights are kept beside those that train."""
        return False

    def check_fits(self, row: Row, length: int, what: str = "sample") -> None:
        """ValueError if the row does not fit into a forward pass; where memory says how long that
        is, the longest is looked at when it is known what trains."""
        budget = self.args.max_tokens_per_microbatch
        if budget != "auto":
            check_length(row, length, budget, what)
        elif length > self._longest[1]:
            self._longest = row, length, what

    def shard(self) -> None:
        """Leaves this process its part of the model; called after `choose_trained`."""
        dtype = torch.bfloat16 if self.args.bf16 else None
        self.shards = Shards(self.model, self.accelerator.device, dtype)

    def _plain_config(self) -> dict[str, Any]:
        """The settings as JSON would give them back."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in self.args.to_dict().items()
        }
