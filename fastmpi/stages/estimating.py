"""What a recipe's stages will hold and count, from their real rows, without a weight being read.

Unusual: the stage's own trainer is built on a model without weights (`models/skeleton.py`), so
rows, order, step sizes and micro-batches are those of the run. Responses do not exist yet: theirs
are random tokens of a stated length, which share nothing but their prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastmpi.config import PolicyRolloutConfig
from fastmpi.data.batch import ForestBatch
from fastmpi.data.samples import Sample
from fastmpi.models.cost import Work, num_patches
from fastmpi.models.flops import update_flops
from fastmpi.models.memory import UpdateMemory
from fastmpi.models.sizes import BatchShape
from fastmpi.models.skeleton import skeleton
from fastmpi.stages.chain import build_trainer, prepare_data
from fastmpi.stages.features import MAX_BYTES as MAX_FEATURE_BYTES
from fastmpi.stages.rollout_estimate import RolloutEstimate, rollout_estimate

if TYPE_CHECKING:
    from fastmpi.data.images import Image
    from fastmpi.models.forest_model import ForestModel
    from fastmpi.recipe import Recipe, StagePlan
    from fastmpi.stages.fitting import StepMemory
    from fastmpi.stages.record import DataFiles

MAX_SCANNED_STEPS = 64


@dataclass(frozen=True)
class StageEstimate:
    """One stage. tokens, merged_tokens, flops: means of an optimiser step of one process, over the
    `scanned` first steps; flops None where the model cannot be counted. checkpointing: as the
    stage is set. update, other: memory as it is set, and with checkpointing the other way round.
    features, kept: bytes of picture features on the device, and of rollouts' keys that stay. work:
    of each scanned step's micro-batches. encoded: patches of pictures that a frozen vision tower
    encodes in a step, over the whole stage, since features are kept. copy: bytes of the weights
    that sample while the model trains; None: they take turns. notes: what is not in these
    numbers."""

    kind: str
    steps: int
    scanned: int
    tokens: float
    merged_tokens: float
    microbatches: int
    flops: float | None
    checkpointing: bool
    update: UpdateMemory
    other: UpdateMemory
    features: int
    work: tuple[tuple[Work, ...], ...]
    encoded: float
    rollout: RolloutEstimate | None
    kept: int
    copy: int | None
    notes: tuple[str, ...]

    @property
    def peak(self) -> int:
        """Bytes of tensors at the stage's dearest moment."""
        update = self.update.peak + self.features
        if self.rollout is not None and self.copy is not None:
            return update + self.copy + self.rollout.memory.peak
        return max(update + self.kept, self.rollout_peak)

    @property
    def rollout_peak(self) -> int:
        """While responses are sampled: gradients are gone, the optimiser's state stays."""
        if self.rollout is None:
            return 0
        update = self.update
        held = update.weights + update.reference + update.optimizer + self.features
        return held + self.rollout.memory.peak


def estimate_stage(
    plan: StagePlan,
    model: str,
    data: DataFiles,
    *,
    response_tokens: int | None = None,
    device: str | None = None,
    trust_recipe_code: bool = False,
    trust_remote_code: bool = False,
) -> StageEstimate:
    """The estimate of one stage that starts at `model`, a folder or hub name.

    response_tokens: length of every response, in RL; None: max_completion_length. device: "cpu" or
    "cuda", None: what there is. `ValueError` where the run would raise one for its rows.
    """
    plan, tokens = sized(plan, response_tokens)
    dtype = getattr(torch, plan.config.dtype)
    empty = skeleton(model, dtype=dtype, trust_remote_code=trust_remote_code)
    trainer = build_trainer(plan, empty, data, trust_recipe_code=trust_recipe_code)
    cuda = device == "cuda" or (device is None and torch.cuda.is_available())
    trainer.choose_trained(torch.device("cuda" if cuda else "cpu"))
    return _Estimator(trainer, tokens, cuda).estimate(plan.kind)


def sized(plan: StagePlan, response_tokens: int | None) -> tuple[StagePlan, int]:
    """The plan with room for responses of that length, and the length; 0 without responses."""
    if not isinstance(plan.config, PolicyRolloutConfig):
        return plan, 0
    tokens = response_tokens or plan.config.max_completion_length
    return replace(plan, config=replace(plan.config, max_completion_length=tokens)), tokens


class _Estimator:
    def __init__(self, trainer: Any, response_tokens: int, cuda: bool) -> None:
        self.trainer, self.args = trainer, trainer.args
        self.model: ForestModel = trainer.model
        self.response_tokens, self.cuda = response_tokens, cuda
        self.is_rl = hasattr(trainer, "sampler")
        self.memory: StepMemory = trainer.memory
        self.text, self.precision = self.memory.text, self.memory.precision

    def estimate(self, kind: str) -> StageEstimate:
        most_steps = min(MAX_SCANNED_STEPS, self.trainer.total_steps)
        steps = list(islice(self._steps(), most_steps))
        rollout, sampling = self._rollout()
        batches = [batch for step in steps for batch in step]
        most = max(len(step) for step in steps)
        checkpointing = bool(self.trainer.checkpoints_layers)
        return StageEstimate(
            kind=kind,
            steps=self.trainer.total_steps,
            scanned=len(steps),
            tokens=sum(batch.num_unshared_tokens for batch in batches) / len(steps),
            merged_tokens=sum(batch.num_tokens for batch in batches) / len(steps),
            microbatches=most,
            flops=self._flops(batches, len(steps), checkpointing, sampling),
            checkpointing=checkpointing,
            update=self._update(batches, most, checkpointing),
            other=self._update(batches, most, not checkpointing),
            features=self._features(batches),
            work=tuple(tuple(self._work(batch) for batch in step) for step in steps),
            encoded=self._encoded(steps),
            rollout=rollout,
            kept=self._kept(rollout),
            copy=self._copy(),
            notes=tuple(self._notes()),
        )

    def _rollout(self) -> tuple[RolloutEstimate | None, float]:
        if not self.is_rl:
            return None, 0.0
        return rollout_estimate(self.trainer, self.text, self.precision, self.response_tokens)

    def _kept(self, rollout: RolloutEstimate | None) -> int:
        """What sampling holds during updates, on CUDA with the memory of its graphs."""
        kept: int = getattr(self.args, "kept_rollout_bytes", 0)
        return kept + (rollout.memory.decoding if kept and rollout and self.cuda else 0)

    # ---- what the steps train on -----------------------------------------------------------

    def _steps(self) -> Iterator[list[ForestBatch]]:
        """The micro-batches of the first epoch's steps."""
        if not self.is_rl:
            for step in range(self.trainer.steps_per_epoch):
                yield self.trainer.prepare(step).batches
            return
        for window in range(self.trainer.sampler.batches_per_epoch):
            samples = self._samples(window)
            size = self.args.samples_per_step
            for first in range(0, len(samples), size):
                yield self.trainer.microbatches(samples[first : first + size])

    def _samples(self, window: int) -> list[Sample]:
        """A window's responses behind their policy-free prompts."""
        rng = np.random.default_rng([self.args.seed, window])
        free = self.trainer.sampler.draw(window).prompts["policy_free"]
        forbidden = self.model.processor.forbidden_token_ids
        allowed = np.setdiff1d(np.arange(self.text.vocabulary), forbidden)
        return [
            Sample.from_prompt(prompt, rng.choice(allowed, self.response_tokens))
            for prompt in free
            for _ in range(self.args.group_size)
        ]

    def _work(self, batch: ForestBatch) -> Work:
        return Work.of(batch, trains_vision=self.model.trains_vision)

    def _encoded(self, steps: Sequence[Sequence[ForestBatch]]) -> float:
        """Patches of a step: each picture once in the stage while all of them fit into the cache,
        else once for every step or window that shows it."""
        if self.model.trains_vision:
            return 0.0
        shown = list(self._pictures(steps))  # of each window
        once = {key: image for images in shown for key, image in images.items()}
        total, of_window = self.trainer.total_steps, getattr(self.trainer, "steps_of_window", 1)
        windows = math.ceil(total / of_window)
        distinct = min(windows, self.trainer.steps_per_epoch // of_window) / len(shown)
        if self._feature_bytes(once.values()) * distinct > MAX_FEATURE_BYTES:
            repeated = sum(num_patches(images.values()) for images in shown)
            return repeated * windows / len(shown) / total
        return num_patches(once.values()) * distinct / total

    def _pictures(self, steps: Sequence[Sequence[ForestBatch]]) -> Iterator[dict[str, Image]]:
        """By key, those of each step; in RL of each window, whose prompts have all of them."""
        if not self.is_rl:
            for step in steps:
                yield {image.key: image for batch in step for image in batch.images}
            return
        for window in range(math.ceil(len(steps) / self.args.steps_per_window)):
            arms = self.trainer.sampler.draw(window).prompts.values()
            yield {i.key: i for prompts in arms for prompt in prompts for i in prompt.images}

    # ---- memory ----------------------------------------------------------------------------

    def _update(
        self, batches: Sequence[ForestBatch], most: int, checkpointing: bool
    ) -> UpdateMemory:
        """Of the dearest micro-batch."""
        memory = replace(self.memory, checkpointing=checkpointing)
        shapes = {BatchShape.of(batch, tiled=memory.tiled) for batch in batches}
        return max((memory.update(s, most) for s in shapes), key=lambda update: update.peak)

    def _features(self, batches: Sequence[ForestBatch]) -> int:
        """While the vision tower is frozen: of the distinct pictures, in the bounded cache. That is
        on the host; to a GPU go those of one micro-batch."""
        if self.model.trains_vision:
            return 0
        if self.cuda:
            return max(self._feature_bytes(batch.images) for batch in batches)
        images = {image.key: image for batch in batches for image in batch.images}
        return min(self._feature_bytes(images.values()), MAX_FEATURE_BYTES)

    def _feature_bytes(self, images: Iterable[Image]) -> int:
        vision = self.model.base.config.vision_config
        levels = 1 + len(getattr(vision, "deepstack_visual_indexes", ()))
        row = self.text.hidden * levels * self.precision.compute
        return sum(image.num_tokens for image in images) * row

    def _copy(self) -> int | None:
        if not getattr(self.args, "keeps_copy", False):
            return None
        return self.memory.training.trained * self.precision.weights

    # ---- counted operations ----------------------------------------------------------------

    def _flops(
        self, batches: Sequence[ForestBatch], steps: int, checkpointing: bool, sampling: float
    ) -> float | None:
        try:
            counts = update_flops(self.model, batches, checkpointing=checkpointing)
        except ValueError:
            return None
        per_step = counts.total / steps
        if not self.is_rl:
            return per_step
        text = counts.linears.forward + counts.attention.forward + counts.head.forward
        passes = (self.trainer.steps_of_window > 1) + bool(self.args.beta)
        scored = passes * text / steps / self.args.num_iterations
        return float(per_step + scored + sampling / self.trainer.steps_of_window)

    def _notes(self) -> Iterator[str]:
        if self.model.trains_vision:
            yield "the vision tower trains: what it keeps for its backward pass is not counted"
        if self.is_rl and self.args.dynamic_sampling:
            yield "dynamic sampling may draw several batches a window; one is counted"
        if self.args.fsdp:
            yield "fsdp: these are the numbers of one process that holds the whole model"
        if self.is_rl and self.args.async_generate:
            yield "async_generate: time is that of sampling and training in turn"
        if self.is_rl and self.args.use_vllm:
            yield "responses are counted as the built-in engine holds them, not as vLLM does"
        if self.cuda:
            yield "the formulas of the CUDA kernels were not measured"


def recipe_data(recipe: Recipe, folder: Path, *, trust_remote_code: bool = False) -> DataFiles:
    """The recipe's data: what its run has made already, else made in `folder` for the estimate."""
    made = Path(recipe.output_dir) / "data" / "meta.json"
    if recipe.generated_data() is None or made.exists():
        return prepare_data(recipe, trust_remote_code=trust_remote_code)
    made_anew = replace(recipe, output_dir=str(folder))
    return prepare_data(made_anew, trust_remote_code=trust_remote_code)
