"""Settings of stage 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastmpi.config.checks import check_at_least
from fastmpi.config.sampling import SamplingConfig


@dataclass(kw_only=True)
class PolicyRolloutConfig(SamplingConfig):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(
            self,
            1,
            "num_generations",
            "num_iterations",
            "max_resample_batches",
        )
        check_at_least(self, 0, "beta", "epsilon")
        if self.num_policy_generations is not None:
            check_at_least(self, 0, "num_policy_generations")
        if self.steps_per_generation is not None:
            check_at_least(self, 1, "steps_per_generation")
        self._check_clipping()
        low, high = self.dynamic_sampling_range
        if low >= high:
            raise ValueError(f"dynamic_sampling_range: {low} is not below {high}")
        self._check_group_sizes()
        if self.corrects_sampling:
            self._check_correction()

    def _check_clipping(self) -> None:
        if self.epsilon_high is not None:
            check_at_least(self, 0, "epsilon_high")
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        if self.delta is not None and self.delta <= 1 + high:
            raise ValueError(f"delta must be above 1 + epsilon_high = {1 + high}, not {self.delta}")

    def _check_correction(self) -> None:
        mode, level = self.vllm_importance_sampling_mode, self.importance_sampling_level
        if mode == "token_mask" and level == "sequence":
            raise ValueError(
                "vllm_importance_sampling_mode: token_mask leaves tokens out of the mean that "
                "importance_sampling_level 'sequence' takes; use a sequence mode or token_truncate"
            )

    def _check_group_sizes(self) -> None:
        if self.group_size < 2:
            raise ValueError(
                "a group needs at least 2 responses: num_generations + num_policy_generations is 1"
            )
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
