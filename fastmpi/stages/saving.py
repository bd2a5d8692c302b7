"""A run's checkpoints: what of a Trainer is written, and how it is put back.

Unusual: a full fine-tuning reads its weights back from the checkpoint's own model folder. Under
LoRA that folder holds the merged model, which anyone can use, and the adapter is kept beside it,
because merging cannot be undone to the bit. Where parameters are sharded, each process writes its
part of AdamW's state, and the weights are gathered in the first one's memory, a tensor at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastmpi import checkpoint as checkpoints
from fastmpi.models.forest_model import ForestModel
from fastmpi.stages.optimizer import load_optimizer_tensors, optimizer_tensors
from fastmpi.stages.sharding import is_sharded, like, local
from fastmpi.stages.step import TrainState

if TYPE_CHECKING:
    from fastmpi.stages.loop import Trainer


def save_checkpoint(trainer: Trainer) -> None:
    """Write `checkpoint-{step}` with all that is needed to continue, and drop old ones."""
    accelerator, args = trainer.accelerator, trainer.args
    rank, size = accelerator.process_index, accelerator.num_processes
    stage_values, stage_tensors = trainer.state_dict()
    with (
        exported(trainer) as model,
        checkpoints.written_aside(
            args.output_dir,
            trainer.state.global_step,
            is_main=accelerator.is_main_process,
            barrier=accelerator.wait_for_everyone,
        ) as folder,
    ):
        rng = checkpoints.state_path(folder, "rng", rank, size)
        checkpoints.write_tensors(rng, checkpoints.rng_state())
        if trainer.shards is not None:
            _write_part(trainer, folder)
        if accelerator.is_main_process:
            rollout = checkpoints.state_path(folder, "rollout")
            checkpoints.write_tensors(rollout, stage_tensors)
            _write_shared(trainer, model, folder, stage_values)
    if accelerator.is_main_process:
        checkpoints.prune(args.output_dir, args.save_total_limit)


def save_last(trainer: Trainer) -> None:
    """The checkpoint of the last step, unless it is there. The first process looks: over a network
    the others may not see yet what it has just renamed."""
    newest = checkpoints.checkpoints(trainer.args.output_dir)
    there = bool(newest) and newest[-1].name == f"checkpoint-{trainer.state.global_step}"
    if not trainer.gather_json(there)[0]:
        save_checkpoint(trainer)


def check_all_see(trainer: Trainer, found: Path | None) -> None:
    """`ValueError` where processes would go on from different steps: `found` is each one's own."""
    names = trainer.gather_json(None if found is None else found.name)
    if any(name != names[0] for name in names):
        raise ValueError(
            f"the processes see different checkpoints in {trainer.args.output_dir} ({names}): "
            "output_dir must be one folder, which all machines share"
        )


@contextmanager
def exported(trainer: Trainer) -> Iterator[ForestModel]:
    """The model, whole on the first process, to be saved. All processes enter together."""
    if trainer.shards is None:
        yield trainer.model
    else:
        with trainer.shards.exported(trainer.accelerator.is_main_process) as model:
            yield model


def load_checkpoint(trainer: Trainer, folder: Path) -> None:
    """Put everything back as it was; ValueError for a checkpoint of another run.

    Where there are more processes than saved it, the further ones keep the random generators that
    they have: only reward functions draw from them."""
    state = checkpoints.read_state(folder)
    checkpoints.check_same_run(folder, state, trainer.identity)
    rank, size = trainer.accelerator.process_index, int(state["processes"])
    _load_weights(trainer, folder)
    moments = checkpoints.read_parts(folder, "optimizer")
    load_optimizer_tensors(trainer.optimizer, trainer.parameters, moments)
    if rank < size:
        rng = checkpoints.read_tensors(checkpoints.state_path(folder, "rng", rank, size))
        checkpoints.set_rng_state(rng)
    trainer.state = TrainState(**{**state["train"], "stopped": None})
    trainer.means.load_state_dict(state["means"])
    rollout = checkpoints.read_tensors(checkpoints.state_path(folder, "rollout"))
    trainer.load_state_dict(state["stage_state"], rollout)


def _write_part(trainer: Trainer, folder: Path) -> None:
    """This process's part of AdamW's state, and of what is whole the first one's."""
    rank, size = trainer.accelerator.process_index, trainer.accelerator.num_processes
    moments = optimizer_tensors(trainer.optimizer, trainer.parameters)
    part = {n: local(t) for n, t in moments.items() if is_sharded(t) or rank == 0}
    checkpoints.write_part(folder, "optimizer", part, rank, size)


def _write_shared(
    trainer: Trainer, model: ForestModel, folder: Path, stage_values: dict[str, Any]
) -> None:
    """What all processes have in common."""
    model.save_pretrained(folder)
    if trainer.shards is None:
        moments = optimizer_tensors(trainer.optimizer, trainer.parameters)
        checkpoints.write_tensors(checkpoints.state_path(folder, "optimizer"), moments)
    if trainer.args.use_peft:
        trained = {n: p for n, p in model.named_parameters() if n in trainer.parameters}
        checkpoints.write_tensors(checkpoints.state_path(folder, "adapter"), trained)
    state = {
        **trainer.identity,
        "train": dataclasses.asdict(trainer.state),
        "means": trainer.means.state_dict(),
        "stage_state": stage_values,
    }
    checkpoints.write_state(folder, state)


def _load_weights(trainer: Trainer, folder: Path) -> None:
    if trainer.args.use_peft:
        saved = checkpoints.read_tensors(checkpoints.state_path(folder, "adapter"))
    else:
        dtype = trainer.model.dtype
        other = ForestModel.from_pretrained(folder, dtype=dtype, device="cpu", probe=False)
        saved = dict(other.named_parameters())
    with torch.no_grad():
        for name, parameter in trainer.parameters.items():
            local(parameter).copy_(local(like(parameter, saved[name])))
