"""The update as peers make it, and in float64 as anyone would: one plain row for each sample.

Legend: S samples, P the longest prompt, R the longest response, H hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fastmpi.benchmarks.harness import Outputs, Run
from fastmpi.benchmarks.peers import load
from fastmpi.benchmarks.update_inputs import (
    UpdateInputs,
    clipped_loss,
    flat_gradient,
    stock_copy,
)
from fastmpi.benchmarks.update_rollouts import Rollouts
from fastmpi.models.forest_model import ForestModel

PADDING = 0


def trl(inputs: UpdateInputs) -> Run:
    """TRL's own `compute_loss` on padded rows: a picture's pixels once for each completion, the
    log-probs by its chunked head, which on the CPU runs over the prompts too. The padding was done
    before, when the completions were made."""
    trainer_class = load("trl.trainer.grpo_trainer").GRPOTrainer
    model = stock_copy(inputs.model)
    load("trl.trainer.utils").add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    trainer = _trl_trainer(trainer_class)
    batches = [_trl_rows(inputs, part) for part in _row_batches(inputs)]

    def run() -> Outputs:
        inputs.gradient.zero_()
        losses = []
        for batch in batches:
            loss = trainer.compute_loss(model, batch)
            loss.backward()
            losses.append(loss.detach())
        return inputs.outputs(torch.stack(losses).sum())

    return run


def _trl_trainer(trainer_class: Any) -> Any:
    """What TRL's loss reads of its trainer, at TRL's defaults."""
    from accelerate import Accelerator

    trainer = SimpleNamespace(
        accelerator=Accelerator(),
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(delta=None, steps_per_generation=1, use_bias_correction_kl=False),
        current_gradient_accumulation_steps=1,
        loss_type="dapo",
        importance_sampling_level="token",
        epsilon_low=0.2,
        epsilon_high=0.2,
        beta=0.0,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    for name in ("compute_loss", "_compute_loss", "_get_per_token_logps_and_entropies"):
        setattr(trainer, name, MethodType(getattr(trainer_class, name), trainer))
    return trainer


def _row_batches(inputs: UpdateInputs) -> list[range]:
    """Samples of each micro-batch: as many padded rows as the budget holds."""
    rollouts = inputs.rollouts
    prompt = max(len(prompt.ids) for prompt in rollouts.prompts)
    response = max(len(rollouts.response(s)) for s in range(len(rollouts.samples)))
    rows = max(1, inputs.shape.budget // (prompt + response))
    total = len(rollouts.samples)
    return [range(start, min(start + rows, total)) for start in range(0, total, rows)]


def _trl_rows(inputs: UpdateInputs, part: range) -> dict[str, Any]:
    """Samples `part` as TRL's trainer hands them to its loss: prompts padded on the left."""
    rollouts, device = inputs.rollouts, inputs.gradient.device
    prompts = [torch.from_numpy(rollouts.prompts[s].ids) for s in part]
    responses = [torch.from_numpy(rollouts.response(s)) for s in part]
    prompt_ids, prompt_mask = _padded(prompts, "left")
    completion_ids, completion_mask = _padded(responses, "right")
    images = [image for s in part for image in rollouts.prompts[s].images]
    is_image = prompt_ids == inputs.model.processor.image_token_id
    types = torch.cat([is_image, torch.zeros_like(completion_ids, dtype=torch.bool)], 1)
    tensors = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "advantages": rollouts.advantages[part.start : part.stop],
        "num_items_in_batch": torch.tensor(rollouts.num_scored_tokens),
        "pixel_values": torch.cat([image.pixels for image in images]).to(inputs.model.dtype),
        "image_grid_thw": torch.tensor([image.grid for image in images]),
        "mm_token_type_ids": types.int(),
    }
    moved = {name: tensor.to(device) for name, tensor in tensors.items()}
    return {**moved, "num_images": [len(rollouts.prompts[s].images) for s in part]}


def _padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """(S, L) ids and their mask, int64."""
    ids = pad_sequence(rows, batch_first=True, padding_value=PADDING, padding_side=side)
    ones = [torch.ones_like(row) for row in rows]
    return ids, pad_sequence(ones, batch_first=True, padding_side=side)


def exact(model: ForestModel, rollouts: Rollouts) -> Outputs:
    """Every sample alone through transformers' own model in float64. (Its norms still round to
    float32 inside: differences below 1e-7 mean nothing.)"""
    stock = copy.deepcopy(stock_copy(model)).double()  # parameters of its own
    stock.gradient_checkpointing_disable()
    gradient = flat_gradient(stock)
    losses = [_exact_row(stock, model, rollouts, s) for s in range(len(rollouts.samples))]
    return {"gradient": gradient, "loss": torch.stack(losses).sum()}


def _exact_row(stock: Any, model: ForestModel, rollouts: Rollouts, number: int) -> Tensor:
    """Adds one sample's gradient; returns its share of the loss."""
    sample, response = rollouts.samples[number], rollouts.response(number)
    ids = torch.from_numpy(sample.ids)[None].to(model.device)
    logits = stock(
        input_ids=ids,
        **model.family.image_inputs(stock, sample.images),
        **model.family.token_inputs(ids == model.processor.image_token_id),
        use_cache=False,
        logits_to_keep=len(response) + 1,
    ).logits
    targets = ids[0, -len(response) :]
    logprob = logits[0, :-1].log_softmax(-1).gather(1, targets[:, None])[:, 0]
    loss = clipped_loss(logprob, torch.full_like(targets, number), rollouts)
    loss.backward()
    return loss.detach()
