"""A step does not depend on how it is cut: micro-batches, accumulation, sharing, order.

Old log-probs are moved and clipping is active: an on-policy GRPO loss is zero and proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fastmpi.stages.scoring import logprobs

CUTS = {
    "whole": {},
    "cut": {"max_tokens_per_microbatch": 60},
    "unshared": {"share_prefix": False},
    "unshared and cut": {"share_prefix": False, "max_tokens_per_microbatch": 80},
    "accumulated": {"accumulate": True},
    "checkpointed": {"gradient_checkpointing": True},
}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def vector(tensors: Any) -> torch.Tensor:
    return torch.cat([t.detach().double().reshape(-1) for t in tensors])


def take_step(
    trainer: Any, make_step: Callable[[Any], Any]
) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """Gradient, parameters after the step, and metrics."""
    trainer.begin()
    trainer.model.train()
    trainer.accumulate_gradients(make_step(trainer))
    gradient = vector(p.grad for p in trainer.parameters.values())
    trainer.optimizer.zero_grad()
    metrics = trainer.optimizer_step(make_step(trainer))
    return gradient, vector(trainer.parameters.values()), metrics


def settings_of(cut: str, samples: int) -> dict[str, Any]:
    settings = dict(CUTS[cut])
    if settings.pop("accumulate", False):
        return {
            **settings,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": samples,
        }
    return {**settings, "per_device_train_batch_size": samples, "gradient_accumulation_steps": 1}


def policy_step(trainer: Any) -> Any:
    """Responses of two groups of each arm whose old log-probs lie to both sides of the new ones."""
    if not hasattr(trainer, "made"):
        trainer.made = trainer.next_window({})
        generator = torch.Generator().manual_seed(0)
        old = logprobs(trainer, trainer.made, trainer.model)
        moved = old + 0.3 * torch.randn(old.shape, generator=generator, dtype=old.dtype)
        sides = torch.tensor([0.5, -0.5, -0.5, 0.5] * (len(trainer.made) // 4))
        moved += sides.repeat_interleave(trainer.made.lengths)
        advantages = torch.tensor([1.0, -1.0, 0.5, -2.0] * (len(trainer.made) // 4))
        reference = old + 0.1 * torch.randn(old.shape, generator=generator, dtype=old.dtype)
        trainer.made = replace(
            trainer.made, old_logprob=moved, ref_logprob=reference, advantages=advantages
        )
    window = trainer.made
    return replace(
        trainer.next_step(), samples=window.samples(), objective=trainer.objective(window)
    )


RL = {
    "beta": 0.05,
    "delta": 2.0,
    "epsilon_high": 0.28,
    "mask_truncated_completions": False,
}


def check_cuts(run: Callable[[str, str], tuple], metrics: tuple[str, ...]) -> tuple:
    """Every cut takes the step that the whole takes; returns the whole one."""
    for dtype, tolerance, cuts in (("float32", 1e-5, ["cut"]), ("float64", 1e-12, list(CUTS)[1:])):
        whole = run("whole", dtype)
        for cut in cuts:
            found = run(cut, dtype)
            assert relative(found[0], whole[0]) < tolerance, (cut, dtype, "gradient")
            assert relative(found[1], whole[1]) < tolerance, (cut, dtype, "parameters")
            for name in metrics:
                assert found[2][name] == pytest.approx(whole[2][name], rel=1e-4)
    return whole


@pytest.mark.parametrize(("loss_type", "level"), [("dapo", "token"), ("grpo", "sequence")])
def test_policy_step(world, loss_type: str, level: str, without_fp32_casts: None) -> None:
    def run(cut: str, dtype: str) -> tuple[torch.Tensor, torch.Tensor, dict]:
        settings = {**settings_of(cut, 12), **RL}
        settings |= {"loss_type": loss_type, "importance_sampling_level": level}
        if cut == "accumulated":  # groups of six stay whole
            settings |= {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2}
        return take_step(world.trainer("rl", model=world.load(dtype), **settings), policy_step)

    whole = check_cuts(run, ("loss", "kl", "entropy"))
    assert whole[2]["clip_ratio/low_mean"] > 0 and whole[2]["clip_ratio/high_mean"] > 0


@pytest.mark.parametrize("stage", ["cpt", "sft"])
def test_supervised_step(world, stage: str, without_fp32_casts: None) -> None:
    def run(cut: str, dtype: str) -> tuple[torch.Tensor, torch.Tensor, dict]:
        trainer = world.trainer(stage, model=world.load(dtype), **settings_of(cut, 8))
        return take_step(trainer, lambda trainer: trainer.next_step())

    check_cuts(run, ("loss", "entropy"))


def test_order_of_samples(world, without_fp32_casts: None) -> None:
    def run(order: slice) -> tuple[torch.Tensor, torch.Tensor, dict]:
        def make_step(trainer: Any) -> Any:
            step = trainer.next_step()
            return replace(step, samples=step.samples[order], batches=None)

        model = world.load("float64")
        return take_step(world.trainer("cpt", model=model, **settings_of("whole", 8)), make_step)

    expected, found = run(slice(None)), run(slice(None, None, -1))
    assert relative(found[0], expected[0]) < 1e-12
    assert relative(found[1], expected[1]) < 1e-12


def test_sharing_saves_tokens(world) -> None:
    def tokens(**settings: Any) -> dict[str, float]:
        return take_step(world.trainer("cpt", **settings), lambda t: t.next_step())[2]

    shared, repeated = tokens(), tokens(share_prefix=False)
    assert shared["perf/tokens"] == repeated["perf/tokens"] == repeated["perf/merged_tokens"]
    assert shared["perf/prefix_ratio"] > 1.3
    assert repeated["perf/prefix_ratio"] == 1


def test_only_what_is_not_frozen_changes(world) -> None:
    trainer = world.trainer("cpt", max_steps=1)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    changed = {n for n, p in trainer.model.named_parameters() if not p.equal(before[n])}
    assert changed and not any("visual" in name for name in changed)


def test_a_training_tower_gets_gradients(world) -> None:
    trainer = world.trainer("cpt", max_steps=1, freeze_vision=False, freeze_merger=False)
    trainer.begin()
    trainer.model.train()
    trainer.accumulate_gradients(trainer.next_step())
    towers = [p for name, p in trainer.parameters.items() if "visual" in name]
    assert towers and all(p.grad is not None and p.grad.any() for p in towers)


def test_environment_does_not_change_the_gradient(world, monkeypatch) -> None:
    """accelerate would divide by what its launcher sets."""

    def gradient() -> torch.Tensor:
        return take_step(world.trainer("sft"), lambda trainer: trainer.next_step())[0]

    expected = gradient()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert gradient().equal(expected)
