"""Who trains on which responses of a window: whole groups, as many merged tokens on each process.

Unusual: every process holds the whole window (ids and numbers, no pictures), so that shares are
planned anew for every step, a checkpoint holds it once, and nothing in it depends on how many
processes there are. A prompt is rendered again where a group is trained on by another process than
sampled it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fastmpi.data.batch import ForestBatch, Outline
from fastmpi.data.samples import LazyPrompt, Prompt
from fastmpi.stages.window import Window

if TYPE_CHECKING:
    from fastmpi.stages.rl import PolicyRolloutTrainer


@dataclass(frozen=True)
class OwnShare:
    """This process's responses of a window. indices: which of the window's they are, in their
    order. batches: as micro-batches; None: cut them where they are needed."""

    part: Window
    indices: list[int]
    batches: list[ForestBatch] | None


def own_share(trainer: PolicyRolloutTrainer, window: Window) -> OwnShare:
    """What this process runs of `window`; all of it where there is only one process."""
    if trainer.accelerator.num_processes == 1:
        return OwnShare(window, list(range(len(window))), None)
    groups = np.arange(len(window)) // trainer.args.group_size
    outlines = [_outline(trainer, window, i) for i in range(len(window))]
    cuts = trainer.own_cuts(outlines, groups, trainer.state.global_step)
    indices = [int(i) for cut in cuts for i in cut]
    part = window.take(indices)
    samples = iter(part.samples())
    return OwnShare(part, indices, trainer.as_batches([[next(samples) for _ in c] for c in cuts]))


def all_columns(
    trainer: PolicyRolloutTrainer, window: Window, own: OwnShare, values: Tensor
) -> Tensor:
    """(M,) of the window from each process's (m,) of its share."""
    columns = trainer.gather(window.columns(own.indices))
    whole = torch.empty(len(window.ids), dtype=values.dtype)
    whole[columns] = trainer.gather(values)
    return whole


def joined_over_processes(
    trainer: PolicyRolloutTrainer, window: Window, prompt: Callable[[int], Prompt]
) -> Window:
    """The windows of all processes as one, in the order of their ranks. Of other processes'
    prompts, those that are looked at are made by `prompt` from their rows."""
    if trainer.accelerator.num_processes == 1:
        return window
    first = int(
        trainer.gather(torch.tensor([len(window)]))[: trainer.accelerator.process_index].sum()
    )
    tensors = {name: trainer.gather(values) for name, values in window.tensors().items()}
    prompts: list[Prompt] = list(lazy_prompts(tensors["rows"].tolist(), prompt))
    prompts[first : first + len(window)] = window.prompts
    extra = trainer.gather_json(window.extra)
    shared = set.intersection(*map(set, extra))
    joined = Window.from_tensors(tensors, prompts)
    joined.extra.update({n: [v for of_one in extra for v in of_one[n]] for n in sorted(shared)})
    return joined


def lazy_prompts(rows: Sequence[int], prompt: Callable[[int], Prompt]) -> list[LazyPrompt]:
    """A prompt for each row, one for all that show the same row, made when it is looked at."""
    of_row = {row: LazyPrompt(lambda row=row: prompt(row)) for row in set(rows)}  # type: ignore[misc]
    return [of_row[row] for row in rows]


def _outline(trainer: PolicyRolloutTrainer, window: Window, index: int) -> Outline:
    prompt = trainer.outline(int(window.rows[index]))
    response = window.response(index).astype(np.int32)
    return Outline(np.concatenate([prompt.ids, response]), prompt.images, len(response))
