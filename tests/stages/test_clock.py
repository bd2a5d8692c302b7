"""Micro-batches are timed one by one, and pictures by themselves."""

from __future__ import annotations

import threading
import time

import pytest

from fastmpi.models.cost import Work
from fastmpi.stages import profiling


def test_every_micro_batch_of_a_run(world):
    trainer = world.trainer("cpt", max_steps=3, max_tokens_per_microbatch=60)
    trainer.times_microbatches = True
    trainer.train()
    timed = trainer.clock.timed
    steps = [trainer.prepare(step).batches for step in range(3)]
    assert [one.step for one in timed] == [i for i, step in enumerate(steps) for _ in step]
    works = [Work.of(batch, trains_vision=False) for step in steps for batch in step]
    assert [one.work for one in timed] == works
    assert min(one.seconds for one in timed) > 0
    assert timed[-1].encoded == 4 * 16  # patches: four pictures, once each
    assert trainer.clock.cost_model(timed).seconds(works[0]) > 0


def test_pictures_are_not_the_micro_batch_s(world, monkeypatch):
    trainer = world.trainer("sft", max_steps=1, per_device_train_batch_size=10)
    trainer.times_microbatches = True
    encode = trainer.model.encode_images

    def slow(images):
        time.sleep(0.2)
        return encode(images)

    trainer.model.encode_images = slow
    trainer.train()
    assert trainer.features.seconds > 0.8
    assert sum(one.seconds for one in trainer.clock.timed) < 0.7
    found = trainer.clock.cost_model(trainer.clock.timed)
    assert found.patch == pytest.approx(trainer.features.seconds / trainer.features.patches)


def test_what_another_thread_encodes_is_left_out(world):
    """`async_generate` samples, and encodes pictures, beside micro-batches that are timed."""
    trainer = world.trainer("sft", max_steps=1)
    trainer.times_microbatches = True
    trainer.begin()
    images = trainer.prepare(0).samples[0].images
    thread = threading.Thread(target=trainer.features.of, args=(images,))
    thread.start()
    thread.join()
    assert (trainer.features.patches, trainer.features.seconds) == (0, 0.0)
    assert images[0].key in trainer.features._cache
    trainer.close()


def test_no_clock_unless_asked_for(world, monkeypatch):
    monkeypatch.setattr("fastmpi.stages.features.now", lambda device: pytest.fail("timed"))
    trainer = world.trainer("cpt", max_steps=1)
    trainer.train()
    assert trainer.clock is None and trainer.features.patches
    assert profiling.now(trainer.accelerator.device) > 0
