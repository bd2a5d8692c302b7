"""Settings of the stages that learn from given text."""

from __future__ import annotations

from dataclasses import dataclass

from fastmpi.config.training import TrainingConfig


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
