"""PrefixGrouper's update: one padded row for each prompt, [prompt, response, response, ...].

Legend: B prompts, L rows of the longest of them with its responses, R the longest response, S
samples. Its scheme: linears once for each token; attention of the prompts, then of the responses
with the prompts' keys and values repeated for each; all logits of the responses at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence

from fastmpi.benchmarks.harness import Outputs, Run
from fastmpi.benchmarks.peers import load
from fastmpi.benchmarks.update_inputs import UpdateInputs, clipped_loss
from fastmpi.data.batch import ForestBatch
from fastmpi.models.features import ImageFeatures


def prefix_grouper(inputs: UpdateInputs) -> Run:
    """The update in PrefixGrouper's layout, attention by torch's SDPA, pictures encoded once."""
    grouper = load("prefix_grouper").PrefixGrouper

    def run() -> Outputs:
        inputs.gradient.zero_()
        images = [image for prompt in inputs.rollouts.prompts for image in prompt.images]
        features = inputs.model.encode_images(images)
        losses = [_backward(inputs, part, grouper, features) for part in _prompt_batches(inputs)]
        return inputs.outputs(torch.stack(losses).sum())

    return run


def _prompt_batches(inputs: UpdateInputs) -> list[range]:
    """Samples of each micro-batch: whole prompts, as many as the budget holds, at least one."""
    each = inputs.shape.responses
    total = len(inputs.rollouts.samples)
    longest = inputs.shape.image_tokens + inputs.shape.question_tokens
    row = longest + each * inputs.shape.response_tokens[1]
    step = each * max(1, inputs.shape.budget // row)
    return [range(start, min(start + step, total)) for start in range(0, total, step)]


def _backward(inputs: UpdateInputs, part: range, grouper: Any, features: ImageFeatures) -> Tensor:
    """Adds the gradient of samples `part`; returns their share of the loss."""
    rollouts, device = inputs.rollouts, inputs.gradient.device
    samples = [rollouts.samples[s] for s in part]
    packed = ForestBatch.from_samples(samples, inputs.model.processor, share=False).to(device)
    lengths = _lengths(inputs, part)
    layout = grouper(lengths, device=device)
    rows = _grouped_rows(lengths, packed.offsets.tolist()).to(device)  # (B, L)
    hidden = _hidden(inputs, packed, rows, GroupedPattern(layout), features)  # (B, L, H)
    _, _, suffix, mask = layout.split_output(hidden, include_prefix_last=1)  # (S, R + 1, H)
    logits = suffix[:, :-1] @ inputs.model.head.T
    targets = pad_sequence([torch.from_numpy(rollouts.response(s)) for s in part], batch_first=True)
    logprob = logits.float().log_softmax(-1).gather(2, targets.to(device)[..., None])[..., 0]
    scored = mask[:, 1:]
    sequences = torch.tensor(list(part), device=device)[:, None].expand_as(scored)
    loss = clipped_loss(logprob[scored], sequences[scored], rollouts)
    loss.backward()
    return loss.detach()


def _lengths(inputs: UpdateInputs, part: range) -> list[list[int]]:
    """(B) of prompt and responses, as PrefixGrouper wants them."""
    rollouts, each = inputs.rollouts, inputs.shape.responses
    groups = [part[start : start + each] for start in range(0, len(part), each)]
    return [
        [len(rollouts.prompts[group[0]].ids), *(len(rollouts.response(s)) for s in group)]
        for group in groups
    ]


def _grouped_rows(lengths: Sequence[Sequence[int]], offsets: Sequence[int]) -> Tensor:
    """(B, L) rows of the packed samples in PrefixGrouper's order, -1 for padding."""
    rows, sample = [], 0
    for prompt, *responses in lengths:
        parts = [torch.arange(offsets[sample], offsets[sample] + prompt)]
        for response in responses:
            parts.append(torch.arange(offsets[sample] + prompt, offsets[sample + 1]))
            assert len(parts[-1]) == response
            sample += 1
        rows.append(torch.cat(parts))
    return pad_sequence(rows, batch_first=True, padding_value=-1)


def _hidden(
    inputs: UpdateInputs, packed: ForestBatch, rows: Tensor, pattern: Any, features: ImageFeatures
) -> Tensor:
    """(B, L, H) final hidden states of the packed samples' rows (B, L); -1 is padding."""
    model, real = inputs.model, rows >= 0
    rows = rows.clamp(min=0)
    embeddings = model.base.get_input_embeddings()(packed.tokens[rows])
    shown = features.select([image.key for image in packed.images])
    feature_of = torch.full_like(packed.tokens, -1)
    feature_of[packed.image_rows] = packed.feature_rows
    pictured = real & (feature_of[rows] >= 0)
    places = pictured[..., None].expand_as(embeddings)
    rows_shown = shown.rows[feature_of[rows[pictured]]].to(embeddings.dtype)
    out = model.text_tower(
        inputs_embeds=embeddings.masked_scatter(places, rows_shown),
        position_ids=packed.position_ids[:, rows],
        attention_mask=None,
        use_cache=False,
        fastmpi_pattern=pattern,
    )
    return out.last_hidden_state


class GroupedPattern:
    """PrefixGrouper's attention for one micro-batch, as an `AttentionPattern` of the models."""

    def __init__(self, layout: Any) -> None:
        self.layout = layout
        self._masks: dict[int, Tensor] = {}

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q (B, Hq, L, D), k and v (B, Hkv, L, D) -> (B, L, Hq, D)."""
        return self.layout.forward(self._sdpa, q, k, v, scale=scale)

    def _sdpa(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        """One of its two calls. mask: (N, keys) which keys are real; queries are the last keys."""
        if k.shape[2] not in self._masks:
            self._masks[k.shape[2]] = _causal(mask, q.shape[2])
        visible = self._masks[k.shape[2]]
        out = scaled_dot_product_attention(q, k, v, visible, scale=scale, enable_gqa=True)
        return out.transpose(1, 2)


def _causal(mask: Tensor, queries: int) -> Tensor:
    """(N, 1, queries, keys): real keys up to the query itself; padding sees itself, not nothing."""
    keys = mask.shape[1]
    key = torch.arange(keys, device=mask.device)
    query = key[keys - queries :, None]
    return (mask[:, None, None, :] & (key <= query)) | (key == query)
