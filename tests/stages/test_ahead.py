"""Steps that are prepared ahead are the same steps, and nothing of it outlives the run."""

from __future__ import annotations

import threading

import pytest
import torch


def parameters(trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.fixture(autouse=True)
def no_thread_stays():
    before = set(threading.enumerate())
    yield
    after = set(threading.enumerate()) - before
    assert not [thread for thread in after if thread.name == "fastmpi-prefetch"]


@pytest.mark.parametrize("stage", ["cpt", "rl"])
def test_results_do_not_depend_on_it(world, stage):
    found = {}
    for depth in (0, 2):
        trainer = world.trainer(stage, max_steps=3, dataloader_prefetch_factor=depth)
        metrics = trainer.train().metrics
        assert metrics["perf/data_wait_s"] > 0
        found[depth] = parameters(trainer)
    assert found[0].equal(found[2])


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_an_error_in_the_thread_ends_the_run_and_the_thread(world, stage, monkeypatch):
    trainer = world.trainer(stage, max_steps=4)
    broken = "sample" if stage == "sft" else "draw"

    def unreadable(*_):
        raise ValueError("row 'r7': picture.png is unreadable")

    owner = trainer if stage == "sft" else trainer.sampler
    if stage == "sft":
        trainer._samples._kept.clear()  # what the check has read
    else:
        monkeypatch.setattr(owner.ahead, "make", unreadable)
    monkeypatch.setattr(owner, broken, unreadable)
    with pytest.raises(ValueError, match="row 'r7'"):
        trainer.train()
