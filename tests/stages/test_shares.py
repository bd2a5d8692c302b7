"""Who takes which rows and responses of a step, as every process plans it for itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastmpi.stages.scoring import logprobs, own_logprobs
from fastmpi.stages.shares import own_share


def of_process(trainer: Any, rank: int, size: int) -> Any:
    """The same trainer as process `rank` of `size`."""
    trainer.accelerator = SimpleNamespace(process_index=rank, num_processes=size)
    return trainer


@pytest.mark.parametrize("size", [2, 3])
def test_supervised(world, size: int) -> None:
    """Each row once; merged tokens as equal as the policies allow, which come together."""
    trainer = world.trainer("cpt", per_device_train_batch_size=10)
    whole = trainer.prepare(0)
    trainer.args.per_device_train_batch_size = -(-10 // size)
    shares = [of_process(trainer, rank, size).prepare(0) for rank in range(size)]
    found = sorted(sample.ids.tobytes() for share in shares for sample in share.samples)
    assert found == sorted(sample.ids.tobytes() for sample in whole.samples)
    merged = [sum(batch.num_tokens for batch in share.batches) for share in shares]
    strided = [
        sum(batch.num_tokens for batch in trainer.microbatches(whole.samples[rank::size]))
        for rank in range(size)
    ]
    assert sum(merged) < sum(strided) and max(merged) < max(strided)
    assert max(merged) < 1.5 * min(merged)


def test_a_process_without_a_sample(world) -> None:
    trainer = world.trainer("sft", per_device_train_batch_size=1, rows=world.rows[:1])
    shares = [of_process(trainer, rank, 3).prepare(0) for rank in range(3)]
    assert sorted(len(share.samples) for share in shares) == [0, 0, 1]
    assert sorted(len(share.batches) for share in shares) == [0, 0, 1]


def test_responses(world) -> None:
    """Whole groups, each on one process; what is scored goes back to its own columns."""
    trainer = world.trainer("rl", per_device_train_batch_size=24, gradient_accumulation_steps=1)
    trainer.begin()
    window = trainer.next_window({})
    alone = logprobs(trainer, window, trainer.model)
    found = np.full(len(window.ids), np.nan)
    seen: list[int] = []
    for rank in range(3):
        of_process(trainer, rank, 3).accelerator.device = window.ids.device
        share = own_share(trainer, window)
        groups = np.array(share.indices) // 6
        assert all((np.array(share.indices) // 6 == g).sum() == 6 for g in groups)
        assert [s.tolist() for s in share.part.rows] == window.rows[share.indices].tolist()
        found[window.columns(share.indices)] = own_logprobs(trainer, share, trainer.model)
        seen += share.indices
    assert sorted(seen) == list(range(len(window)))
    np.testing.assert_allclose(found, alone, atol=1e-5)
