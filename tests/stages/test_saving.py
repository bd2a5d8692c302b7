"""What the processes of a run must agree on before they save or go on together."""

from __future__ import annotations

import pytest

from fastmpi.checkpoint import checkpoints


def test_processes_that_see_different_checkpoints_do_not_begin(world, monkeypatch) -> None:
    trainer = world.trainer("sft", max_steps=1)
    monkeypatch.setattr(trainer, "gather_json", lambda own: [own, "checkpoint-4"])
    with pytest.raises(ValueError, match="output_dir must be one folder, which all machines share"):
        trainer.train()


@pytest.mark.parametrize("there", [True, False])
def test_the_first_process_says_whether_the_last_checkpoint_is_there(
    world, monkeypatch, there: bool
) -> None:
    trainer = world.trainer("sft", max_steps=1, save_strategy="steps")
    gathered = trainer.gather_json
    monkeypatch.setattr(
        trainer, "gather_json", lambda own: [there] if isinstance(own, bool) else gathered(own)
    )
    trainer.train()
    assert len(checkpoints(trainer.args.output_dir)) == int(not there)
