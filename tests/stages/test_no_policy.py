"""The policy never appears in a training prompt of stages 2 and 3; in stage 1 it always does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmpi.rollout.native import NativeEngine


def contains(ids: np.ndarray, part: np.ndarray) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(part))
    return bool((windows == part).all(1).any())


def shows_policy(trainer: Any, world: Any, ids: np.ndarray) -> bool:
    """Whether any stretch of five tokens of any policy is in `ids`."""
    for policy in world.policies.values():
        tokens = trainer.processor.encode(policy.text)
        stretches = (tokens[i : i + 5] for i in range(len(tokens) - 4))
        if any(contains(ids, stretch) for stretch in stretches):
            return True
    return False


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The token ids of everything that goes through the training model in micro-batches."""
    from fastmpi.stages import step

    seen: list[np.ndarray] = []
    plain = step.microbatches

    def spy(samples: Any, *args: Any, **kwargs: Any) -> Any:
        seen.extend(sample.ids for sample in samples)
        return plain(samples, *args, **kwargs)

    monkeypatch.setattr(step, "microbatches", spy)
    return seen


def test_stage_one_shows_it(world, trained_on: list[np.ndarray]) -> None:
    trainer = world.trainer("cpt", num_train_epochs=1)
    trainer.train()
    assert len(trained_on) == len(world.rows)
    assert all(shows_policy(trainer, world, ids) for ids in trained_on)


@pytest.mark.parametrize("reasoning", [True, False])
def test_stage_two_does_not(world, trained_on: list[np.ndarray], reasoning: bool) -> None:
    trainer = world.trainer("sft", num_train_epochs=1, reasoning=reasoning)
    trainer.train()
    assert len(trained_on) == len(world.rows)
    assert not any(shows_policy(trainer, world, ids) for ids in trained_on)


def test_stage_three_samples_with_it_and_trains_without(
    world, trained_on: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old, new and reference log-probs all go through the micro-batches that are looked at."""
    sampled: list[np.ndarray] = []
    plain = NativeEngine.generate

    def spy(self: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        sampled.extend(prompt.ids for prompt in prompts)
        return plain(self, prompts, *args, **kwargs)

    monkeypatch.setattr(NativeEngine, "generate", spy)
    trainer = world.trainer("rl", max_steps=4, beta=0.1, num_iterations=2)
    trainer.train()
    with_policy = [shows_policy(trainer, world, ids) for ids in sampled]
    assert with_policy == [False, False, True, True] * 2
    assert len(trained_on) == 2 * 12 * (2 + 2)  # two windows: old, reference, two updates
    assert not any(shows_policy(trainer, world, ids) for ids in trained_on)
