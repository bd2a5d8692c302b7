"""How this process was launched: alone, by torchrun or by `accelerate launch`, sharded or not."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

    from fastmpi.config import TrainingConfig

_KINDS = ("NO", "MULTI_GPU", "MULTI_CPU", "FSDP")


def make_accelerator(args: TrainingConfig) -> Accelerator:
    """The processes of this run; `ValueError` for a launch that we cannot train under."""
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    if _launched_with_fsdp():
        _check_fsdp()
        # Else transformers would load empty weights on all processes but the first: it counts on
        # accelerate to shard the model, and we do it.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=args.ddp_timeout))
    # Without a device accelerate must be told so, or it takes each process for the only one.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[patience])
    kind = accelerator.distributed_type.value
    if kind not in _KINDS:
        raise ValueError(
            f"cannot train under {kind}: launch with torchrun, or with accelerate's MULTI_GPU, "
            "MULTI_CPU or FSDP version 2"
        )
    return accelerator


def join_processes(patience: int) -> PartialState:
    """The processes of this run, before anything is made with them. patience: seconds that each
    waits for the others; whoever asks first decides."""
    from accelerate import PartialState

    return PartialState(
        cpu=not torch.accelerator.is_available(), timeout=timedelta(seconds=patience)
    )


def is_sharded_run(args: TrainingConfig, accelerator: Accelerator) -> bool:
    """Whether each process holds a part of the parameters: the setting `fsdp`, or `accelerate
    launch --use_fsdp`. One process holds all of them."""
    return accelerator.num_processes > 1 and (args.fsdp or _launched_with_fsdp())


def _launched_with_fsdp() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _check_fsdp() -> None:
    """Of accelerate's own settings of FSDP only the version counts: we shard the model."""
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ValueError(
            f"cannot train under FSDP version {version}: launch with --fsdp_version 2, or with "
            "torchrun and the setting fsdp: true"
        )
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise ValueError("fsdp_offload_params: parameters are never offloaded to the CPU here")
