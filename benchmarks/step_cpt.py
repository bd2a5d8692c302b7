"""One step of stage 1: a long policy before each of its samples, all tokens of text scored.

`fastmpi` and `packed` are `CPTTrainer.train()`, one step at a time, with equal prefixes merged and
with every sample a root. `trl` is transformers' own model with TRL's head, which never holds all
logits, over one plain row for each sample: nothing is padded, and no row attends in vain. Its rows
are token ids and pixels before anything is timed; the trainer makes its own on a thread.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastmpi.benchmarks.harness import Outputs, Run
from fastmpi.benchmarks.peers import load
from fastmpi.benchmarks.step_loop import Laps
from fastmpi.benchmarks.step_rows import (
    SEED,
    Row,
    before_shuffling,
    large_picture_processor,
    random_policy,
    random_row,
    words,
)
from fastmpi.benchmarks.step_run import (
    MAX_GRAD_NORM,
    StepRun,
    clipped,
    flat_copy,
    watch_first_step,
)
from fastmpi.benchmarks.update_rollouts import random_model
from fastmpi.config import CPTConfig
from fastmpi.data.prompts import render, response_text
from fastmpi.data.samples import Sample
from fastmpi.models.attention import STOCK_ATTENTION
from fastmpi.models.forest_model import ForestModel
from fastmpi.policies.policy import Policy
from fastmpi.stages.cpt import CPTTrainer

LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class CPTShape:
    """One case. policy, image, question, reasoning: tokens of each part. samples: of a step.
    steps: those whose pictures come once. exact: whether float64 fits."""

    name: str
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    dtype: torch.dtype
    policy: int
    image: int
    question: int
    reasoning: int
    samples: int = 16
    steps: int = 12
    checkpointing: bool = False
    exact: bool = True


@dataclass(frozen=True, eq=False)
class CPTInputs:
    """model: with its starting weights, which no arm changes. rows: in the order in which all arms
    take them."""

    shape: CPTShape
    model: ForestModel
    policy: Policy
    rows: Sequence[Row]

    def samples(self, step: int) -> list[Sample]:
        """What step 0, 1, ... trains on."""
        count = self.shape.samples
        place = step % self.shape.steps * count
        return [self._sample(row) for row in self.rows[place : place + count]]

    def _sample(self, row: Row) -> Sample:
        processor = self.model.processor
        prompt = render(row, processor, self.policy)
        response = processor.encode_response(response_text(row))
        return Sample.all_text(prompt, response, processor.image_token_id)


def make_cpt_inputs(shape: CPTShape, device: torch.device) -> CPTInputs:
    """A random model, and rows of noise and random words."""
    model = random_model(shape.text, shape.vision, device, shape.dtype)
    model.processor = large_picture_processor(model.processor)
    rng = np.random.default_rng(0)
    policy = random_policy(rng, shape.policy)
    rows = [
        {
            **random_row(rng, number, shape.image, shape.question),
            "reasoning": words(rng, shape.reasoning),
            "answer": "1",
        }
        for number in range(shape.samples * shape.steps)
    ]
    return CPTInputs(shape, model, policy, rows)


def ours(inputs: CPTInputs, *, share: bool = True) -> Run:
    """`CPTTrainer`, with prefixes merged or not."""
    shape = inputs.shape
    model = ForestModel(copy.deepcopy(inputs.model.base), inputs.model.processor).train()
    laps, learned, folder = Laps(model.device), {}, tempfile.TemporaryDirectory()
    settings = CPTConfig(
        output_dir=folder.name,
        per_device_train_batch_size=shape.samples,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=MAX_GRAD_NORM,
        max_steps=1_000_000,
        share_prefix=share,
        gradient_checkpointing=shape.checkpointing,
        seed=SEED,
        eval_steps=1,  # the trainer calls `evaluate` after every step
        save_strategy="no",
        disable_tqdm=True,
    )
    policies = {inputs.policy.policy_id: inputs.policy}
    trainer = CPTTrainer(model, settings, before_shuffling(inputs.rows), policies=policies)
    watch_first_step(trainer, learned)

    def loop(step_done: Callable[[], None]) -> None:
        trainer.evaluate = lambda *_: step_done() or {}
        with folder:
            trainer.train()

    return StepRun(loop, laps, learned)


def trl(inputs: CPTInputs) -> Run:
    """One plain row for each sample through transformers' model and TRL's head."""
    add_head = load("trl.trainer.utils").add_fused_lm_head
    model = copy.deepcopy(inputs.model.base).train()
    model.set_attn_implementation({"text_config": STOCK_ATTENTION})
    if inputs.shape.checkpointing:
        model.gradient_checkpointing_enable()
    add_head(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    steps = [inputs.samples(step) for step in range(inputs.shape.steps)]
    number = itertools.count()

    def run() -> Outputs:
        at = next(number)
        loss = add_gradients(model, inputs, steps[at % len(steps)], _trl_loss)
        nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        learned = {} if at else {"gradient": flat_copy(trained), "loss": loss}
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return learned

    return run


def exact(inputs: CPTInputs) -> Outputs:
    """Loss and clipped gradient of the first step: transformers' model in float64, all logits."""
    model = copy.deepcopy(inputs.model.base).double().train()
    model.set_attn_implementation({"text_config": STOCK_ATTENTION})
    loss = add_gradients(model, inputs, inputs.samples(0), _loss_of_logits)
    trained = [p for p in model.parameters() if p.requires_grad]
    return {"gradient": clipped(flat_copy(trained)), "loss": loss}


RowLoss = Callable[[Any, dict[str, Any], Tensor, float], Tensor]


def add_gradients(
    model: Any, inputs: CPTInputs, samples: Sequence[Sample], loss_of: RowLoss
) -> Tensor:
    """Backward of each sample's share of the loss; returns the loss of all. loss_of: (model, what
    its forward takes, labels, weight of all samples) -> the share."""
    family, processor = inputs.model.family, inputs.model.processor
    total = sum(float(sample.weights.sum()) for sample in samples)
    losses = []
    for sample in samples:
        ids = torch.from_numpy(sample.ids)[None].to(inputs.model.device)
        pictured = family.image_inputs(model, sample.images)
        types = family.token_inputs(ids == processor.image_token_id)
        unscored = torch.from_numpy(sample.weights == 0).to(ids.device)
        row = {"input_ids": ids, "use_cache": False, **pictured, **types}
        loss = loss_of(model, row, ids.masked_fill(unscored, -100), total)
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def _trl_loss(model: Any, row: dict[str, Any], labels: Tensor, total: float) -> Tensor:
    return model(**row, labels=labels, fused_lm_head=True, num_items_in_batch=total).loss


def _loss_of_logits(model: Any, row: dict[str, Any], labels: Tensor, total: float) -> Tensor:
    logits = model(**row).logits[0, :-1]
    return cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum") / total
