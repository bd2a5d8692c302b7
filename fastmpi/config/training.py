"""Settings that every stage has."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from fastmpi.config.checks import (
    check_at_least,
    check_between,
    check_choices,
    check_gib,
    check_share,
)
from fastmpi.settings import Settings

_AT_LEAST_1 = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "lora_r",
    "lora_alpha",
    "logging_steps",
    "save_steps",
)
_AT_LEAST_0 = (
    "learning_rate",
    "warmup_steps",
    "weight_decay",
    "adam_epsilon",
    "max_grad_norm",
    "eval_steps",
    "dataloader_prefetch_factor",
)


@dataclass(kw_only=True)
class TrainingConfig(Settings):
    """What every stage has: batches, optimiser, precision, what is trained, logs, checkpoints."""

    output_dir: str = "trainer_output"
    """Folder of the trained model, its checkpoints, `metrics.jsonl` and `config.yaml`."""

    num_train_epochs: float = 3.0
    """Passes over the training rows."""

    max_steps: int = -1
    """Number of optimiser steps; if positive it replaces num_train_epochs."""

    per_device_train_batch_size: int = 8
    """Samples of one device, before accumulation."""

    gradient_accumulation_steps: int = 1
    """An optimiser step takes this many times per_device_train_batch_size samples a device. It sets
    only the size of the step: micro-batches are cut by max_tokens_per_microbatch alone."""

    max_tokens_per_microbatch: int | Literal["auto"] = 16384
    """Most tokens of one forward pass, after equal prefixes are merged. No sample may be longer.
    "auto": few and large micro-batches, each as large as memory_budget_gib allows."""

    balance_by: Literal["tokens", "seconds"] = "tokens"
    """What several processes get equal shares of: "tokens", after merging, or "seconds", by a model
    of what these cost that is fitted to micro-batches timed in the first steps."""

    dataloader_prefetch_factor: int = 2
    """How many steps (of the rl stage: batches of prompts) are prepared ahead, on a thread of their
    own; 0: each when it is needed. The results are the same."""

    share_prefix: bool = True
    """Merge equal prefixes of the samples of a micro-batch. The results are the same without it;
    only time and memory change."""

    learning_rate: float = 5e-5
    """Peak learning rate of AdamW."""

    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """Course of the learning rate after the warm-up."""

    warmup_steps: int = 0
    """Steps over which the learning rate grows linearly from zero."""

    warmup_ratio: float = 0.0
    """The same as a share of all steps; give one of the two."""

    weight_decay: float = 0.0
    """AdamW's weight decay, on matrices only (biases and norms are left alone)."""

    adam_beta1: float = 0.9
    """AdamW's first decay rate."""

    adam_beta2: float = 0.999
    """AdamW's second decay rate."""

    adam_epsilon: float = 1e-8
    """AdamW's epsilon."""

    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them as they are."""

    seed: int = 42
    """Seed of the order of the rows, of new adapters and of sampling."""

    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Type of the weights when the model is loaded from a folder."""

    bf16: bool = False
    """Compute in bfloat16 mixed precision; the weights keep their own type."""

    gradient_checkpointing: bool | Literal["auto"] = True
    """Recompute activations in the backward pass: less memory, about a third more time. "auto":
    only where a micro-batch of max_tokens_per_microbatch tokens would not fit without."""

    memory_budget_gib: float | None = None
    """What the two settings "auto" have to fit a step into; None: all memory of the device."""

    attention_backend: str = "auto"
    """Backend of the forest attention: "triton", "flex", "flash", "sdpa" or "reference"; "auto" is
    "triton" on CUDA and "sdpa" on the CPU."""

    use_peft: bool = False
    """Train a LoRA adapter instead of the weights; it is merged into the saved model."""

    lora_r: int = 16
    """Rank of the adapter."""

    lora_alpha: int = 32
    """Scale of the adapter: its output is multiplied by lora_alpha / lora_r."""

    lora_target_modules: list[str] | None = None
    """Names of the adapted linear layers; None: all of the text tower but the head."""

    freeze_vision: bool = True
    """Keep the vision tower as it is; its features are then computed once and kept."""

    freeze_merger: bool = True
    """Keep the projection from the vision tower into the text tower as it is."""

    freeze_llm: bool = False
    """Keep the text tower as it is."""

    logging_steps: int = 10
    """Steps between two lines of `metrics.jsonl`; the values are means over these steps."""

    eval_steps: int = 0
    """Steps between two evaluations; 0: none."""

    save_strategy: Literal["no", "steps"] = "steps"
    """"steps": a checkpoint every save_steps and at the end; "no": only the final model."""

    save_steps: int = 500
    """Steps between two checkpoints."""

    save_total_limit: int | None = None
    """Checkpoints kept, the newest first; None keeps all."""

    report_to: list[str] = dataclasses.field(default_factory=list)
    """More places for the metrics: "tensorboard", "wandb". `metrics.jsonl` is always written."""

    disable_tqdm: bool = False
    """No progress bar (the name is transformers'; the bar is rich's)."""

    profile: bool = False
    """Profile three optimiser steps, after two others: a Chrome trace and a table of the ten
    dearest regions in output_dir/profile."""

    fsdp: bool = False
    """Of several processes each holds a part of the matrices, their gradients and AdamW's state
    (FSDP2). What runs without gradient, rollouts too, gathers all weights on each of them for as
    long as it takes."""

    ddp_timeout: int = 1800
    """Seconds that a process waits for the others before it gives up. A process that dies ends the
    others at once; this is for those that hang."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model's folder."""

    def to_yaml(self) -> str:
        """The YAML that `from_yaml` and `--config` read: without trust_remote_code, which whoever
        runs the code says, and no file."""
        import yaml

        values = {k: v for k, v in self.to_dict().items() if k != "trust_remote_code"}
        return str(yaml.safe_dump(values, sort_keys=False))

    def __post_init__(self) -> None:
        check_choices(self)
        check_at_least(self, 1, *_AT_LEAST_1)
        check_at_least(self, 0, *_AT_LEAST_0)
        check_between(self, 0, 2**63 - 1, "seed")  # what torch's generators take
        check_between(self, 1, 2**31 - 1, "ddp_timeout")
        check_between(self, 0, 1, "warmup_ratio")
        check_share(self, "adam_beta1", "adam_beta2")
        self._check_length()
        self._check_parts()

    def _check_length(self) -> None:
        if self.max_steps != -1:
            check_at_least(self, 1, "max_steps")
        if self.num_train_epochs <= 0:
            raise ValueError(f"num_train_epochs must be positive, not {self.num_train_epochs}")
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("give warmup_steps or warmup_ratio, not both")
        if self.save_total_limit is not None:
            check_at_least(self, 1, "save_total_limit")
        unknown = set(self.report_to) - {"tensorboard", "wandb"}
        if unknown:
            raise ValueError(f"report_to: {sorted(unknown)[0]!r} is not one of tensorboard, wandb")

    def _check_parts(self) -> None:
        """Of the model and its memory."""
        if self.max_tokens_per_microbatch != "auto":
            check_at_least(self, 1, "max_tokens_per_microbatch")
        check_gib(self, "memory_budget_gib")
        if self.lora_target_modules == []:
            raise ValueError("lora_target_modules is empty: leave it out for all linear layers")
        if self.bf16 and self.dtype == "float64":
            raise ValueError("bf16: mixed precision takes no weights of dtype: float64")

    @property
    def samples_per_step(self) -> int:
        """Samples of one device in one optimiser step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def steps_per_window(self) -> int:
        """Optimiser steps that are prepared together."""
        return 1
