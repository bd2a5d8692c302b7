"""Loops that run one step at a time, and the parts of a step."""

from __future__ import annotations

import gc
import threading
import time

import pytest
import torch

from fastmpi.benchmarks.step_loop import Laps, Stepper


def test_the_loop_runs_only_while_it_is_asked_to():
    done: list[int] = []

    def loop(step_done):
        for number in range(100):
            done.append(number)
            step_done()

    stepper = Stepper(loop)
    assert done == []
    for count in (1, 2, 3):
        stepper()
        assert done == list(range(count))


def test_an_error_of_the_loop_is_that_of_its_step_and_of_all_after_it():
    def loop(step_done):
        step_done()
        raise ValueError("broken")

    stepper = Stepper(loop)
    stepper()
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            stepper()


def test_a_loop_that_ends_is_an_error():
    stepper = Stepper(lambda step_done: step_done())
    stepper()
    with pytest.raises(RuntimeError, match="ended"):
        stepper()


def test_a_loop_that_nobody_refers_to_ends():
    ended = threading.Event()

    def loop(step_done):
        try:
            while True:
                step_done()
        finally:
            ended.set()

    stepper = Stepper(loop)
    stepper()
    del stepper
    gc.collect()
    assert ended.wait(10)


def test_a_part_inside_another_counts_once():
    laps = Laps(torch.device("cpu"))
    sleep = laps.timed("inner", lambda: time.sleep(0.05))
    with laps.part("outer"):
        time.sleep(0.02)
        sleep()
        sleep()
    found = laps.ms
    assert 100 <= found["inner"]["ms"] < 1000
    assert 20 <= found["outer"]["ms"] < found["inner"]["ms"]
    assert found["inner"]["cpu_ms"] < found["inner"]["ms"]
    laps.reset()
    assert laps.ms == {}
