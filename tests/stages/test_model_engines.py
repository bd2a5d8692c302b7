"""The copy of the model that a thread samples with."""

from __future__ import annotations

import pytest
import torch

from fastmpi.rollout import native
from fastmpi.rollout.sampling import SamplingParams
from fastmpi.stages.model_engines import ModelCopy, TrainedModel
from fastmpi.tracking import read_metrics


def test_the_copy_holds_what_trains_and_shares_the_rest(world) -> None:
    for use_peft in (False, True):
        trainer = world.trainer("rl", use_peft=use_peft, async_generate=True)
        trainer.begin()
        copied = ModelCopy(trainer)
        trained = sum(p.numel() * p.element_size() for p in trainer.parameters.values())
        assert copied.num_bytes == trained
        own = dict(trainer.model.named_parameters())
        for name, parameter in copied.model.named_parameters():
            shared = parameter.data_ptr() == own[name].data_ptr()
            assert shared == (name not in trainer.parameters), name
            assert not parameter.requires_grad
        assert all(p.requires_grad for p in trainer.parameters.values())


def test_the_copy_moves_when_told(world) -> None:
    trainer = world.trainer("rl", async_generate=True)
    trainer.begin()
    copied = ModelCopy(trainer)
    head = copied.model.head
    with torch.no_grad():
        trainer.model.head.add_(1.0)
    assert not head.equal(trainer.model.head)
    copied.update()
    assert head.equal(trainer.model.head) and copied.model.head is head


def test_the_copy_samples_what_the_model_would(world) -> None:
    """On CUDA too, where its stream must wait for the weights."""
    trainer = world.trainer("rl", async_generate=True)
    trainer.begin()
    copied = ModelCopy(trainer)
    prompts, params = [trainer.prompt(row) for row in range(4)], SamplingParams(8, seed=3)
    with torch.no_grad():
        if copied._stream is not None:
            torch.cuda._sleep(10**9)  # the copy is asked for long before the weights are there
        trainer.model.head.neg_()
    copied.update()
    found = copied.engine(lambda: None).generate(prompts, 3, params)
    expected = TrainedModel(trainer).generate(prompts, 3, params)
    assert all(
        a.ids.tolist() == b.ids.tolist()
        for these, those in zip(found, expected, strict=True)
        for a, b in zip(these, those, strict=True)
    )


@pytest.fixture
def pools(monkeypatch) -> list[int]:
    """Bytes of each allocation for keys and values."""
    made: list[int] = []
    pool = native.KeyValuePool

    def counted(*arguments):
        made.append((found := pool(*arguments)).nbytes)
        return found

    monkeypatch.setattr(native, "KeyValuePool", counted)
    return made


def _rewards(trainer) -> list[float]:
    trainer.train()
    return [line["reward"] for line in read_metrics(trainer.args.output_dir) if "reward" in line]


def test_a_stated_memory_is_allocated_once_a_run_and_changes_nothing(world, pools) -> None:
    wanted = _rewards(world.trainer("rl", max_steps=3))
    assert len(pools) == 3
    for number, gib in enumerate((0.001, 0.0004)):
        output_dir = str(world.output / str(number))
        trainer = world.trainer("rl", max_steps=3, rollout_memory_gib=gib, output_dir=output_dir)
        assert _rewards(trainer) == pytest.approx(wanted)
        assert len(pools) == 4 + number and pools[-1] <= gib * 2**30


def test_the_copys_memory_is_given_up_before_the_model_samples(world, pools) -> None:
    trainer = world.trainer("rl", max_steps=3, rollout_memory_gib=0.001, async_generate=True)
    trainer.train()
    assert len(pools) == 2  # the first window is the model's own, the others the copy's
    with trainer.rollouts.engine():
        assert trainer.rollouts._copy is None


def test_steps_of_a_model_for_one_call_are_not_captured(world) -> None:
    trainer = world.trainer("rl")
    trainer.begin()
    assert TrainedModel(trainer).cuda_graphs
    assert not TrainedModel(trainer, trainer.model).cuda_graphs
