"""Work on a thread: its result, its error, its end."""

from __future__ import annotations

import gc
import threading
import time
import traceback
import weakref
from typing import Any

import pytest
import torch

from fastmpi.stages.background import BackgroundJob


def test_the_result_is_waited_for() -> None:
    go = threading.Event()

    def work(check: Any) -> int:
        go.wait(10)
        check()
        return 7

    job = BackgroundJob(work, "job")
    threading.Timer(0.05, go.set).start()
    assert job.result() == 7


def test_an_error_comes_with_the_traceback_of_the_thread() -> None:
    def deep(check: Any) -> None:
        raise KeyError("here")

    job = BackgroundJob(deep, "job")
    with pytest.raises(KeyError) as error:
        job.result()
    assert "deep" in [frame.name for frame in traceback.extract_tb(error.value.__traceback__)]


def test_a_cancelled_job_ends_at_its_next_check() -> None:
    def endless(check: Any) -> None:
        while True:
            check()
            time.sleep(0.01)

    before = threading.active_count()
    BackgroundJob(endless, "job").cancel()
    assert threading.active_count() == before


def test_what_a_cancelled_job_held_goes_with_it() -> None:
    """At once: it may be the memory of an engine."""
    held: list[weakref.ref[Any]] = []
    began = threading.Event()

    def work(check: Any) -> None:
        memory = threading.Event()
        held.append(weakref.ref(memory))
        began.set()
        while True:
            check()
            memory.wait(0.01)

    gc.collect()
    gc.disable()
    try:
        job = BackgroundJob(work, "job")
        began.wait(10)
        job.cancel()
        assert held[0]() is None
    finally:
        gc.enable()


def test_an_update_leaves_the_random_generator_to_others(world) -> None:
    """A thread's draws during a recomputation must count: nothing sets the generator back."""
    trainer = world.trainer("rl", gradient_checkpointing=True)
    trainer.begin()
    trainer.model.train()
    step = trainer.next_step()
    trainer.close()
    calls: list[int] = []

    def draw(*_: Any) -> None:
        calls.append(1)
        torch.rand(())

    hook = trainer.model.text_tower.layers[0].mlp.register_forward_pre_hook(draw)
    torch.manual_seed(0)
    trainer.optimizer_step(step)
    hook.remove()
    found = torch.get_rng_state()
    torch.manual_seed(0)
    for _ in calls:
        torch.rand(())
    assert len(calls) >= 2 and found.equal(torch.get_rng_state())
