"""How often the networks run in a step of stage 3: nothing twice that once is enough for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastmpi.models.forest_model import ForestModel
from fastmpi.stages.features import FeatureCache
from fastmpi.tracking import read_metrics


def spied(monkeypatch: pytest.MonkeyPatch, name: str, note: Any) -> list[Any]:
    """What `note(model, first argument)` says of every call of this method of ForestModel."""
    calls: list[Any] = []
    plain = getattr(ForestModel, name)

    def spy(self: ForestModel, first: Any, *rest: Any) -> Any:
        calls.append(note(self, first))
        return plain(self, first, *rest)

    monkeypatch.setattr(ForestModel, name, spy)
    return calls


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({}, ["train"]),  # the first forward is the old one
        ({"num_iterations": 2}, ["old", "train", "train"]),
        ({"beta": 0.1}, ["frozen", "train"]),
        ({"beta": 0.1, "use_peft": True}, ["adapter off", "train"]),
        ({"async_generate": True}, ["old", "train"]),
    ],
)
def test_forwards_of_a_window(world, monkeypatch, settings: dict, passes: list[str]) -> None:
    trainer = world.trainer("rl", max_tokens_per_microbatch=4096, max_steps=2, **settings)

    def note(model: ForestModel, batch: Any) -> str:
        if model is trainer.reference:
            return "frozen"
        if trainer.args.use_peft and off(model):
            return "adapter off"
        return "train" if torch.is_grad_enabled() else "old"

    calls = spied(monkeypatch, "forward", note)
    trainer.begin()
    trainer.model.train()
    for _ in range(trainer.steps_of_window):
        trainer.optimizer_step(trainer.next_step())
    trainer.close()
    assert calls == passes


def off(model: ForestModel) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    return all(layer.disable_adapters for layer in layers)


@pytest.mark.parametrize("use_peft", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
def test_pictures_are_encoded_once(world, monkeypatch, use_peft: bool, overlap: bool) -> None:
    """For both arms, the reference, two passes over a window, and the same rows an epoch later."""
    calls = spied(monkeypatch, "encode_images", lambda model, images: [i.key for i in images])
    trainer = world.trainer(
        "rl",
        use_peft=use_peft,
        beta=0.1,
        num_iterations=2,
        max_steps=24,  # two epochs of five windows, and two more
        async_generate=overlap,
        dataloader_prefetch_factor=0,
    )
    trainer.train()
    keys = [key for call in calls for key in call]
    assert len(set(keys)) == 4
    assert len(keys) == 4 or overlap  # two threads may both encode one


def test_a_tower_that_trains_is_run_every_time(world, monkeypatch) -> None:
    calls = spied(monkeypatch, "encode_images", lambda model, images: torch.is_grad_enabled())
    trainer = world.trainer("rl", freeze_vision=False, max_steps=3)
    trainer.train()
    assert sum(calls) >= 3 and len(trainer.features._cache) == 0


def test_features_are_bounded_in_bytes(world) -> None:
    trainer = world.trainer("cpt", max_steps=1)
    trainer.begin()
    images = [trainer.processor.image(row["images"][0]) for row in world.rows[:4]]
    one = trainer.features.of(images[:1]).num_bytes
    cache = FeatureCache(trainer.model, trainer.precision, max_bytes=2 * one)
    found = cache.of(images)
    assert len(cache._cache) == 2 and cache.patches == 4 * 16
    assert found.rows.equal(trainer.model.encode_images(images).rows) or found.rows.allclose(
        trainer.model.encode_images(images).rows, atol=1e-6
    )
    cache.of(images[2:])
    assert cache.patches == 4 * 16  # the two that were used last
    cache.of(images[:1])
    assert cache.patches == 5 * 16


@pytest.mark.gpu
def test_features_wait_on_the_host(world) -> None:
    trainer = world.trainer("cpt", max_steps=1)
    trainer.begin()
    found = trainer.features.of([trainer.processor.image(world.rows[0]["images"][0])])
    assert found.rows.device.type == "cuda"
    ((kept, _),) = trainer.features._cache._kept.values()
    assert kept.rows.device.type == "cpu" and kept.rows.equal(found.rows.cpu())


@pytest.mark.parametrize("overlap", [False, True])
def test_a_step_says_what_it_took(world, overlap: bool) -> None:
    trainer = world.trainer("rl", max_steps=2, beta=0.1, async_generate=overlap)
    trainer.train()
    for line in read_metrics(trainer.args.output_dir):
        seconds = {n: line[f"perf/{n}_s"] for n in ("gen", "reward", "logp", "train", "data_wait")}
        assert min(seconds.values()) >= 0 and seconds["gen"] > seconds["reward"]
        assert line["perf/gen_tokens_per_s"] > 0 and line["perf/tokens_per_s"] > 0
        assert 0.01 < line["perf/peak_gb"] < 1000
        if not overlap:
            parts = seconds["gen"] + seconds["logp"] + seconds["train"]
            assert 0 < parts <= line["step_time"]  # on a busy machine the rest may be any length
