"""Prompts are read as one forest, and only what of them is not held yet.

Legend: T rows of the forest of some prompts, n of them new, P prompts, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fastmpi.data.batch import ForestBatch
from fastmpi.data.images import Image
from fastmpi.models.attention import AttentionPattern, ForestPattern
from fastmpi.models.features import ImageFeatures
from fastmpi.models.forest_model import ForestModel
from fastmpi.rollout.segments import Request, Segment


class Holder(Protocol):
    """Where segments' keys and values are held, (Hkv, length, D) each."""

    def write(self, layer: int, segment: Segment, keys: Tensor, values: Tensor) -> None: ...

    def read(self, layer: int, segment: Segment) -> tuple[Tensor, Tensor]: ...


def prefill(
    model: ForestModel,
    requests: Sequence[Request],
    features: Callable[[list[Image]], ImageFeatures],
    holder: Holder,
    known: Iterable[Segment],
) -> None:
    """Reads the prompts of `requests`, but for the segments `known`, in one forward pass.

    Keys and values go to `holder`; each request gets its `hidden` and `position`.
    """
    prompts = [request.prompt for request in requests]
    batch = ForestBatch.from_prompts(prompts, model.processor)
    held = set(known)
    places = _places(requests, batch)
    read = np.ones(batch.num_tokens, bool)
    for segment in held & set(places):
        read[places[segment]] = False
    rows = np.flatnonzero(read)
    part = _only(batch, rows)
    images = features(list(part.images))
    with torch.inference_mode():
        new = {segment: at for segment, at in places.items() if segment not in held}
        old = {segment: at for segment, at in places.items() if segment in held}
        ends = batch.subtree_end.to(model.device)
        inner = ForestPattern(ends, model.attention_backend, ~read if old else None)
        pattern = _Reading(inner, holder, new, old, rows, model.device)
        hidden = model.hidden(part.to(model.device), images, pattern)
        last = batch.flat_index[batch.offsets[1:] - 1].numpy()
        at_ends = hidden[torch.from_numpy(np.searchsorted(rows, last)).to(model.device)]
    for request, end, position in zip(requests, at_ends, _next_positions(batch), strict=True):
        request.hidden, request.position = end, position


def _places(requests: Sequence[Request], batch: ForestBatch) -> dict[Segment, np.ndarray]:
    """The rows of the forest that each segment of the prompts has."""
    places: dict[Segment, np.ndarray] = {}
    paths = np.split(batch.flat_index.numpy(), batch.offsets[1:-1].tolist())
    for request, path in zip(requests, paths, strict=True):
        start = 0
        for segment in request.segments:
            places.setdefault(segment, path[start : start + segment.length])
            start += segment.length
    return places


def _only(batch: ForestBatch, rows: np.ndarray) -> ForestBatch:
    """What `ForestModel.hidden` reads of a batch, for some rows and the pictures they show."""
    if len(rows) == batch.num_tokens:
        return batch
    at = torch.from_numpy(rows)
    shown = torch.isin(batch.image_rows, at)
    image_rows = torch.searchsorted(at, batch.image_rows[shown])
    images, feature_rows = _shown(batch.images, batch.feature_rows[shown])
    return replace(
        batch,
        tokens=batch.tokens[at],
        position_ids=batch.position_ids[:, at],
        image_rows=image_rows,
        feature_rows=feature_rows,
        images=images,
    )


def _shown(images: Sequence[Image], rows: Tensor) -> tuple[tuple[Image, ...], Tensor]:
    """The pictures of which `rows` of all features are, and the places of `rows` in theirs."""
    counts = torch.tensor([image.num_tokens for image in images], dtype=torch.int64)
    ends = counts.cumsum(0)
    owner = torch.searchsorted(ends, rows, right=True)
    kept = owner.unique()
    starts = torch.zeros_like(counts)
    starts[kept] = counts[kept].cumsum(0) - counts[kept]
    within = rows - (ends - counts)[owner]
    return tuple(images[i] for i in kept.tolist()), starts[owner] + within


def _next_positions(batch: ForestBatch) -> Iterator[int]:
    """The position after the greatest of each prompt."""
    highest = batch.position_ids.amax(0)[batch.flat_index]
    for positions in highest.split(batch.offsets.diff().tolist()):
        yield int(positions.max()) + 1


class _Reading:
    """A pattern by which new rows of a forest see all they should, and whose keys are held."""

    def __init__(
        self,
        inner: AttentionPattern,
        holder: Holder,
        new: dict[Segment, np.ndarray],
        old: dict[Segment, np.ndarray],
        rows: np.ndarray,
        device: torch.device,
    ) -> None:
        """new, old: segments to write and those to read, with their rows of the forest. rows: (n,)
        those that the model runs over."""
        self._inner, self._holder = inner, holder
        self._new = {s: torch.from_numpy(at).to(device) for s, at in new.items()}
        self._old = {s: torch.from_numpy(at).to(device) for s, at in old.items()}
        self._rows = torch.from_numpy(rows).to(device)
        self._total = len(rows) + sum(len(at) for at in old.values())

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """(1, H, n, D) -> (1, n, Hq, D); see `AttentionPattern`."""
        if self._old:
            q, k, v = (self._spread(x) for x in (q, k, v))
            for segment, at in self._old.items():
                k[0][:, at], v[0][:, at] = self._holder.read(layer_idx, segment)
        for segment, at in self._new.items():
            self._holder.write(layer_idx, segment, k[0][:, at], v[0][:, at])
        out = self._inner.attend(layer_idx, q, k, v, scale)
        return out[:, self._rows] if self._old else out

    def _spread(self, x: Tensor) -> Tensor:
        """(1, H, n, D) -> (1, H, T, D), zeros at rows that are not new."""
        whole = x.new_zeros(1, x.shape[1], self._total, x.shape[3])
        whole[:, :, self._rows] = x
        return whole
