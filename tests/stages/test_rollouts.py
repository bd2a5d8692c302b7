"""Windows that are sampled beside the updates: by which weights, whatever the timing, and what of
them a checkpoint, an error and the end of a run leave."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from test_resume import assert_same, curves, straight_and_killed  # noqa: E402

from fastmpi.config import PolicyRolloutConfig  # noqa: E402
from fastmpi.rollout.native import NativeEngine  # noqa: E402
from fastmpi.stages.model_engines import ModelCopy  # noqa: E402
from fastmpi.tracking import read_metrics  # noqa: E402

BEHIND = "rollout/off_policy_steps"
RATIO = "sampling/importance_sampling_ratio"
ASYNC = {"async_generate": True, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
PLAIN = {**ASYNC, "vllm_importance_sampling_correction": False}


@pytest.fixture(autouse=True)
def no_thread_stays():
    before = set(threading.enumerate())
    yield
    after = set(threading.enumerate()) - before
    assert not [thread for thread in after if thread.name.startswith("fastmpi")]


def ids_of_windows(trainer: Any) -> list[list[int]]:
    """Trains; the tokens of every window."""
    found: list[list[int]] = []
    next_window = trainer.next_window

    def kept(metrics: dict[str, float]) -> Any:
        window = next_window(metrics)
        found.append(window.ids.tolist())
        return window

    trainer.next_window = kept
    trainer.train()
    return found


def lines(trainer: Any, name: str) -> list[float]:
    return [line[name] for line in read_metrics(trainer.args.output_dir)]


@pytest.mark.parametrize("use_peft", [False, True])
def test_each_window_is_sampled_by_the_weights_before_the_last_update(world, use_peft) -> None:
    saved = {"save_strategy": "steps", "save_steps": 1, "use_peft": use_peft}
    trainer = world.trainer("rl", max_steps=3, **PLAIN, **saved)
    found = ids_of_windows(trainer)
    still = {**PLAIN, "learning_rate": 0.0, "use_peft": use_peft}
    unmoved = world.trainer("rl", max_steps=3, **still, output_dir=str(world.output / "still"))
    start = ids_of_windows(unmoved)
    assert found[:2] == start[:2] and found[2] != start[2]

    checkpoint = world.output / "rl" / "checkpoint-1"
    after_one = world.trainer("rl", model=checkpoint, output_dir=str(world.output / "one"))
    after_one.begin()
    after_one.sampler.batches_drawn = 2
    expected = after_one.next_window({}).ids.tolist()
    after_one.close()
    if use_peft:  # merged, so equal but for rounding
        assert sum(a == b for a, b in zip(found[2], expected, strict=False)) > 0.9 * len(expected)
    else:
        assert found[2] == expected


def test_off_is_on_policy_and_says_so(world) -> None:
    off = world.trainer("rl", max_steps=3)
    windows = ids_of_windows(off)
    assert lines(off, BEHIND) == [0, 0, 0] and off.rollouts._copy is None
    assert "perf/gen_wait_s" not in read_metrics(off.args.output_dir)[0]
    settings = {**PLAIN, "learning_rate": 0.0}
    on = world.trainer("rl", max_steps=3, **settings, output_dir=str(world.output / "on"))
    off = world.trainer("rl", max_steps=3, learning_rate=0.0, output_dir=str(world.output / "off"))
    assert ids_of_windows(on) == ids_of_windows(off)  # the thread samples what the trainer would
    assert windows[1] != ids_of_windows(
        world.trainer("rl", max_steps=3, **ASYNC, output_dir=str(world.output / "other"))
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_steps": 3}, [0, 1, 1]),
        ({"max_steps": 6, "steps_per_generation": 4, "logging_steps": 2}, [0, 2, 2]),
    ],
)
def test_how_far_behind_is_logged(world, settings: dict, expected: list[float]) -> None:
    trainer = world.trainer("rl", **ASYNC, **settings)
    trainer.train()
    assert lines(trainer, BEHIND) == expected
    assert trainer.sampler.batches_drawn == len(expected)  # none that no step would use
    line = read_metrics(trainer.args.output_dir)[-1]
    assert line["perf/gen_wait_s"] >= 0 and line["perf/gen_s"] > 0


def random_reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Draws from torch's own generator, as a checkpoint promises to keep."""
    return [float(torch.rand(())) + ids[0] % 2 for ids in completion_ids]


def slowed(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def slow(*args: Any, **named: Any) -> Any:
        result = function(*args, **named)
        time.sleep(seconds)
        return result

    return slow


def test_results_do_not_depend_on_who_is_faster(world) -> None:
    folders = []
    for who in ("neither", "sampler", "update"):
        trainer = world.trainer(
            "rl",
            **ASYNC,
            max_steps=4,
            eval_steps=2,
            eval_dataset=world.rows[:2],
            gradient_checkpointing=True,
            reward_funcs=random_reward,
            output_dir=str(world.output / who),
        )
        if who == "sampler":
            trainer.sampler._scored = slowed(trainer.sampler._scored, 0.3)
        elif who == "update":
            trainer.forward = slowed(trainer.forward, 0.3)
        torch.manual_seed(3)
        folders.append(trainer.train().output_dir)
    for other in folders[1:]:
        assert_same(other, folders[0])
        assert read_metrics(other)[-1].keys() == read_metrics(folders[0])[-1].keys()


@pytest.mark.parametrize(
    ("killed_at", "settings"),
    [
        (4, {"max_steps": 6, "steps_per_generation": 4, "num_iterations": 2, "beta": 0.1}),
        (2, {"max_steps": 5, "use_peft": True, "beta": 0.1, "save_steps": 1}),
        (
            2,
            {
                "max_steps": 4,
                "save_steps": 1,
                "dynamic_sampling": True,
                "dynamic_sampling_range": (0.2, 0.8),
                "logging_steps": 2,
            },
        ),
    ],
)
def test_resuming_with_a_window_in_flight(world, killed_at: int, settings: dict) -> None:
    assert_same(*straight_and_killed(world, "rl", killed_at, **{**ASYNC, **settings}))
    assert any(line.get(BEHIND) for line in curves(world.output / "broken"))


def test_a_window_in_flight_is_not_sampled_again(world) -> None:
    settings = {**ASYNC, "save_strategy": "steps", "save_steps": 1}
    world.trainer("rl", max_steps=3, **settings).train()
    for last in ("checkpoint-3", "checkpoint-2"):
        for path in sorted((world.output / "rl" / last).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (world.output / "rl" / last).rmdir()
    trainer = world.trainer("rl", max_steps=3, **settings)
    drawn: list[int] = []
    batch = trainer.sampler.batch

    def counted(*args: Any) -> Any:
        drawn.append(trainer.sampler.batches_drawn)
        return batch(*args)

    trainer.sampler.batch = counted
    trainer.train(resume_from_checkpoint="auto")
    assert drawn == [2]  # the first two were sampled by step 1


def test_an_error_while_sampling_ends_the_run_with_its_traceback(world) -> None:
    calls: list[int] = []

    def breaks(completions: list[str], **_: Any) -> list[float]:
        calls.append(1)
        if len(calls) == 3:
            raise OSError("the judge is gone")
        return [float(i % 2) for i in range(len(completions))]

    trainer = world.trainer("rl", reward_funcs=breaks, max_steps=5, **ASYNC)
    with pytest.raises(OSError, match="the judge is gone") as error:
        trainer.train()
    frames = [frame.name for frame in traceback.extract_tb(error.value.__traceback__)]
    assert frames[-1] == "breaks"
    assert trainer.state.global_step == 2 and trainer.rollouts._copy is None


def test_what_interrupts_the_update_ends_the_thread(world) -> None:
    """While it samples: after a few tokens it hears of it."""
    trainer = world.trainer("rl", max_steps=4, max_completion_length=64, **ASYNC)
    tokens: list[int] = []
    engine = ModelCopy.engine

    def slow(self: ModelCopy, check: Callable[[], None]) -> Any:
        def after_a_token() -> None:
            tokens.append(1)
            time.sleep(0.05)
            check()

        return engine(self, after_a_token)

    def interrupted(step: Any) -> Any:
        while not tokens:
            time.sleep(0.01)
        raise KeyboardInterrupt

    trainer.optimizer_step = interrupted
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ModelCopy, "engine", slow)
        trainer.train()
    assert len(tokens) < 10


def test_an_evaluation_sees_nothing_in_flight(world) -> None:
    busy: list[bool] = []

    def evaluate(model: Any, step: int) -> dict[str, float]:
        busy.append(any(t.name == "fastmpi-rollouts" for t in threading.enumerate()))
        return {}

    trainer = world.trainer("rl", max_steps=3, eval_steps=1, evaluate=evaluate, **ASYNC)
    trainer.sampler._scored = slowed(trainer.sampler._scored, 0.3)
    trainer.train()
    assert busy == [False] * 3


def test_reward_functions_see_the_state_at_the_beginning(world) -> None:
    seen: list[int] = []

    def spy(completions: list[str], trainer_state: Any, **_: Any) -> list[float]:
        time.sleep(0.2)
        seen.append(trainer_state.global_step)
        return [float(i % 2) for i in range(len(completions))]

    world.trainer("rl", reward_funcs=spy, max_steps=4, **ASYNC).train()
    assert seen == [0, 0, 1, 2]


def test_dynamic_sampling_may_end_the_run(world) -> None:
    calls: list[int] = []

    def solved_later(completions: list[str], **_: Any) -> list[float]:
        calls.append(1)
        return [1.0 if len(calls) > 2 else float(i % 2) for i in range(len(completions))]

    settings = {"dynamic_sampling": True, "max_resample_batches": 3, "save_strategy": "steps"}
    trainer = world.trainer("rl", reward_funcs=solved_later, max_steps=5, **ASYNC, **settings)
    result = trainer.train()
    assert result.global_step == 2 and len(calls) == 2 + 3
    assert result.stopped.startswith("dynamic sampling found 0 of 2 groups")


def test_the_step_between_is_an_importance_weight(world) -> None:
    """Near 1 for the first window, which is of the weights that train on it."""
    trainer = world.trainer("rl", max_steps=3, **{**ASYNC, "learning_rate": 0.1})
    trainer.train()
    far = [abs(high - 1) for high in lines(trainer, f"{RATIO}/max")]
    assert far[0] < 1e-3 < 0.05 < min(far[1:])
    gap = lines(trainer, "sampling/sampling_logp_difference/max")
    assert gap[0] < 1e-4 < 0.01 < min(gap[1:])
    assert trainer.window.old_logprob is not None

    plain = world.trainer("rl", max_steps=2, **PLAIN, output_dir=str(world.output / "plain"))
    plain.train()
    assert plain.window.old_logprob is None
    assert f"{RATIO}/max" not in read_metrics(plain.args.output_dir)[-1]


def test_what_cannot_overlap_is_refused(world) -> None:
    with pytest.raises(ValueError, match="async_generate: vLLM in this process"):
        PolicyRolloutConfig(async_generate=True, use_vllm=True)
    with pytest.raises(ValueError, match="async_generate samples with a copy of the model"):
        world.trainer("rl", async_generate=True, engine=NativeEngine(world.load()))
    with pytest.raises(ValueError, match="needs vllm_importance_sampling_clip_max"):
        PolicyRolloutConfig(async_generate=True, vllm_importance_sampling_clip_max=None)
