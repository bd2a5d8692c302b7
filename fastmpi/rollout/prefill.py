"""A wave's prompts, read once as a forest, and laid out for decoding.

Legend: P prompts, B responses, T rows of the forest, L longest of some rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastmpi.data.batch import ForestBatch
from fastmpi.data.samples import Prompt
from fastmpi.models.attention import ForestPattern
from fastmpi.models.features import ImageFeatures
from fastmpi.models.forest_model import ForestModel
from fastmpi.rollout.cache import DecodeCache, PromptRecorder, SharedShelf, Shelf, shelves
from fastmpi.rollout.trunks import Trunk, find_trunks


@dataclass(frozen=True, eq=False)
class Prefill:
    """order: the prompts as the batch of responses has them, those of one prompt side by side.
    hidden: (B, H) at the last token of each response's prompt. positions: (B,) of its first own
    token. cache: keys and values of the prompts."""

    order: list[int]
    hidden: Tensor
    positions: Tensor
    cache: DecodeCache


def prefill(
    model: ForestModel,
    prompts: Sequence[Prompt],
    num_responses: Sequence[int],
    features: ImageFeatures,
    *,
    min_shared_tokens: int,
) -> Prefill:
    """Runs each distinct token of `prompts` once, in a single forward pass."""
    batch = ForestBatch.from_prompts(prompts, model.processor).to(model.device)
    ends = batch.offsets[1:].tolist()
    paths = np.split(batch.flat_index.cpu().numpy(), ends[:-1])
    trunks = find_trunks(paths, min_shared_tokens)
    begin = np.zeros(len(paths), np.int64)  # of what a prompt has for itself
    for trunk in trunks:
        begin[list(trunk.prompts)] += len(trunk.rows)
    rest = [path[start:] for path, start in zip(paths, begin, strict=True)]
    order = sorted(range(len(paths)), key=lambda prompt: len(rest[prompt]))
    own = list(_shelves([rest[p] for p in order], [num_responses[p] for p in order], model.device))
    shared = list(_shared(trunks, order, num_responses, model.device))
    forest = ForestPattern(batch.subtree_end, model.attention_backend)
    recorder = PromptRecorder(forest, [*own, *(s.shelf for s in shared)])
    hidden = model.hidden(batch, features, recorder)
    owner = torch.tensor(order).repeat_interleave(torch.tensor([num_responses[p] for p in order]))
    owner = owner.to(model.device)
    last = batch.flat_index[batch.offsets[1:] - 1]
    return Prefill(
        order, hidden[last][owner], _next_positions(batch)[owner], DecodeCache(own, shared)
    )


def _next_positions(batch: ForestBatch) -> Tensor:
    """(P,) the position after the greatest of each prompt."""
    lengths = batch.offsets.diff()
    prompt = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    highest = batch.position_ids.amax(0)[batch.flat_index]
    return highest.new_zeros(len(lengths)).scatter_reduce(0, prompt, highest, "amax") + 1


def _shelves(
    paths: Sequence[np.ndarray], counts: Sequence[int], device: torch.device
) -> Iterator[Shelf]:
    """Shelves of `paths`, which ascend in length, with `counts` responses each."""
    for start, stop in shelves([len(path) for path in paths]):
        yield _shelf(paths[start:stop], torch.tensor(counts[start:stop]), device)


def _shared(
    trunks: Sequence[Trunk], order: Sequence[int], counts: Sequence[int], device: torch.device
) -> Iterator[SharedShelf]:
    """The trunks on shelves; two on one path never meet on a shelf."""
    first = dict(zip(order, np.cumsum([0, *(counts[p] for p in order)]).tolist(), strict=False))
    for level in _levels(trunks):
        level.sort(key=lambda trunk: len(trunk.rows))
        for start, stop in shelves([len(trunk.rows) for trunk in level]):
            some = level[start:stop]
            rows = [[first[p] + i for p in t.prompts for i in range(counts[p])] for t in some]
            sizes = torch.tensor([len(of_trunk) for of_trunk in rows])
            shelf = _shelf([trunk.rows for trunk in some], sizes, device)
            yield SharedShelf(shelf, torch.tensor([r for of in rows for r in of], device=device))


def _levels(trunks: Sequence[Trunk]) -> list[list[Trunk]]:
    """The trunks by how many others lie above them on the same paths."""
    depth: dict[int, int] = {}
    levels: list[list[Trunk]] = []
    for trunk in trunks:
        level = depth.get(trunk.prompts[0], 0)
        if level == len(levels):
            levels.append([])
        levels[level].append(trunk)
        depth.update(dict.fromkeys(trunk.prompts, level + 1))
    return levels


def _shelf(paths: Sequence[np.ndarray], counts: Tensor, device: torch.device) -> Shelf:
    lengths = np.array([len(path) for path in paths])
    within = np.minimum(np.arange(lengths.max()), lengths[:, None] - 1)  # (P, L)
    rows = np.stack([path[places] for path, places in zip(paths, within, strict=True)])
    owner = torch.arange(len(paths)).repeat_interleave(counts)
    tensors = (torch.from_numpy(rows), torch.from_numpy(lengths), owner)
    return Shelf(*(tensor.to(device) for tensor in tensors))
