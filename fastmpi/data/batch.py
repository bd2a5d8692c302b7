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
from fastmpi.ops.bins import plan_microbatches, plan_ranks
from fastmpi.ops.forest import ForestLayout, build_forest
from fastmpi.ops.positions import linear_forest_positions, mrope_forest_positions
from fastmpi.ops.tokens import assign_image_slots, feature_rows


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
        positions, within = _positions(layout, packed, rule)
        rows, features = feature_rows(layout.image_slots, within, packed.tokens_per_image)
        names = np.arange(len(samples)) if sample_ids is None else np.asarray(sample_ids)
        return cls(
            tokens=torch.from_numpy(layout.tokens),
            subtree_end=torch.from_numpy(layout.subtree_end),
            parent=torch.from_numpy(layout.parent.astype(np.int64)),
            position_ids=torch.from_numpy(positions.astype(np.int64)),
            image_rows=torch.from_numpy(rows),
            feature_rows=torch.from_numpy(features),
            images=packed.images,
            ids=torch.from_numpy(packed.ids),
            weights=torch.from_numpy(packed.weights),
            flat_index=torch.from_numpy(layout.flat_index.astype(np.int64)),
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


@dataclass(frozen=True, eq=False)
class Outline(Prompt):
    """What planning needs of a sample: its ids (int32), which pictures it shows, not their pixels,
    and how many of its last tokens are scored."""

    scored: int = 0


def plan_shares(
    outlines: Sequence[Outline],
    groups: np.ndarray,  # (S,) int64
    num_shares: int,
    rule: TokenRule,
    max_tokens: int,
    *,
    share: bool = True,
    costs: np.ndarray | None = None,  # (N,) int64
) -> list[list[np.ndarray]]:
    """Who runs what when several processes take a step: indices of the samples of each micro-batch
    of each process, see `ops.bins.plan_ranks`. outlines: all samples of the step, of N tokens."""
    return plan_ranks(
        *_shown(outlines, rule.image_token_id),
        groups,
        num_shares,
        max_tokens,
        share=share,
        costs=costs,
    )


def outline(sample: Prompt | Sample) -> Outline:
    """Of a sample, or of a prompt, which has no score."""
    images = tuple(replace(image, stored=_NO_PIXELS, values=None) for image in sample.images)
    scored = np.count_nonzero(sample.weights) if isinstance(sample, Sample) else 0
    return Outline(sample.ids.astype(np.int32), images, int(scored))


_NO_PIXELS = torch.zeros(0)


@dataclass(frozen=True)
class _Packed:
    """Samples end to end, pictures reduced to the distinct ones."""

    ids: np.ndarray
    weights: np.ndarray
    slots: np.ndarray  # which distinct picture each token shows, -1 for text
    offsets: np.ndarray
    images: tuple[Image, ...]
    tokens_per_image: np.ndarray

    @classmethod
    def of(cls, samples: Sequence[Sample], image_token_id: int) -> _Packed:
        images = _distinct(samples)
        ids, slots, offsets = _shown(samples, image_token_id)
        return cls(
            ids=ids,
            weights=_concat([sample.weights for sample in samples], np.float32),
            slots=slots,
            offsets=offsets,
            images=tuple(images.values()),
            tokens_per_image=_tokens_per_image(images),
        )


def _shown(
    samples: Sequence[Prompt | Sample], image_token_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples end to end: ids (N,), the number of the distinct picture that each token shows (N,),
    -1 for text, and where each sample begins (S + 1,)."""
    images = _distinct(samples)
    slot = {key: number for number, key in enumerate(images)}
    shown = [slot[image.key] for sample in samples for image in sample.images]
    ids = _concat([sample.ids for sample in samples], np.int64)
    offsets = _offsets([len(sample.ids) for sample in samples])
    slots = assign_image_slots(
        ids,
        offsets,
        image_token_id,
        np.array(shown, np.int32),
        _offsets([len(sample.images) for sample in samples]),
        _tokens_per_image(images),
    )
    return ids, slots, offsets


def _distinct(samples: Sequence[Prompt | Sample]) -> dict[str, Image]:
    return {image.key: image for sample in samples for image in sample.images}


def _tokens_per_image(images: dict[str, Image]) -> np.ndarray:
    return np.array([image.num_tokens for image in images.values()], np.int32)


def _positions(
    layout: ForestLayout, packed: _Packed, rule: TokenRule
) -> tuple[np.ndarray, np.ndarray]:
    """Of the merged tokens: positions (3, T), and indices inside their pictures (T,)."""
    rows = layout.image_slots, layout.parent
    if rule.rope == "mrope":
        grids = np.array([image.grid for image in packed.images], np.int32).reshape(-1, 3)
        return mrope_forest_positions(*rows, grids, rule.merge_size)
    return linear_forest_positions(*rows, packed.tokens_per_image)


def _offsets(lengths: list[int]) -> np.ndarray:
    return np.cumsum([0, *lengths]).astype(np.int64)


def _concat(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)
