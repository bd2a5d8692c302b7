"""The stages on a GPU: what they touch lies there, in every precision."""

from __future__ import annotations

import math

import pytest

pytestmark = pytest.mark.gpu

STAGES = {
    "cpt": {"freeze_vision": False, "freeze_merger": False},
    "sft": {},
    "rl": {"beta": 0.1, "num_iterations": 2},  # old and reference log-probs too
    "rl of sequences": {"importance_sampling_level": "sequence"},
}
PRECISIONS = {
    "fp32": {"use_peft": False},
    "mixed": {"use_peft": False, "bf16": True, "gradient_checkpointing": True},
    "adapter": {"use_peft": True, "bf16": True, "gradient_checkpointing": True},
    "bf16": {"use_peft": False, "dtype": "bfloat16"},
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_training(world, stage, precision):
    settings = {**STAGES[stage], **PRECISIONS[precision], "max_steps": 2}
    model = world.load(settings.pop("dtype", "float32"))
    assert model.device.type == "cuda"
    if settings["use_peft"]:
        settings |= {"freeze_vision": True, "freeze_merger": True}
    result = world.trainer(stage.split()[0], model=model, **settings).train()
    assert result.global_step == 2 and math.isfinite(result.metrics["loss"])
    assert 0 < result.metrics["grad_norm"] < math.inf
