"""The model that is trained as the engine: itself, or a copy of it at one moment.

Unusual: the copy shares every parameter that does not train, so it costs what trains: under LoRA
the adapter, in full fine-tuning the text tower and the head once more, in the parameters' dtype.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from fastmpi.rollout.native import NativeEngine

if TYPE_CHECKING:
    from fastmpi.models.forest_model import ForestModel
    from fastmpi.rollout.engine import Response
    from fastmpi.stages.rl import PolicyRolloutTrainer


class TrainedModel(NativeEngine):
    """The engine by default: the model itself, with the precision and the features of training.

    model: another with the same tower, for one call, so that
    graphs of its steps would not be used again."""

    def __init__(self, trainer: PolicyRolloutTrainer, model: ForestModel | None = None) -> None:
        super().__init__(
            model or trainer.model,
            memory_gib=trainer.args.rollout_memory_gib,
            features=trainer.features.of,
            cuda_graphs=model is None,
        )
        self._precision = trainer.precision

    def generate(self, *args: Any, **kwargs: Any) -> list[list[Response]]:
        with self._precision():
            return super().generate(*args, **kwargs)


class ModelCopy:
    """`model` with the weights of the last `update`, for a thread to sample with while it trains.

    On CUDA the thread samples on a stream of its own."""

    def __init__(self, trainer: PolicyRolloutTrainer) -> None:
        self.trainer = trainer
        trained = trainer.parameters.values()
        kept = {id(parameter) for parameter in trained}
        shared: list[Any] = [p for p in trainer.model.parameters() if id(p) not in kept]
        shared.append(trainer.processor)
        self.model: ForestModel = copy.deepcopy(trainer.model, {id(it): it for it in shared})
        self.model.requires_grad_(False).eval()
        named = dict(self.model.named_parameters())
        self._pairs = [(named[name], own) for name, own in trainer.parameters.items()]
        device = trainer.model.device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._engine: CopiedModel | None = None

    @property
    def num_bytes(self) -> int:
        """What it needs beside the model."""
        return sum(copied.numel() * copied.element_size() for copied, _ in self._pairs)

    @torch.no_grad()
    def update(self) -> None:
        """Takes the model's weights of now. Nothing may be sampling."""
        for copied, own in self._pairs:
            copied.copy_(own)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    def engine(self, check: Callable[[], None]) -> CopiedModel:
        """Samples with it. check: called after every decoding step; what it raises ends them."""
        if self._engine is None:
            self._engine = CopiedModel(self.trainer, self.model, self._stream)
        self._engine.progress = lambda *_: check()
        return self._engine

    def free(self) -> None:
        """Gives up the memory of its engine."""
        self._engine = None


class CopiedModel(TrainedModel):
    """See `ModelCopy`."""

    def __init__(
        self,
        trainer: PolicyRolloutTrainer,
        model: ForestModel,
        stream: torch.cuda.Stream | None,
    ) -> None:
        super().__init__(trainer, model)
        self._stream = stream

    def generate(self, *args: Any, **kwargs: Any) -> list[list[Response]]:
        if self._stream is None:
            return super().generate(*args, **kwargs)
        with torch.cuda.stream(self._stream):
            try:
                return super().generate(*args, **kwargs)
            finally:  # the copy may change as soon as this returns
                self._stream.synchronize()
