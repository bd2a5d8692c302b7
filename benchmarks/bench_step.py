"""`step`: a whole optimiser step: rollout, scoring and update beside TRL's `GRPOTrainer`, and the
step of stage 1 beside repeated rows.

Arms are trainers' own `train()`, one step at a time (but for `trl` of stage 1, a plain loop), with
weights, an AdamW and pictures of their own. All arms of a case have the same starting weights,
rows, rewards and settings, and every response has the same length. `error` is that of the gradient
of the first step, which learns from given responses, against plain rows in float64.

`grpo`: one group of 16 responses to (image, question); all arms do the same. `policyrollout`: 8
responses to that and 8 to (policy, image, question), pooled, and all learned after (image,
question) alone. TRL has no such group. `trl` is the nearest that it has: two groups of 8, the
second with the policy in its prompts, also in its update, so that it learns something else, as its
error says. `trl, no policy` is 16 responses to (image, question): the same gradient from given
responses, and no policy anywhere. `cpt`: 16 samples after one policy of 4,096 tokens; see
`step_cpt.py`.

Both sample with the model that is trained, in this process: ours with its built-in engine, TRL
with transformers' `generate`. Engines behind vLLM are not compared here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch

from fastmpi.benchmarks import step_arms, step_cpt
from fastmpi.benchmarks.harness import Case, Run
from fastmpi.benchmarks.step_cpt import CPTShape, make_cpt_inputs
from fastmpi.benchmarks.step_inputs import StepShape, make_inputs
from fastmpi.benchmarks.update_rollouts import (
    QWEN_3B_TEXT,
    QWEN_3B_VISION,
    SMALL_TEXT,
    SMALL_VISION,
)

RUNS = {"cuda": 3, "cpu": 5}  # of seconds, up to half a minute
WARM_UPS = 2  # the first is the step from given responses
# Three passes over 70,000 tokens each: wide layers would take minutes on one core.
NARROW_TEXT = {
    **SMALL_TEXT,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 1024,
}


def cases(device: torch.device, small: bool) -> list[Case]:
    """Small models of a few million parameters; on CUDA Qwen2.5-VL-3B's shapes."""
    shapes, cpt = (_small(), _small_cpt()) if small else (_qwen(), _qwen_cpt())
    return [*(case_of(shape, device) for shape in shapes), cpt_case_of(cpt, device)]


def _small() -> list[StepShape]:
    sizes = {"text": SMALL_TEXT, "vision": SMALL_VISION, "dtype": torch.float32}
    tokens = {"image": 256, "question": 32, "response": 64}
    return _both("small", {**sizes, **tokens}, policy=256)


def _qwen() -> list[StepShape]:
    sizes = {"text": QWEN_3B_TEXT, "vision": QWEN_3B_VISION, "dtype": torch.bfloat16}
    tokens = {"image": 1024, "question": 128, "response": 256}
    how = {"checkpointing": True, "exact": False}
    return _both("3B", {**sizes, **tokens, **how}, policy=1024)


def _both(model: str, settings: Mapping[str, Any], policy: int) -> list[StepShape]:
    """One group of 16, and one of 8 + 8."""
    tokens = f"image={settings['image']} R={settings['response']}"
    alone, mixed = (
        f"{model} grpo {tokens} 16",
        f"{model} policyrollout {tokens} 8+8 policy={policy}",
    )
    return [
        StepShape(name=alone, policy=0, free=16, aware=0, **settings),
        StepShape(name=mixed, policy=policy, free=8, aware=8, **settings),
    ]


def _small_cpt() -> CPTShape:
    return CPTShape(
        name="small cpt policy=4096 x16",
        text=NARROW_TEXT,
        vision={**SMALL_VISION, "out_hidden_size": 64},
        dtype=torch.float32,
        policy=4096,
        image=64,
        question=32,
        reasoning=64,
    )


def _qwen_cpt() -> CPTShape:
    return CPTShape(
        name="3B cpt policy=4096 x16",
        text=QWEN_3B_TEXT,
        vision=QWEN_3B_VISION,
        dtype=torch.bfloat16,
        policy=4096,
        image=1024,
        question=64,
        reasoning=128,
        checkpointing=True,
        exact=False,
    )


def case_of(shape: StepShape, device: torch.device) -> Case:
    """All arms of one shape of stage 3."""
    inputs = cache(partial(make_inputs, shape, device))
    arms: dict[str, Callable[[], Run]] = {"fastmpi": lambda: step_arms.ours(inputs())}
    if shape.aware:
        arms["trl"] = lambda: step_arms.trl(inputs(), in_sight=True)
        arms["trl, no policy"] = lambda: step_arms.trl(inputs())
    else:
        arms["trl"] = lambda: step_arms.trl(inputs())
    wanted = (lambda: inputs().exact()) if shape.exact else None
    counts = {"sampled_tokens": shape.responses * shape.response}
    return Case(shape.name, arms, exact=wanted, counts=counts, warm_ups=WARM_UPS)


def cpt_case_of(shape: CPTShape, device: torch.device) -> Case:
    """All arms of one shape of stage 1."""
    inputs = cache(partial(make_cpt_inputs, shape, device))
    arms: dict[str, Callable[[], Run]] = {
        "fastmpi": lambda: step_cpt.ours(inputs()),
        "packed": lambda: step_cpt.ours(inputs(), share=False),
        "trl": lambda: step_cpt.trl(inputs()),
    }
    wanted = (lambda: step_cpt.exact(inputs())) if shape.exact else None
    return Case(shape.name, arms, exact=wanted, warm_ups=WARM_UPS)
