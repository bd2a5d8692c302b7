"""A world small enough to train in: a tiny random model, two policies, ten rows, four pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

POLICIES = {
    "kavo": "policy kavo : C1 if red then C1.1 else Case 2 ; C1.1 if cube then Case 1 else Case 3",
    "milo": "policy milo : C1 if blue then Case 3 else Case 4 end",
}


@dataclass
class World:
    """`trainer(stage, ...)` makes a stage's trainer on the world's model, rows and policies."""

    model: Path
    output: Path
    rows: list[dict[str, Any]]
    policies: Any

    def load(self, dtype: str = "float32") -> Any:
        from fastmpi.models.forest_model import ForestModel

        return ForestModel.from_pretrained(self.model, dtype=getattr(torch, dtype), probe=False)

    def trainer(self, stage: str, rows: Any = None, model: Any = None, **settings: Any) -> Any:
        from fastmpi import config
        from fastmpi.stages import cpt, rl, sft

        makers = {
            "cpt": (cpt.CPTTrainer, config.CPTConfig),
            "sft": (sft.SFTTrainer, config.SFTConfig),
            "rl": (rl.PolicyRolloutTrainer, config.PolicyRolloutConfig),
        }
        make, make_config = makers[stage]
        arguments = {
            name: settings.pop(name)
            for name in ("reward_funcs", "evaluate", "policies", "engine", "eval_dataset")
            if name in settings
        }
        if stage == "rl":
            arguments.setdefault("reward_funcs", [letters, short])
        arguments.setdefault("policies", self.policies)
        settings = {"output_dir": str(self.output / stage), **DEFAULTS[stage], **settings}
        rows = self.rows if rows is None else rows
        return make(model or self.load(), make_config(**settings), rows, **arguments)


COMMON = {
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "max_tokens_per_microbatch": 400,
}
DEFAULTS = {
    "cpt": {**COMMON, "per_device_train_batch_size": 4},
    "sft": {**COMMON, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
    "rl": {
        **COMMON,
        "num_generations": 3,
        "per_device_train_batch_size": 6,
        "gradient_accumulation_steps": 2,
        "max_completion_length": 6,
    },
}


def letters(completions: list[str], **_: Any) -> list[float]:
    """A reward that a random model's responses differ in."""
    return [float(len(text) % 4 in (1, 2)) for text in completions]


def short(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [1 / len(ids) for ids in completion_ids]


@pytest.fixture
def world(tiny_folder: Callable[[str], Path], tmp_path: Path) -> World:
    from fastmpi.policies import Policy, PolicySet

    rng = np.random.default_rng(0)
    pictures = [
        PIL.Image.fromarray(rng.integers(0, 255, (56, 56, 3), dtype=np.uint8)) for _ in range(4)
    ]
    rows = [
        {
            "id": f"row-{i}",
            "policy_id": ["kavo", "milo"][i % 2],
            "images": [pictures[i % 4]],
            "prompt": f"question {['kavo', 'milo'][i % 2]}",
            "reasoning": "C1 red yes" if i % 3 else "C1 blue no C1.1 cube yes",
            "answer": f"Case {i % 3 + 1}",
        }
        for i in range(10)
    ]
    policies = [
        Policy(name, [{"role": "system", "content": text}]) for name, text in POLICIES.items()
    ]
    folder = tiny_folder("qwen2_5_vl")
    return World(folder, tmp_path / "out", rows, PolicySet.from_policies(policies))


@pytest.fixture
def without_fp32_casts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Norms in their input's own precision: the model's casts would hide errors below 1e-7."""
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

    def rms_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (
            x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        )

    for name in ("Qwen2_5_VLRMSNorm", "Qwen2RMSNorm"):
        if hasattr(modeling, name):
            monkeypatch.setattr(getattr(modeling, name), "forward", rms_norm)
    yield
