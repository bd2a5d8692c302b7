"""The copy of the model that a thread samples with."""

from __future__ import annotations

import torch

from fastmpi.stages.model_engines import ModelCopy


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
