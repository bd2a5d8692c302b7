"""The settings of the three stages, as dataclasses that refuse what they do not understand.

Names and defaults are TRL's and transformers' wherever these have the setting; what only this
library has is said in its docstring. The string below a field is its documentation, and the help of
the command line. How they are read, and what is refused, is in `settings.py`.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Literal

from fastmpi.settings import Settings

# Settings a resumed run may change: they decide where and how fast, or how far, never what.
# The cut into micro-batches is one of them, because a step does not depend on it, and so is that
# into processes: of how much a device takes, only the product over all of them must stay.
FREE_ON_RESUME = frozenset(
    {
        "attention_backend",
        "ddp_timeout",
        "disable_tqdm",
        "eval_steps",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "dataloader_prefetch_factor",
        "log_completions",
        "logging_steps",
        "max_steps",
        "max_tokens_per_microbatch",
        "num_train_epochs",
        "output_dir",
        "per_device_train_batch_size",
        "profile",
        "report_to",
        "save_steps",
        "save_strategy",
        "save_total_limit",
        "share_prefix",
        "steps_per_generation",
        "trust_remote_code",
        "vllm_enable_sleep_mode",
        "vllm_gpu_memory_utilization",
        "vllm_max_model_length",
        "vllm_server_base_url",
        "vllm_server_timeout",
        "vllm_weights_dir",
    }
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

    max_tokens_per_microbatch: int = 16384
    """Most tokens of one forward pass, after equal prefixes are merged. No sample may be longer."""

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

    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a third more time."""

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

    ddp_timeout: int = 1800
    """Seconds that a process waits for the others before it gives up. A process that dies ends the
    others at once; this is for those that hang."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model's folder."""

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_at_least(
            self,
            1,
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "max_tokens_per_microbatch",
            "lora_r",
            "lora_alpha",
            "logging_steps",
            "save_steps",
            "ddp_timeout",
        )
        _check_at_least(
            self,
            0,
            "learning_rate",
            "warmup_steps",
            "weight_decay",
            "adam_epsilon",
            "max_grad_norm",
            "eval_steps",
            "dataloader_prefetch_factor",
            "seed",
        )
        if self.max_steps != -1:
            _check_at_least(self, 1, "max_steps")
        if self.num_train_epochs <= 0:
            raise ValueError(f"num_train_epochs must be positive, not {self.num_train_epochs}")
        if self.save_total_limit is not None:
            _check_at_least(self, 1, "save_total_limit")
        _check_between(self, 0, 1, "adam_beta1", "adam_beta2", "warmup_ratio")
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("give warmup_steps or warmup_ratio, not both")
        unknown = set(self.report_to) - {"tensorboard", "wandb"}
        if unknown:
            raise ValueError(f"report_to: {sorted(unknown)[0]!r} is not one of tensorboard, wandb")

    @property
    def samples_per_step(self) -> int:
        """Samples of one device in one optimiser step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def steps_per_window(self) -> int:
        """Optimiser steps that are prepared together."""
        return 1


@dataclass(kw_only=True)
class CPTConfig(TrainingConfig):
    """Stage 1, visually-masked continual pretraining: the policy is read, every word counts."""

    learning_rate: float = 2e-5
    """Peak learning rate of AdamW."""


@dataclass(kw_only=True)
class SFTConfig(TrainingConfig):
    """Stage 2, fine-tuning on responses without the policy."""

    learning_rate: float = 2e-5
    """Peak learning rate of AdamW."""

    use_peft: bool = True
    """Train a LoRA adapter instead of the weights; it is merged into the saved model."""

    reasoning: bool = True
    """Train on reasoning and answer (chain of thought); False: on the answer alone (direct SFT)."""


@dataclass(kw_only=True)
class PolicyRolloutConfig(TrainingConfig):
    """Stage 3, reinforcement learning on groups of policy-free and policy-aware responses."""

    learning_rate: float = 1e-6
    """Peak learning rate of AdamW."""

    per_device_train_batch_size: int = 16
    """Responses of one device, of both arms; samples per step must hold whole groups. TRL's default
    is 8, one group of its eight generations; one group has sixteen here."""

    num_generations: int = 8
    """Policy-free responses of a group: sampled from (image, question)."""

    num_policy_generations: int | None = None
    """Policy-aware responses of a group: sampled from (policy, image, question). None: as many as
    num_generations; 0: plain group-relative training, budget-matched by more num_generations."""

    max_completion_length: int = 256
    """Most tokens of a response."""

    temperature: float = 1.0
    """Temperature of sampling, and of every log-probability of the loss."""

    top_p: float = 1.0
    """Sample from the most likely tokens that hold this much probability."""

    top_k: int = 0
    """Sample from this many most likely tokens; 0: from all."""

    beta: float = 0.0
    """Weight of the divergence from the stage's starting model; above 0 full fine-tuning keeps a
    frozen copy of it."""

    epsilon: float = 0.2
    """The probability ratio is clipped at 1 - epsilon."""

    epsilon_high: float | None = None
    """The probability ratio is clipped at 1 + epsilon_high; None: as epsilon. DAPO takes 0.28."""

    delta: float | None = None
    """Upper bound of the ratio where the advantage is negative (two-sided clipping); None: none."""

    loss_type: Literal["grpo", "dapo", "bnpo", "dr_grpo"] = "dapo"
    """How tokens are averaged. "grpo": mean of a response, then of the responses; "dapo" and
    "bnpo": mean over the tokens of the optimiser step; "dr_grpo": sum over a response divided by
    max_completion_length, then mean of the responses."""

    importance_sampling_level: Literal["token", "sequence"] = "token"
    """Ratios per token, or one per response (GSPO)."""

    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Standard deviation that divides the advantages."""

    reward_weights: list[float] | None = None
    """Weight of each reward function; None: 1 each."""

    accuracy_reward: str | None = None
    """Name of the reward function that says right or wrong: logged as accuracy per arm, and what
    dynamic sampling filters on. None: the first reward function."""

    num_iterations: int = 1
    """Times that each window of responses is used."""

    steps_per_generation: int | None = None
    """A window holds this many times per_device_train_batch_size responses a device; a multiple of
    gradient_accumulation_steps, which is what None means."""

    mask_truncated_completions: bool = False
    """Leave responses that reached max_completion_length out of the loss."""

    dynamic_sampling: bool = False
    """Replace groups whose mean accuracy lies outside dynamic_sampling_range by groups of further
    rows (DAPO)."""

    dynamic_sampling_range: tuple[float, float] = (0.01, 0.99)
    """Mean accuracies of a group, over both arms, that dynamic sampling keeps (open interval)."""

    max_resample_batches: int = 20
    """Batches of rows sampled to fill one window; the run stops early when they do not suffice."""

    log_completions: bool = False
    """Write the responses of every logged step to `completions/completions_{step}.parquet`."""

    use_vllm: bool = False
    """Sample with vLLM (`pip install fastmpi[vllm]`) instead of the model itself. It gets the
    weights before each window that follows an update."""

    vllm_mode: Literal["colocate", "server"] = "colocate"
    """"colocate": vLLM in this process, on its GPU; "server": `vllm serve` elsewhere."""

    vllm_server_base_url: str | None = None
    """Address of the server, http://host:port."""

    vllm_server_timeout: float = 240.0
    """Seconds to wait for the server to be up."""

    vllm_weights_dir: str | None = None
    """Folder through which the server gets the weights; it must see it under the same path. None:
    output_dir/vllm_weights."""

    vllm_gpu_memory_utilization: float = 0.3
    """Share of the GPU's memory for vLLM in this process."""

    vllm_max_model_length: int | None = None
    """Longest prompt with its response that vLLM in this process makes room for; None: the model's
    own limit."""

    vllm_enable_sleep_mode: bool = False
    """vLLM in this process gives its memory back during the update."""

    vllm_importance_sampling_correction: bool = True
    """Multiply the loss of policy-free responses by the ratio of training's probability to vLLM's;
    costs one more forward pass where windows last one step. Policy-aware ones never are."""

    vllm_importance_sampling_mode: Literal[
        "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = "sequence_mask"
    """Ratios of tokens or of whole responses; "truncate": clipped to the bounds, "mask": 0 outside
    of them."""

    vllm_importance_sampling_clip_max: float | None = 3.0
    """Upper bound of these ratios; None: none."""

    vllm_importance_sampling_clip_min: float | None = None
    """Lower bound of these ratios; None: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_at_least(
            self,
            1,
            "num_generations",
            "max_completion_length",
            "num_iterations",
            "max_resample_batches",
        )
        _check_at_least(self, 0, "top_k", "beta", "epsilon")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}")
        if self.num_policy_generations is not None:
            _check_at_least(self, 0, "num_policy_generations")
        if self.group_size < 2:
            raise ValueError(
                "a group needs at least 2 responses: num_generations + num_policy_generations is 1"
            )
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        if self.delta is not None and self.delta <= 1 + high:
            raise ValueError(f"delta must be above 1 + epsilon_high = {1 + high}, not {self.delta}")
        low, high = self.dynamic_sampling_range
        if low >= high:
            raise ValueError(f"dynamic_sampling_range: {low} is not below {high}")
        self._check_group_sizes()
        if self.use_vllm:
            self._check_vllm()

    def _check_vllm(self) -> None:
        if self.vllm_mode == "server" and not self.vllm_server_base_url:
            raise ValueError("vllm_mode: server needs vllm_server_base_url")
        if not 0.01 <= self.temperature <= 2:
            raise ValueError(f"use_vllm: temperature must be in [0.01, 2], not {self.temperature}")
        if self.temperature != 1 and (self.top_p < 1 or self.top_k):
            raise ValueError(
                "use_vllm: at a temperature other than 1 vLLM gives no log-probabilities over all "
                "tokens when top_p or top_k cut some; take temperature 1, or neither of the two"
            )
        if not 0 < self.vllm_gpu_memory_utilization <= 1:
            raise ValueError(
                f"vllm_gpu_memory_utilization must be in (0, 1], not "
                f"{self.vllm_gpu_memory_utilization}"
            )
        if self.vllm_importance_sampling_correction:
            self._check_importance_sampling()

    def _check_importance_sampling(self) -> None:
        mode = self.vllm_importance_sampling_mode
        low, high = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        if low is None and high is None:
            raise ValueError(
                "vllm_importance_sampling_correction needs vllm_importance_sampling_clip_max or "
                "vllm_importance_sampling_clip_min"
            )
        if not (0.0 if low is None else low) < (float("inf") if high is None else high):
            raise ValueError(
                f"vllm_importance_sampling_clip_max: {high} is not above "
                f"{'0' if low is None else f'vllm_importance_sampling_clip_min = {low}'}"
            )
        if low is not None and low < 0:
            raise ValueError(f"vllm_importance_sampling_clip_min must be at least 0, not {low}")
        if mode == "token_mask" and self.importance_sampling_level == "sequence":
            raise ValueError(
                "vllm_importance_sampling_mode: token_mask leaves tokens out of the mean that "
                "importance_sampling_level 'sequence' takes; use a sequence mode or token_truncate"
            )

    @property
    def corrects_sampling(self) -> bool:
        """Whether policy-free responses carry importance weights."""
        return self.use_vllm and self.vllm_importance_sampling_correction

    def _check_group_sizes(self) -> None:
        if self.samples_per_step % self.group_size:
            raise ValueError(
                "per_device_train_batch_size * gradient_accumulation_steps = "
                f"{self.samples_per_step} responses do not hold whole groups of {self.group_size} "
                f"({self.num_generations} policy-free + {self.policy_generations} policy-aware)"
            )
        if self.generation_steps % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation = {self.steps_per_generation} is not a multiple of "
                f"gradient_accumulation_steps = {self.gradient_accumulation_steps}"
            )

    @property
    def policy_generations(self) -> int:
        """Policy-aware responses of a group."""
        aware = self.num_policy_generations
        return self.num_generations if aware is None else aware

    @property
    def group_size(self) -> int:
        """Responses of a group, both arms."""
        return self.num_generations + self.policy_generations

    @property
    def generation_steps(self) -> int:
        """steps_per_generation with its default filled in."""
        return self.steps_per_generation or self.gradient_accumulation_steps

    @property
    def steps_per_window(self) -> int:
        """Optimiser steps that use one window of responses once."""
        return self.generation_steps // self.gradient_accumulation_steps

    @property
    def groups_per_window(self) -> int:
        """Groups that one device samples for a window."""
        return self.per_device_train_batch_size * self.generation_steps // self.group_size


def _check_at_least(config: TrainingConfig, low: float, *names: str) -> None:
    for name in names:
        if not getattr(config, name) >= low:
            raise ValueError(f"{name} must be at least {low}, not {getattr(config, name)}")


def _check_between(config: TrainingConfig, low: float, high: float, *names: str) -> None:
    for name in names:
        if not low <= getattr(config, name) <= high:
            raise ValueError(f"{name} must be in [{low}, {high}], not {getattr(config, name)}")


def _check_choices(config: TrainingConfig) -> None:
    for name, hint in typing.get_type_hints(type(config)).items():
        choices = typing.get_args(hint)
        if typing.get_origin(hint) is Literal and getattr(config, name) not in choices:
            raise ValueError(
                f"{name}: {getattr(config, name)!r} is not one of {', '.join(choices)}"
            )
