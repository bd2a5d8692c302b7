"""One step of reinforcement learning, as fastmpi's trainer makes it and as TRL's does.

Both run their own `train()`, one step at a time. Parts of a step: `rollout`, prompts and sampling;
`scoring`, rewards and, in TRL, what it prepares for the loss; `update`, all the rest, the loop
around it included. With these settings neither needs log-probs before the update. TRL's methods
are timed where they stand; nothing of it is copied.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fastmpi.benchmarks.harness import Outputs, Run
from fastmpi.benchmarks.peers import load
from fastmpi.benchmarks.step_inputs import SETTINGS, StepInputs
from fastmpi.benchmarks.step_loop import Laps
from fastmpi.benchmarks.step_rows import SEED, before_shuffling
from fastmpi.benchmarks.step_run import StepRun, flat_copy, watch_first_step
from fastmpi.config import PolicyRolloutConfig
from fastmpi.data.prompts import render
from fastmpi.models.attention import STOCK_ATTENTION
from fastmpi.policies.policy import PolicySet
from fastmpi.rollout.engine import Response
from fastmpi.stages.rl import PolicyRolloutTrainer


def ours(inputs: StepInputs) -> Run:
    """`PolicyRolloutTrainer` with its own engine."""
    model = inputs.own_model()
    laps, learned, folder = Laps(model.device), {}, tempfile.TemporaryDirectory()
    trainer = PolicyRolloutTrainer(
        model,
        _our_settings(inputs, folder.name),
        before_shuffling(inputs.rows),
        reward_funcs=laps.timed("scoring", inputs.reward),
        policies=PolicySet({inputs.policy.policy_id: inputs.policy}),
    )
    trainer.engine = _GivenFirst(trainer, inputs.given)
    watch_first_step(trainer, learned)
    trainer.next_step = laps.timed("rollout", trainer.next_step)

    def loop(step_done: Callable[[], None]) -> None:
        trainer.evaluate = lambda *_: step_done() or {}
        with folder:
            trainer.train()

    return StepRun(loop, laps, learned)


def _our_settings(inputs: StepInputs, folder: str) -> PolicyRolloutConfig:
    shape = inputs.shape
    return PolicyRolloutConfig(
        **SETTINGS,
        output_dir=folder,
        per_device_train_batch_size=shape.responses,
        num_generations=shape.free,
        num_policy_generations=shape.aware,
        max_completion_length=shape.response,
        gradient_checkpointing=shape.checkpointing,
        seed=SEED,
        eval_steps=1,  # the trainer calls `evaluate` after every step
        save_strategy="no",
        disable_tqdm=True,
    )


class _GivenFirst:
    """The engine of the first step: the given responses. Then the trainer takes its own."""

    def __init__(self, trainer: PolicyRolloutTrainer, given: list[np.ndarray]) -> None:
        self._trainer, self._given = trainer, given

    def generate(
        self, prompts: Sequence[Any], num_responses: Sequence[int], *_: Any, **__: Any
    ) -> list[list[Response]]:
        assert sum(num_responses) == len(self._given)
        self._trainer.engine = None
        left = [Response(ids, np.zeros(len(ids), np.float32), False) for ids in self._given]
        return [[left.pop(0) for _ in range(count)] for count in num_responses]


def trl(inputs: StepInputs, *, in_sight: bool = False) -> Run:
    """TRL's `GRPOTrainer` with transformers' `generate`. in_sight: the aware responses have the
    policy in their prompts, as a group of their own; otherwise all are one group without it."""
    trainer_class = load("trl.trainer.grpo_trainer").GRPOTrainer
    model = inputs.own_model().base
    model.set_attn_implementation({"text_config": STOCK_ATTENTION})
    laps, learned, folder = Laps(model.device), {}, tempfile.TemporaryDirectory()
    trainer = trainer_class(
        model=model,
        reward_funcs=inputs.reward,
        args=_trl_settings(inputs, folder.name, in_sight),
        train_dataset=_trl_rows(inputs, in_sight),
        processing_class=_trl_processor(inputs),
    )
    _watch_trl(trainer, laps, learned, inputs)

    def loop(step_done: Callable[[], None]) -> None:
        trainer.add_callback(_callback(step_done, learned))
        with folder:
            trainer.train()

    return StepRun(loop, laps, learned)


def _trl_settings(inputs: StepInputs, folder: str, in_sight: bool) -> Any:
    shape = inputs.shape
    return load("trl").GRPOConfig(
        **SETTINGS,
        output_dir=folder,
        per_device_train_batch_size=shape.responses,
        num_generations=shape.free if in_sight else shape.responses,
        max_completion_length=shape.response,
        generation_kwargs={"suppress_tokens": list(inputs.model.processor.forbidden_token_ids)},
        gradient_checkpointing=shape.checkpointing,
        seed=SEED,
        shuffle_dataset=False,
        bf16=False,
        use_cpu=inputs.model.device.type == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _trl_rows(inputs: StepInputs, in_sight: bool) -> Any:
    """Messages and pictures; with the policy in sight each row also has a twin that shows it."""
    from datasets import Dataset

    rows = []
    for row in inputs.rows:
        asked = [{"role": "user", "content": row["prompt"]}]
        rows.append({"prompt": asked, "images": row["images"]})
        if in_sight:
            rows.append({**rows[-1], "prompt": [*inputs.policy.messages, *asked]})
    return Dataset.from_list(rows)


def _trl_processor(inputs: StepInputs) -> Any:
    """transformers' processor of the model, which wants torchvision for videos that nobody has."""
    from transformers import Qwen2_5_VLProcessor

    class WithoutVideos(Qwen2_5_VLProcessor):
        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            return (
                None
                if argument is None
                else super().check_argument_for_proper_class(name, argument)
            )

    own = inputs.model.processor
    return WithoutVideos(
        own.image_processor, own.tokenizer, chat_template=own.tokenizer.chat_template
    )


def _watch_trl(trainer: Any, laps: Laps, learned: Outputs, inputs: StepInputs) -> None:
    """Times the parts of a step, and gives the first one its responses."""
    given = [ids.tolist() for ids in inputs.given]
    wanted = render(inputs.rows[0], inputs.model.processor).ids
    loss_of = trainer.compute_loss

    def given_turn(prompt_ids: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        assert list(prompt_ids[0]) == wanted.tolist(), "the arms' prompts differ"
        del trainer._generate_single_turn
        return given, None

    def first_loss(*args: Any, **kwargs: Any) -> Tensor:
        del trainer.compute_loss
        loss = loss_of(*args, **kwargs)
        learned["loss"] = loss.detach()
        return loss

    trainer._generate_single_turn = given_turn
    trainer.compute_loss = first_loss
    trainer._generate = laps.timed("rollout", trainer._generate)
    scored = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = laps.timed("scoring", scored)


def _callback(step_done: Callable[[], None], learned: Outputs) -> Any:
    from transformers import TrainerCallback

    class AfterEachStep(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step == 0:
                trained = [p for p in more["model"].parameters() if p.requires_grad]
                learned["gradient"] = flat_copy(trained)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            step_done()

    return AfterEachStep()
