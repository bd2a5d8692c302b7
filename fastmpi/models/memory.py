"""Bytes that a training step and a rollout hold, by formula.

Legend: T rows of a micro-batch, U distinct rows that are scored, L layers, H hidden size, Q and K
query and key widths (heads times head dimension), I width of the MLP, V vocabulary; r bytes of the
residual stream (the weights' type), c bytes of what linears compute in (bfloat16 under autocast).

A layer keeps for its backward pass, in bytes a row:

    2 norms            2 (4 H + r H + 4)       input in float32, normed (if weights train), 1 / rms
    q, k, v            c H, under autocast 3 c H (each linear casts its own copy)
    attention          q c, output c, log-sum-exp 4 a head; keys and values 2 c K
    o_proj             c Q
    gate, up           c H, under autocast 2 c H
    MLP                4 c I                   gate, silu(gate), up, their product

Unusual: "sdpa" on the CPU copies the keys of a tile and its mask, which T alone does not tell, so
a batch comes with both (`BatchShape.of`). What an allocator rounds up or fragments is not counted.
The formulas of the "triton" backend follow from its code; they were not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastmpi.models.sizes import BatchShape, Precision, TextShape, Training
from fastmpi.reference.token_logprob import CHUNK_LOGITS

KERNEL_CHUNK_BYTES = 704 * 2**20  # of logits, in the kernels over the head


@dataclass(frozen=True)
class UpdateMemory:
    """Bytes of an optimiser step. layers: kept for the backward pass. working: what one layer's
    backward pass needs beside. head: logits and what is made of them. casts: weights in
    bfloat16 that autocast keeps, or of shards what a pass gathers."""

    weights: int
    reference: int
    gradients: int
    optimizer: int
    layers: int
    working: int
    head: int
    casts: int
    accumulates: bool

    @property
    def activations(self) -> int:
        return self.layers + self.casts

    @property
    def peak(self) -> int:
        """The most at any moment. Gradients of one single micro-batch come to be while what was
        kept goes, so they never meet; those of several do."""
        fixed = self.weights + self.reference + self.optimizer
        start = self.activations + max(self.head, self.working)
        if self.accumulates:
            return fixed + self.gradients + start
        return fixed + max(start, self.gradients + self.working)


def update_memory(
    text: TextShape,
    precision: Precision,
    training: Training,
    batch: BatchShape,
    *,
    checkpointing: bool,
    microbatches: int = 1,
    fused: bool = False,
) -> UpdateMemory:
    """An optimiser step whose largest micro-batch is `batch`. fused: the kernels of CUDA. The
    vision tower is frozen, so it keeps nothing."""
    layer = layer_bytes(text, precision, training, batch)
    layers = text.layers * layer
    casts = text.linear_parameters * precision.compute if precision.autocast else 0
    working = backward_bytes(text, precision, batch)
    if checkpointing:
        inputs = text.layers * batch.rows * text.hidden * precision.weights
        layers, casts = inputs, casts // text.layers
        working += layer
    if training.shards > 1:
        casts = gathered_bytes(text, precision, training)
    held = training.parameters * precision.weights // training.shards
    trained = training.trained * precision.weights // training.shards
    return UpdateMemory(
        weights=held,
        reference=held * training.reference,
        gradients=trained,
        optimizer=2 * trained,
        layers=layers + around_bytes(text, precision, training, batch),
        working=working,
        head=head_bytes(text, precision, training, batch, fused=fused),
        casts=casts,
        accumulates=microbatches > 1,
    )


def gathered_bytes(text: TextShape, precision: Precision, training: Training) -> int:
    """Shards, whole: what is outside of the layers, and the next layer beside the running one, with
    gradients, those of a layer also in the type that they are added in."""
    layer = text.linear_parameters // text.layers
    outside = (training.parameters - text.linear_parameters) * precision.weights
    gradients = (precision.compute + precision.weights) * (not training.lora_rank)
    return outside * (1 + training.head) + layer * (2 * precision.compute + gradients)


def layer_bytes(
    text: TextShape, precision: Precision, training: Training, batch: BatchShape
) -> int:
    """What one layer keeps for its backward pass; see the module's docstring."""
    r, c = precision.weights, precision.compute
    copies = 5 if precision.autocast else 2  # of the inputs of q, k, v and of gate, up
    full = not training.lora_rank
    row = 2 * (4 * text.hidden + r * text.hidden * full + 4)
    row += copies * c * text.hidden + 4 * c * text.wide + c * text.query
    row += 2 * c * text.query + 4 * text.heads  # q, output, log-sum-exp
    if text.head_norms:
        width = text.query + text.key
        row += 4 * width + c * width * full + 4 * (text.heads + text.key_heads)
    row += training.adapters * training.lora_rank * c
    keys = batch.tile_keys or batch.rows
    return batch.rows * row + keys * 2 * c * text.key + batch.tile_pairs * c


def around_bytes(
    text: TextShape, precision: Precision, training: Training, batch: BatchShape
) -> int:
    """What is kept once: embeddings, the last norm, rotary tables, the tiles' masks and keys."""
    hidden = text.hidden * (2 * precision.weights + 4 + precision.weights * training.head)
    rotary = 2 * text.query // text.heads * precision.weights
    return batch.rows * (hidden + rotary) + batch.tile_pairs + 8 * batch.tile_keys


def backward_bytes(text: TextShape, precision: Precision, batch: BatchShape) -> int:
    """Gradients on their way through one layer, beyond what has been freed by then: two as wide as
    the MLP, two of the residual."""
    row = 2 * text.wide * precision.compute + 2 * text.hidden * precision.weights
    return batch.rows * row


def head_bytes(
    text: TextShape, precision: Precision, training: Training, batch: BatchShape, *, fused: bool
) -> int:
    """The head at its dearest. Plain torch: logits, log-probs, their exponentials and a product, of
    a chunk of rows, and the head in float32. Kernels: one chunk of logits, and the gradients of
    hidden states and head, which wait for that of the loss."""
    weight = text.vocabulary * text.hidden
    if fused:
        chunk = min(batch.scored * text.vocabulary * 4, KERNEL_CHUNK_BYTES)
        if training.head:
            chunk = max(chunk, min(batch.scored * text.vocabulary * 4, 2 * weight))
        waiting = batch.rows * text.hidden * precision.weights
        return chunk + waiting + weight * (4 + precision.weights) * training.head
    rows = min(batch.scored, max(1, CHUNK_LOGITS // text.vocabulary))
    exact = weight * precision.logits * (precision.compute < precision.logits)
    gradient = weight * precision.logits * training.head
    chosen = batch.scored * text.hidden * precision.logits
    return 4 * rows * text.vocabulary * precision.logits + exact + gradient + chosen


@dataclass(frozen=True)
class RolloutMemory:
    """Bytes of the built-in engine. shared: its keys and values, where each prompt is held once and
    what prompts begin with once for all; unshared: a copy for each response. reading: the prompts'
    forward pass. decoding: a step's logits and what draws from them, or partial results of a
    layer's attention, whichever is more."""

    shared: int
    unshared: int
    reading: int
    decoding: int

    @property
    def peak(self) -> int:
        return self.shared + max(self.reading, self.decoding)


def rollout_memory(
    text: TextShape,
    precision: Precision,
    *,
    held_tokens: int,
    read_tokens: int,
    prompt_lengths: Sequence[int],
    response_tokens: int,
    parts: int,
    logits_held: int,
) -> RolloutMemory:
    """held_tokens: that the engine has room for. read_tokens: of prompts, in one forward pass.
    prompt_lengths: of the prompt of each response that is written at the same time. parts: of one
    response's attention (`ops.decode_attention`). logits_held: tensors as large as the logits."""
    responses = len(prompt_lengths)
    token = text.key_value_bytes(precision)
    row = 4 * text.wide * precision.compute + 4 * text.hidden * precision.weights
    # a float32 result of each head, and its log-sum-exp
    attention = 4 * responses * parts * (text.query + text.heads)
    sampling = logits_held * responses * text.vocabulary * precision.logits
    return RolloutMemory(
        shared=held_tokens * token,
        unshared=(sum(prompt_lengths) + responses * (response_tokens - 1)) * token,
        reading=read_tokens * row,
        decoding=max(attention, sampling),
    )
