"""One micro-batch: samples merged into a forest, as tensors.

Legend: N tokens in the samples, T tokens after merging (T <= N), S samples, K placeholder rows,
M scores. A *score* is (row, target): the hidden state at `row` predicts the token `target`.
Every token has one parent, so the log-prob of flat token k given the path above it is one number
shared by all samples that pass through k; what belongs to a sample is gathered by `flat_index`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fastmpi.data.images import Image
from fastmpi.data.samples import Prompt, Sample
from fastmpi.ops.bins import plan_microbatches
from fastmpi.ops.forest import build_forest
from fastmpi.ops.positions import linear_positions, mrope_positions


class TokenRule(Protocol):
    """What a batch must know of a model; `Processor` is one."""

    image_token_id: int
    rope: str
    merge_size: int


@dataclass(frozen=True)
class Scores:
    """Merged scores: each (row, target) once.

    rows, targets: (M,) int64. weights: (M,) float32, summed over the samples that share the score.
    """

    rows: Tensor
    targets: Tensor
    weights: Tensor


@dataclass(frozen=True)
class SampleScores:
    """Scores in the samples' own order, one per sample and weighted token.

    rows, targets: (M,) int64. samples: (M,) int64 index into the batch's samples.
    index: (M,) int64 position in the sample. weights: (M,) float32.
    """

    rows: Tensor
    targets: Tensor
    samples: Tensor
    index: Tensor
    weights: Tensor


@dataclass(frozen=True)
class ForestBatch:
    """Samples merged into one flat sequence.

    tokens: (T,) int64, depth first. subtree_end: (T,) int32; query q sees key k exactly when
    `k <= q < subtree_end[k]`. parent: (T,) int64, -1 at roots. position_ids: (3, T) int64, each
    token's position in its own unshared row. image_rows: (K,) int64 flat rows of placeholders;
    feature_rows: (K,) int64 their rows in the features of `images`, concatenated.
    images: the distinct pictures. ids, weights, flat_index: (N,), samples concatenated;
    offsets: (S + 1,) where each begins. sample_ids: (S,) the caller's names for the samples.
    """

    tokens: Tensor
    subtree_end: Tensor
    parent: Tensor
    position_ids: Tensor
    image_rows: Tensor
    feature_rows: Tensor
    images: tuple[Image, ...]
    ids: Tensor
    weights: Tensor
    flat_index: Tensor
    offsets: Tensor
    sample_ids: Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens after merging, T."""
        return len(self.tokens)

    @property
    def num_unshared_tokens(self) -> int:
        """Tokens before merging, N."""
        return len(self.ids)

    @classmethod
    def from_samples(
        cls,
        samples: Sequence[Sample],
        rule: TokenRule,
        *,
        share: bool = True,
        sample_ids: Sequence[int] | np.ndarray | None = None,
    ) -> ForestBatch:
        """Merges `samples`; `share=False` packs them side by side instead."""
        packed = _Packed.of(samples, rule.image_token_id)
        layout = build_forest(packed.ids, packed.slots, packed.offsets, share=share)
        positions, image_offsets = _positions(packed, rule)
        flat = layout.flat_index
        flat_positions = np.zeros((3, len(layout.tokens)), dtype=np.int64)
        flat_positions[:, flat] = positions
        feature_rows = np.zeros(len(layout.tokens), dtype=np.int64)
        feature_rows[flat] = image_offsets
        image_rows = np.flatnonzero(layout.image_slots >= 0)
        starts = np.cumsum([0, *(image.num_tokens for image in packed.images)])
        feature_rows = feature_rows[image_rows] + starts[layout.image_slots[image_rows]]
        names = np.arange(len(samples)) if sample_ids is None else np.asarray(sample_ids)
        return cls(
            tokens=torch.from_numpy(layout.tokens),
            subtree_end=torch.from_numpy(layout.subtree_end),
            parent=torch.from_numpy(layout.parent.astype(np.int64)),
            position_ids=torch.from_numpy(flat_positions),
            image_rows=torch.from_numpy(image_rows.astype(np.int64)),
            feature_rows=torch.from_numpy(feature_rows.astype(np.int64)),
            images=packed.images,
            ids=torch.from_numpy(packed.ids),
            weights=torch.from_numpy(packed.weights),
            flat_index=torch.from_numpy(flat.astype(np.int64)),
            offsets=torch.from_numpy(packed.offsets),
            sample_ids=torch.from_numpy(names.astype(np.int64)),
        )

    @classmethod
    def from_prompts(
        cls, prompts: Sequence[Prompt], rule: TokenRule, *, share: bool = True
    ) -> ForestBatch:
        """The same for prompts, which carry no loss."""
        samples = [Sample(p.ids, p.images, np.zeros(len(p.ids), np.float32)) for p in prompts]
        return cls.from_samples(samples, rule, share=share)

    def to(self, device: torch.device | str) -> ForestBatch:
        """The same batch with its tensors on `device`; pictures stay where they are."""
        moved = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    def scores(self) -> Scores:
        """Every scored token once, with the weights of the samples that share it summed.

        A loss over these equals the loss over the unshared samples.
        """
        weights = torch.zeros(self.num_tokens, device=self.tokens.device)
        weights.index_add_(0, self.flat_index, self.weights)
        targets = torch.nonzero(weights).squeeze(1)
        return Scores(self.parent[targets], self.tokens[targets], weights[targets])

    def sample_scores(self) -> SampleScores:
        """Every weighted token of every sample, in the samples' order."""
        where = torch.nonzero(self.weights).squeeze(1)
        samples = torch.searchsorted(self.offsets, where, right=True) - 1
        flat = self.flat_index[where]
        index = where - self.offsets[samples]
        return SampleScores(self.parent[flat], self.ids[where], samples, index, self.weights[where])


def microbatches(
    samples: Sequence[Sample], rule: TokenRule, max_tokens: int, *, share: bool = True
) -> list[ForestBatch]:
    """Cuts `samples` into forests of at most `max_tokens` merged tokens each.

    `sample_ids` of the batches index `samples`. `ValueError` names a sample that alone is longer.
    """
    packed = _Packed.of(samples, rule.image_token_id)
    plan = plan_microbatches(packed.ids, packed.slots, packed.offsets, max_tokens, share=share)
    return [
        ForestBatch.from_samples([samples[i] for i in bin_], rule, share=share, sample_ids=bin_)
        for bin_ in plan
    ]


@dataclass(frozen=True)
class _Packed:
    """Samples end to end, pictures reduced to the distinct ones."""

    ids: np.ndarray
    weights: np.ndarray
    slots: np.ndarray
    offsets: np.ndarray
    images: tuple[Image, ...]

    @classmethod
    def of(cls, samples: Sequence[Sample], image_token_id: int) -> _Packed:
        distinct: dict[str, int] = {}
        images: list[Image] = []
        slots: list[np.ndarray] = []
        for sample in samples:
            for image in sample.images:
                if distinct.setdefault(image.key, len(images)) == len(images):
                    images.append(image)
            slots.append(_slots(sample, distinct, image_token_id))
        lengths = [len(sample.ids) for sample in samples]
        return cls(
            ids=_concat([sample.ids for sample in samples], np.int64),
            weights=_concat([sample.weights for sample in samples], np.float32),
            slots=_concat(slots, np.int32),
            offsets=np.cumsum([0, *lengths]).astype(np.int64),
            images=tuple(images),
        )


def _slots(sample: Sample, distinct: dict[str, int], image_token_id: int) -> np.ndarray:
    """(L,) int32: which distinct picture each token shows, -1 for text."""
    slots = np.full(len(sample.ids), -1, dtype=np.int32)
    order = [np.full(image.num_tokens, distinct[image.key], np.int32) for image in sample.images]
    shown = _concat(order, np.int32)
    where = np.flatnonzero(sample.ids == image_token_id)
    if len(where) != len(shown):
        raise ValueError(f"{len(where)} placeholder tokens for images of {len(shown)}")
    slots[where] = shown
    return slots


def _positions(packed: _Packed, rule: TokenRule) -> tuple[np.ndarray, np.ndarray]:
    if rule.rope == "mrope":
        grids = np.array([image.grid for image in packed.images], np.int32).reshape(-1, 3)
        return mrope_positions(packed.slots, packed.offsets, grids, rule.merge_size)
    counts = np.array([image.num_tokens for image in packed.images], np.int32)
    return linear_positions(packed.slots, packed.offsets, counts)


def _concat(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)
