"""Seconds of a micro-batch from what it asks of the model, with rates that were measured.

    seconds = overhead + row * rows + pair * pairs + score * scored + patch * patches

Unusual: a few steps are too few to tell five rates apart, and micro-batches are much alike. So the
fit is pulled towards one common speed in counted operations for all parts, and leaves it only as
far as the measurements say. It is solved in float64 and depends on its arguments alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastmpi.models.flops import visible_pairs
from fastmpi.models.sizes import TextShape

if TYPE_CHECKING:
    from fastmpi.data.batch import ForestBatch, Outline
    from fastmpi.data.images import Image
    from fastmpi.models.forest_model import ForestModel

Vector = NDArray[np.float64]

_PULL = 0.01  # of the common speed, in squared relative errors
_HUBER = 1.345  # standard deviations; what lies further out counts less
_ROUNDS = 10


@dataclass(frozen=True)
class Work:
    """Of a micro-batch. rows: merged tokens. pairs: of query and key that attention sees. scored:
    rows that the head reads. patches: of pictures that the vision tower encodes for it."""

    rows: int
    pairs: int
    scored: int
    patches: int = 0

    @classmethod
    def of(cls, batch: ForestBatch, *, trains_vision: bool) -> Work:
        """A frozen tower's pictures are encoded once and not for each micro-batch: they count
        nothing here."""
        scored = len(batch.sample_scores().rows.unique())
        patches = num_patches(batch.images) if trains_vision else 0
        return cls(batch.num_tokens, visible_pairs(batch.subtree_end), scored, patches)


def num_patches(images: Iterable[Image]) -> int:
    return sum(math.prod(image.grid) for image in images)


@dataclass(frozen=True)
class CostModel:
    """Seconds of a micro-batch, of a row, of a pair, of a scored row and of a patch."""

    overhead: float
    row: float
    pair: float
    score: float
    patch: float

    def seconds(self, work: Work) -> float:
        return float(np.dot(astuple(self), (1, *astuple(work))))


def token_costs(cost: CostModel, outlines: Sequence[Outline], image_token_id: int) -> NDArray:
    """(N,) int64: what each token of the outlines, end to end, adds to a micro-batch's seconds, in
    thousandths of the mean; those of pictures carry the vision tower's part."""
    parts = [_token_seconds(cost, one, image_token_id) for one in outlines]
    seconds = np.concatenate([np.zeros(0), *parts])
    if not seconds.any():
        return np.ones(len(seconds), np.int64)
    return np.rint(seconds * (1000 / seconds.mean())).astype(np.int64)


def _token_seconds(cost: CostModel, one: Outline, image_token_id: int) -> Vector:
    seconds = cost.row + cost.pair * np.arange(1, len(one.ids) + 1, dtype=np.float64)
    seconds[len(one.ids) - one.scored :] += cost.score
    patches = [math.prod(i.grid) / i.num_tokens for i in one.images]
    of_token = np.repeat(patches, [image.num_tokens for image in one.images])
    seconds[one.ids == image_token_id] += cost.patch * of_token
    return seconds


def operations(model: ForestModel) -> Vector:
    """(4,) operations that training asks for of a row, a pair, a scored row and a patch, about:
    their ratios are all that matters."""
    text = TextShape.of(model.base.config)
    vision = sum(part.parameters for part in model.parts() if part.name in ("vision", "merger"))
    pair = 12.0 * text.query * text.layers
    return np.array([6.0 * text.linear_parameters, pair, 6.0 * model.head.numel(), 6.0 * vision])


def fit(
    works: Sequence[Work],
    seconds: Sequence[float],
    unit: Vector,  # (4,) see `operations`
    *,
    patch: float | None = None,
) -> CostModel:
    """The rates that explain best, in relative errors, what `works` took; none is negative.

    patch: seconds of a patch where that is known already; the works then have none.
    """
    took = np.array(seconds, np.float64)
    counts = np.array([astuple(work) for work in works], np.float64) * unit
    speed = float(np.median(took / counts.sum(1)))
    # Relative to what is expected: an overhead in medians of a micro-batch, rates in the speed.
    columns = np.column_stack([np.full(len(took), np.median(took)), counts * speed])
    rates = _robust(columns / took[:, None], np.array([0.0, 1, 1, 1, 1]))
    found = rates[1:] * speed * unit
    overhead, known = float(rates[0] * np.median(took)), float(found[3]) if patch is None else patch
    return CostModel(overhead, float(found[0]), float(found[1]), float(found[2]), known)


def _robust(columns: Vector, prior: Vector) -> Vector:
    """x >= 0 near `prior` with columns @ x near 1; rows far off count less (Huber)."""
    weights = np.ones(len(columns))
    for _ in range(_ROUNDS):
        found = _not_negative(columns * weights[:, None], weights, prior)
        errors = np.abs(columns @ found - 1)
        deviation = max(1.4826 * float(np.median(errors)), 1e-6)
        weights = np.sqrt(np.minimum(1, _HUBER * deviation / np.maximum(errors, 1e-12)))
    return found


def _not_negative(columns: Vector, target: Vector, prior: Vector) -> Vector:
    """Least squares with a pull towards `prior`; the most negative is set to zero until none is."""
    free = np.ones(len(prior), bool)
    while True:
        some = columns[:, free]
        square = some.T @ some + _PULL * np.eye(int(free.sum()))
        found = np.zeros(len(prior))
        found[free] = np.linalg.solve(square, some.T @ target + _PULL * prior[free])
        if (found >= 0).all():
            return found
        free[np.argmin(found)] = False
