"""`gradient_checkpointing: auto` is on only where a step does not fit into the budget."""

from __future__ import annotations

import pytest
import torch

from fastmpi.config import CPTConfig
from fastmpi.data.batch import ForestBatch
from fastmpi.data.samples import Prompt
from fastmpi.flags import flag_value, flags_of
from fastmpi.models.sizes import BatchShape
from fastmpi.stages.fitting import budget_bytes

CPU = torch.device("cpu")


def test_on_only_where_a_step_does_not_fit(world):
    for budget, on in ((1.0, False), (0.001, True)):
        settings = {"gradient_checkpointing": "auto", "memory_budget_gib": budget}
        trainer = world.trainer("cpt", **settings, max_steps=1)
        trainer.begin()
        layers = trainer.model.text_tower.layers
        assert trainer.checkpoints_layers == on
        assert {layer.gradient_checkpointing for layer in layers} == {on}


def test_what_is_set_is_done(world):
    for on in (True, False):
        settings = {"gradient_checkpointing": on, "memory_budget_gib": 1e-6 if not on else 100.0}
        trainer = world.trainer("cpt", **settings)
        trainer.begin()
        assert trainer.checkpoints_layers == on


def test_a_reference_counts(world):
    def on(beta: float, budget: float) -> bool:
        trainer = world.trainer(
            "rl", gradient_checkpointing="auto", memory_budget_gib=budget, beta=beta
        )
        trainer.begin()
        return trainer.checkpoints_layers

    low, high = 0.0001, 1.0  # halved until the two differ by a thousandth
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if on(0.0, middle) else (low, middle)
    assert not on(0.0, high) and on(0.1, high)


def test_the_budget_is_the_machine_unless_stated():
    assert budget_bytes(CPTConfig(memory_budget_gib=0.5), CPU) == 2**29
    assert budget_bytes(CPTConfig(), CPU) > 2**28


def test_refused():
    with pytest.raises(ValueError, match="'sometimes' is not one of true, false, auto"):
        CPTConfig(gradient_checkpointing="sometimes")
    with pytest.raises(ValueError, match="memory_budget_gib must be positive"):
        CPTConfig(memory_budget_gib=0.0)


def test_on_the_command_line():
    flag = flags_of(CPTConfig)["gradient_checkpointing"]
    assert [flag_value(flag, text) for text in ("auto", "true", "false")] == ["auto", True, False]


def test_one_sequence_has_the_tiles_that_attention_cuts(world):
    processor = world.load().processor
    words = processor.encode(" red cube then else Case 3 small yes no metal")
    for rows in (100, 700, 9000):
        ids = torch.arange(rows).numpy() % 3
        batch = ForestBatch.from_prompts([Prompt(words[ids])], processor)
        cut = BatchShape.of(batch, tiled=True)
        said = BatchShape.of_chain(rows)
        assert (said.tile_pairs, said.tile_keys) == (cut.tile_pairs, cut.tile_keys)
