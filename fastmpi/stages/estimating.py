"""What a recipe's stages will hold and count, from their real rows, without a weight being read.

Unusual: the stage's own trainer is built on a model without weights (`models/skeleton.py`), so
rows, order, step sizes and micro-batches are those of the run. Responses do not exist yet: theirs
are random tokens of a stated length, which share nothing but their prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastmpi.config import PolicyRolloutConfig
from fastmpi.data.batch import ForestBatch
from fastmpi.data.samples import Prompt, Sample
from fastmpi.models.flops import update_flops, visible_pairs
from fastmpi.models.memory import (
    BatchShape,
    Precision,
    RolloutMemory,
    TextShape,
    Training,
    UpdateMemory,
    rollout_memory,
    update_memory,
)
from fastmpi.models.skeleton import skeleton
from fastmpi.rollout.cache import shelves
from fastmpi.rollout.native import NativeEngine
from fastmpi.rollout.trunks import find_trunks
from fastmpi.stages.chain import build_trainer, prepare_data
from fastmpi.stages.features import MAX_BYTES as MAX_FEATURE_BYTES

if TYPE_CHECKING:
    from fastmpi.models.forest_model import ForestModel
    from fastmpi.recipe import Recipe, StagePlan
    from fastmpi.stages.record import DataFiles

MAX_SCANNED_STEPS = 64


@dataclass(frozen=True)
class RolloutEstimate:
    """One window of responses. prompt_tokens: of all prompts; merged_prompt_tokens: of the forest
    that they are read as. responses, tokens: of a window. memory: of its largest wave."""

    prompt_tokens: int
    merged_prompt_tokens: int
    responses: int
    tokens: int
    memory: RolloutMemory


@dataclass(frozen=True)
class StageEstimate:
    """One stage. tokens, merged_tokens, flops: means of an optimiser step of one process, over the
    `scanned` first steps; flops None where the model cannot be counted. checkpointing: as the
    stage is set. update, other: memory as it is set, and with checkpointing the other way round.
    features: bytes of cached picture features. notes: what is not in these numbers."""

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
    rollout: RolloutEstimate | None
    notes: tuple[str, ...]

    @property
    def peak(self) -> int:
        """Bytes of tensors at the stage's dearest moment."""
        return max(self.update.peak + self.features, self.rollout_peak)

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
    trainer.choose_trained()
    cuda = device == "cuda" or (device is None and torch.cuda.is_available())
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
        self.text = TextShape.of(self.model.base.config)
        dtype = getattr(torch, self.args.dtype)
        self.precision = Precision.of(dtype, autocast=self.args.bf16)

    def estimate(self, kind: str) -> StageEstimate:
        most_steps = min(MAX_SCANNED_STEPS, self.trainer.total_steps)
        steps = list(islice(self._steps(), most_steps))
        rollout, sampling = self._rollout() if self.is_rl else (None, 0.0)
        batches = [batch for step in steps for batch in step]
        most = max(len(step) for step in steps)
        checkpointing = bool(self.args.gradient_checkpointing)
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
            rollout=rollout,
            notes=tuple(self._notes()),
        )

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

    # ---- memory ----------------------------------------------------------------------------

    def _update(
        self, batches: Sequence[ForestBatch], most: int, checkpointing: bool
    ) -> UpdateMemory:
        largest = max(batches, key=lambda batch: batch.num_tokens)
        return update_memory(
            self.text,
            self.precision,
            self._training(),
            BatchShape.of(largest, tiled=self.backend == "sdpa"),
            checkpointing=checkpointing,
            microbatches=most,
            fused=self.cuda,
        )

    @property
    def backend(self) -> str:
        if self.args.attention_backend != "auto":
            return str(self.args.attention_backend)
        return "triton" if self.cuda else "sdpa"

    def _training(self) -> Training:
        parts = self.model.parts()
        targets = self.args.lora_target_modules
        return Training(
            sum(part.parameters for part in parts),
            sum(part.trainable for part in parts),
            self.model.head.requires_grad,
            lora_rank=self.args.lora_r if self.args.use_peft else 0,
            adapters=7 if targets is None else len(targets),
            reference=getattr(self.trainer, "reference", None) is not None,
        )

    def _features(self, batches: Sequence[ForestBatch]) -> int:
        """Of the distinct pictures, while the vision tower is frozen; the cache is bounded."""
        images = {image.key: image.num_tokens for batch in batches for image in batch.images}
        vision = self.model.base.config.vision_config
        levels = 1 + len(getattr(vision, "deepstack_visual_indexes", ()))
        row = self.text.hidden * levels * self.precision.compute
        return 0 if self.model.trains_vision else min(sum(images.values()) * row, MAX_FEATURE_BYTES)

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

    # ---- rollouts --------------------------------------------------------------------------

    def _rollout(self) -> tuple[RolloutEstimate, float]:
        """The first window's, and the operations that sampling it takes."""
        drawn = self.trainer.sampler.draw(0).prompts
        counts = {"policy_free": self.args.num_generations}
        counts["policy_aware"] = self.args.policy_generations
        asked = [(prompt, counts[arm]) for arm, prompts in drawn.items() for prompt in prompts]
        distinct = {(p.ids.tobytes(), *(i.key for i in p.images)): p for p, n in asked if n}
        prompts = list(distinct.values())
        batch = ForestBatch.from_prompts(prompts, self.model.processor)
        responses = sum(count for _, count in asked)
        estimate = RolloutEstimate(
            prompt_tokens=sum(len(prompt.ids) for prompt in prompts),
            merged_prompt_tokens=batch.num_tokens,
            responses=responses,
            tokens=responses * self.response_tokens,
            memory=self._wave([(prompt, count) for prompt, count in asked if count]),
        )
        lengths = sum(len(prompt.ids) * count for prompt, count in asked)
        return estimate, self._sampling_flops(batch, responses, lengths)

    def _sampling_flops(self, prompts: ForestBatch, responses: int, lengths: int) -> float:
        """Forward only: prompts once, then every token of every response."""
        tokens = responses * self.response_tokens
        pairs = visible_pairs(prompts.subtree_end)
        pairs += lengths * self.response_tokens + tokens * (self.response_tokens + 1) // 2
        linears = 2.0 * self.text.linear_parameters * (prompts.num_tokens + tokens)
        attention = 4.0 * pairs * self.text.query * self.text.layers
        return float(linears + attention + 2.0 * tokens * self.model.head.numel())

    def _wave(self, asked: Sequence[tuple[Prompt, int]]) -> RolloutMemory:
        """Memory of as many of the prompts as the built-in engine samples together."""
        engine = NativeEngine(self.model)
        wave: list[tuple[Prompt, int]] = []
        tokens = responses = 0
        for prompt, count in asked:
            tokens, responses = tokens + len(prompt.ids), responses + count
            full = tokens > engine.max_prompt_tokens or responses > engine.max_responses
            if wave and full:
                break
            wave.append((prompt, count))
        batch = ForestBatch.from_prompts([prompt for prompt, _ in wave], self.model.processor)
        ends = batch.offsets[1:].tolist()
        paths = np.split(batch.flat_index.numpy(), ends[:-1])
        return rollout_memory(
            self.text,
            self.precision,
            forest_rows=batch.num_tokens,
            held_rows=held_rows(paths, engine.min_shared_tokens),
            prompt_lengths=[len(prompt.ids) for prompt, count in wave for _ in range(count)],
            response_tokens=self.response_tokens,
        )

    def _notes(self) -> Iterator[str]:
        if self.model.trains_vision:
            yield "the vision tower trains: what it keeps for its backward pass is not counted"
        if self.is_rl and self.args.dynamic_sampling:
            yield "dynamic sampling may draw several batches a window; one is counted"
        if self.is_rl and getattr(self.args, "use_vllm", False):
            yield "responses are counted as the built-in engine holds them, not as vLLM does"
        if self.cuda:
            yield "the formulas of the CUDA kernels were not measured"


def held_rows(paths: Sequence[np.ndarray], min_shared_tokens: int) -> int:
    """Rows of keys and values that the engine keeps of prompts whose paths through their forest are
    `paths`: trunks once, and each prompt's own part padded to its shelf."""
    trunks = find_trunks(paths, min_shared_tokens)
    distinct = {path.tobytes(): number for number, path in enumerate(paths)}
    own = {number: len(paths[number]) for number in distinct.values()}
    for trunk in trunks:
        for number in trunk.prompts:
            if number in own:
                own[number] -= len(trunk.rows)
    lengths = sorted(own.values())
    padded = sum((stop - start) * lengths[stop - 1] for start, stop in shelves(lengths))
    return padded + sum(len(trunk.rows) for trunk in trunks)


def recipe_data(recipe: Recipe, folder: Path) -> DataFiles:
    """The recipe's data: what its run has made already, else made in `folder` for the estimate."""
    made = Path(recipe.output_dir) / "data" / "meta.json"
    if recipe.generated_data() is None or made.exists():
        return prepare_data(recipe)
    return prepare_data(replace(recipe, output_dir=str(folder)))
