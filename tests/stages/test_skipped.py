"""A loss or gradient that is not finite changes no weight, is counted, and ends a run that goes on
like that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastmpi.checkpoint import checkpoints
from fastmpi.tracking import read_metrics

NAN, INF = float("nan"), float("inf")


def spoilt(objective: Any, value: float) -> Any:
    """The objective, whose loss, and with it the gradient, is multiplied by `value`."""
    plain = type(objective)

    class Spoilt(plain):
        def __call__(self, *args: Any) -> Any:
            return super().__call__(*args) * value

    objective.__class__ = Spoilt
    return objective


def spoil(trainer: Any, bad: Callable[[int], bool], value: float = NAN) -> Any:
    """`trainer`, the losses of whose steps (1, 2, ...) that `bad` tells of are spoilt."""
    plain = trainer.next_step

    def next_step() -> Any:
        step = plain()
        if bad(trainer.state.global_step + 1):
            spoilt(step.objective, value)
        return step

    trainer.next_step = next_step
    return trainer


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("stage", ["cpt", "rl"])
def test_a_skipped_step_changes_nothing(world, stage: str, value: float) -> None:
    trainer = spoil(world.trainer(stage), lambda step: step == 2, value)
    trainer.begin()
    trainer.model.train()
    for step in (1, 2, 3):
        before = weights(trainer.model)
        moments = [v.clone() for s in trainer.optimizer.state.values() for v in s.values()]
        metrics = trainer.optimizer_step(trainer.next_step())
        trainer.state.global_step = step
        same = all(p.equal(before[name]) for name, p in trainer.model.named_parameters())
        assert same == (step == 2)
        assert trainer.state.skipped_in_row == (step == 2)
        assert ("grad_norm" in metrics) == (step != 2)
        if step == 2:
            after = [v for s in trainer.optimizer.state.values() for v in s.values()]
            assert all(a.equal(b) for a, b in zip(after, moments, strict=True))
        assert all(p.grad is None for p in trainer.parameters.values())
    assert trainer.state.skipped_steps == 1


def test_it_is_counted_and_shown(world, capsys) -> None:
    trainer = spoil(world.trainer("sft", max_steps=4, disable_tqdm=True), lambda step: step == 2)
    trainer.train()
    lines = read_metrics(trainer.args.output_dir)
    assert [line["skipped_steps"] for line in lines] == [0, 1, 1, 1]
    assert ["grad_norm" in line for line in lines] == [True, False, True, True]
    said = "".join(capsys.readouterr())
    assert "step 2 is skipped" in said and "(1 skipped so far)" in said
    assert "step 3 is skipped" not in said


def test_a_loss_alone_is_enough(world) -> None:
    """Its gradient may be finite where the loss overflows."""
    trainer = world.trainer("cpt")
    trainer.begin()
    trainer.model.train()
    before, step = weights(trainer.model), trainer.next_step()
    step.objective.metrics = lambda sums: {"loss": INF}
    assert "loss" not in trainer.optimizer_step(step)
    assert all(p.equal(before[name]) for name, p in trainer.model.named_parameters())


def test_ten_in_a_row_end_the_run_with_its_state_saved(world) -> None:
    settings = {"max_steps": 40, "save_strategy": "no"}
    trainer = spoil(world.trainer("cpt", **settings), lambda step: step > 3 and step != 8)
    with pytest.raises(RuntimeError, match="10 steps in a row .*checkpoint-18"):
        trainer.train()
    (saved,) = checkpoints(trainer.args.output_dir)
    assert saved.name == "checkpoint-18"
    resumed = world.trainer("cpt", max_steps=40, save_strategy="no")
    assert resumed.train(resume_from_checkpoint="auto").global_step == 40
    assert resumed.state.skipped_steps == 14 and resumed.state.skipped_in_row == 0
