"""The rl stage with vLLM as its engine, against stand-ins: weights, gaps, and ratios that act."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))
from vllm_server_standin import serving  # noqa: E402
from vllm_standin import LLM, module  # noqa: E402

from fastmpi.config import PolicyRolloutConfig  # noqa: E402
from fastmpi.rollout.engine import Response  # noqa: E402
from fastmpi.rollout.native import NativeEngine  # noqa: E402
from fastmpi.rollout.vllm import VLLMEngine  # noqa: E402
from fastmpi.stages.objectives import PolicyLoss  # noqa: E402
from fastmpi.stages.scoring import logprobs  # noqa: E402
from fastmpi.tracking import read_metrics  # noqa: E402


@pytest.fixture
def vllm(monkeypatch):
    stand_in = module()
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    return stand_in


def weights_of(llm: LLM) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for _, p in sorted(llm.network.named_parameters())])


def weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for _, p in sorted(model.base.named_parameters())])


GAP = "sampling/sampling_logp_difference"
RATIO = "sampling/importance_sampling_ratio"


def test_a_few_steps_with_vllm(world, vllm) -> None:
    """Every window is sampled from the weights of its step; the gap is that of rounding."""
    trainer = world.trainer("rl", use_vllm=True, max_steps=3)
    seen = []
    sync = trainer.vllm.awake

    def awake():
        seen.append(weights(trainer.model))
        return sync()

    trainer.vllm.awake = awake
    result = trainer.train()
    (llm,) = vllm.made
    assert result.global_step == 3
    assert trainer.vllm.engine is None  # its memory is for what comes after
    assert llm.calls == ["reload_weights", "reset_prefix_cache", "generate"] * 3
    assert not torch.equal(seen[0], seen[2])
    torch.testing.assert_close(weights_of(llm), seen[2], rtol=0, atol=0)  # of the last window
    assert not torch.equal(weights_of(llm), weights(trainer.model))
    for line in read_metrics(world.output / "rl"):
        assert 0 <= line[f"{GAP}/mean"] <= line[f"{GAP}/max"] < 1e-3
        assert abs(line[f"{RATIO}/mean"] - 1) < 1e-2
        assert line["perf/sync_s"] > 0


def test_what_was_sampled_comes_from_the_weights_of_the_step(world, vllm, monkeypatch) -> None:
    """Without handing over, the gap of the second window would be that of an update."""
    settings = {"use_vllm": True, "max_steps": 2, "learning_rate": 0.3}
    trainer = world.trainer("rl", **settings, output_dir=str(world.output / "synced"))
    trainer.train()
    assert read_metrics(world.output / "synced")[1][f"{GAP}/max"] < 1e-2

    trainer = world.trainer("rl", **settings, output_dir=str(world.output / "stale"))
    sync, synced = VLLMEngine.sync, []

    def once(self, model):
        synced.append(1)
        if len(synced) == 1:
            sync(self, model)

    monkeypatch.setattr(VLLMEngine, "sync", once)
    trainer.train()
    assert read_metrics(world.output / "stale")[1][f"{GAP}/max"] > 0.05


def test_sleep_surrounds_updates(world, vllm) -> None:
    settings = {"vllm_enable_sleep_mode": True, "eval_steps": 1}
    trainer = world.trainer(
        "rl", use_vllm=True, max_steps=2, **settings, eval_dataset=world.rows[:2]
    )
    trainer.train()
    (llm,) = vllm.made
    one = [
        ("wake_up", ("weights",)),
        "reload_weights",
        ("wake_up", ("kv_cache",)),
        "reset_prefix_cache",
        "generate",
        "sleep",
    ]
    # window, evaluation, window of the same weights, which sleep has lost, evaluation
    assert llm.calls == ["sleep", *one, *one, *one, *one]


def test_weights_are_handed_over_once_a_window_and_not_again_without_an_update(world, vllm) -> None:
    trainer = world.trainer(
        "rl", use_vllm=True, max_steps=4, steps_per_generation=4, eval_steps=2,
        eval_dataset=world.rows[:1],
    )  # fmt: skip
    trainer.train()
    calls = [call for call in vllm.made[0].calls if call in ("reload_weights", "generate")]
    # a window lasts two steps: window, evaluation after step 2, window (same weights), evaluation
    assert calls == ["reload_weights", "generate"] * 2 + ["generate", "reload_weights", "generate"]


def test_lora_and_how_vllm_is_started(world, vllm) -> None:
    trainer = world.trainer(
        "rl", use_vllm=True, use_peft=True, max_steps=2, bf16=False, seed=9,
        vllm_gpu_memory_utilization=0.25, vllm_max_model_length=512, temperature=0.5,
    )  # fmt: skip
    trainer.train()
    (llm,) = vllm.made
    assert (llm.gpu_memory_utilization, llm.max_model_len, llm.seed) == (0.25, 512, 9)
    assert llm.dtype == "float32" and llm.logprobs_mode == "processed_logprobs"
    assert {params.temperature for params in llm.params} == {0.5}
    # of the merged adapter; 0.5 is not 1, so placeholders' mass is in the gap
    assert read_metrics(world.output / "rl")[-1][f"{GAP}/max"] < 0.05


@pytest.mark.parametrize(("settings", "dtype"), [({"bf16": True}, "bfloat16"), ({}, "float32")])
def test_vllm_computes_in_trainings_precision(world, vllm, settings, dtype) -> None:
    trainer = world.trainer("rl", model=world.load("float64"), use_vllm=True, **settings)
    trainer.begin()
    with trainer.vllm.awake():
        assert vllm.made[0].dtype == dtype


def test_a_resumed_run_hands_its_own_weights_over(world, vllm) -> None:
    settings = {"use_vllm": True, "save_strategy": "steps", "save_steps": 1}
    world.trainer("rl", max_steps=2, **settings).train()
    straight = vllm.made[-1]
    world.trainer("rl", max_steps=3, **settings).train(resume_from_checkpoint="auto")
    resumed = vllm.made[-1]
    assert resumed is not straight
    assert resumed.calls == ["reload_weights", "reset_prefix_cache", "generate"]
    assert read_metrics(world.output / "rl")[-1][f"{GAP}/max"] < 1e-3


def test_with_a_server(world) -> None:
    with serving(world.model) as server:
        settings = {"vllm_mode": "server", "vllm_server_base_url": server.url}
        trainer = world.trainer("rl", use_vllm=True, max_steps=2, **settings)
        trainer.train()
        paths = [path for path, _ in server.asked]
    assert [p for p in paths if "generate" not in p] == [
        "/collective_rpc", "/reset_prefix_cache"
    ] * 2  # fmt: skip
    assert [path.name for path in (world.output / "rl/vllm_weights").iterdir()] == ["weights-2"]
    assert read_metrics(world.output / "rl")[-1][f"{GAP}/max"] < 1e-3


def test_no_vllm_and_no_server_end_before_the_first_step(world, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match=r"use_vllm: .*pip install fastmpi\[vllm\]"):
        world.trainer("rl", use_vllm=True)
    trainer = world.trainer(
        "rl", use_vllm=True, vllm_mode="server", vllm_server_base_url="http://127.0.0.1:1",
        vllm_server_timeout=0,
    )  # fmt: skip
    with pytest.raises(ConnectionError, match="no vLLM server"):
        trainer.train()
    assert not world.output.exists()


def test_several_processes_need_a_server(world, vllm, monkeypatch) -> None:
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 2))
    with pytest.raises(ValueError, match="colocate is for one process"):
        world.trainer("rl", use_vllm=True)


# ---- importance weights -------------------------------------------------------------------------


class Biased(NativeEngine):
    """The model itself, that says other log-probs than it sampled with."""

    def __init__(self, model: Any, shift: float) -> None:
        super().__init__(model)
        self.shift = shift

    def generate(self, *args: Any, **kwargs: Any) -> list[list[Response]]:
        return [
            [Response(r.ids, r.logprobs + np.float32(self.shift), r.finished) for r in responses]
            for responses in super().generate(*args, **kwargs)
        ]


def gradient(world: Any, shift: float, **settings: Any) -> tuple[dict[str, Any], Any]:
    """Gradients by name, and the window, of one step on responses with shifted log-probs."""
    model = world.load("float64")
    trainer = world.trainer("rl", model=model, engine=Biased(model, shift), **settings)
    trainer.begin()
    metrics: dict[str, float] = {}
    window = trainer.next_window(metrics)
    trainer.window, trainer.steps_done = window, 0
    trainer.accumulate_gradients(trainer.next_step())
    return {n: p.grad for n, p in trainer.parameters.items()}, (window, metrics, trainer)


CORRECTED = {
    "use_vllm": True,
    "vllm_mode": "server",
    "vllm_server_base_url": "http://127.0.0.1:1",
    "vllm_importance_sampling_mode": "token_truncate",
}


def test_ratios_multiply_the_loss_of_policy_free_responses_alone(world) -> None:
    """A shift of log 2 halves the policy-free gradient and leaves the policy-aware one."""
    plain, (window, _, trainer) = gradient(world, 0.0)
    shifted, (again, metrics, _) = gradient(world, float(np.log(2)), **CORRECTED)
    assert torch.equal(window.ids, again.ids)
    for name in ("min", "mean", "max"):
        assert metrics[f"{RATIO}/{name}"] == pytest.approx(0.5, rel=1e-4)

    halves = trainer.objective(window)  # by hand: half the weight for policy-free responses
    halves.token_weights = halves.token_weights * torch.where(window.policy_aware, 1.0, 0.5)
    for parameter in trainer.parameters.values():
        parameter.grad = None
    for batch in trainer.microbatches(window.samples()):
        trainer.forward(batch, halves).backward()
    differs = 0
    for name, parameter in trainer.parameters.items():
        torch.testing.assert_close(shifted[name], parameter.grad, rtol=1e-4, atol=1e-9)
        differs += not torch.allclose(plain[name], shifted[name], rtol=1e-2, atol=1e-9)
    assert differs > 5


def test_ratios_are_truncated(world) -> None:
    _, (_, metrics, _) = gradient(world, -2.0, **CORRECTED)
    assert metrics[f"{RATIO}/max"] == 3.0
    low = {"vllm_importance_sampling_clip_min": 0.9}
    _, (_, metrics, _) = gradient(world, 2.0, **CORRECTED, **low)
    assert metrics[f"{RATIO}/min"] == 0.9


def test_without_correction_nothing_is_multiplied(world) -> None:
    off = {**CORRECTED, "vllm_importance_sampling_correction": False}
    plain, _ = gradient(world, 0.0)
    shifted, (window, metrics, _) = gradient(world, 1.0, **off)
    assert window.old_logprob is None and f"{RATIO}/mean" not in metrics
    assert all(torch.equal(plain[name], shifted[name]) for name in plain)


def test_correction_of_matching_logprobs_changes_nothing(world) -> None:
    plain, _ = gradient(world, 0.0)
    corrected, (window, _, _) = gradient(world, 0.0, **CORRECTED)
    assert window.old_logprob is not None
    for name in plain:
        torch.testing.assert_close(plain[name], corrected[name], rtol=1e-4, atol=1e-7)


def test_the_gap_is_of_policy_free_tokens_alone(world) -> None:
    """The largest and the mean; what the policy adds to the other arm's is not in it."""
    _, (window, _, trainer) = gradient(world, 0.25)
    objective = trainer.objective(window)
    assert isinstance(objective, PolicyLoss)
    for batch in trainer.microbatches(window.samples()):
        trainer.forward(batch, objective)
    metrics = objective.metrics(objective.sums.plain())
    assert metrics[f"{GAP}/mean"] == pytest.approx(0.25, abs=1e-3)
    assert float(objective.largest_gap) == pytest.approx(0.25, abs=1e-3)
    aware = logprobs(trainer, window, trainer.model) - window.sampled_logprob
    mask = torch.repeat_interleave(window.policy_aware, window.lengths)
    assert float(aware[mask].abs().max()) > 0.26


# ---- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vllm_mode": "server"}, "needs vllm_server_base_url"),
        ({"temperature": 2.5}, r"temperature must be in \[0.01, 2\]"),
        ({"temperature": 0.9, "top_p": 0.9}, "at a temperature other than 1"),
        ({"temperature": 0.9, "top_k": 3}, "at a temperature other than 1"),
        ({"vllm_gpu_memory_utilization": 1.5}, "vllm_gpu_memory_utilization"),
        ({"vllm_mode": "elsewhere"}, "vllm_mode: 'elsewhere' is not one of colocate, server"),
        ({"vllm_importance_sampling_mode": "token"}, "vllm_importance_sampling_mode"),
        ({"vllm_importance_sampling_clip_max": None}, "needs vllm_importance_sampling_clip_max"),
        ({"vllm_importance_sampling_clip_max": 0.0}, "0.0 is not above 0"),
        ({"vllm_importance_sampling_clip_min": 4.0}, "3.0 is not above vllm_importance"),
        ({"vllm_importance_sampling_clip_min": -1.0}, "at least 0"),
        (
            {
                "vllm_importance_sampling_mode": "token_mask",
                "importance_sampling_level": "sequence",
            },
            "token_mask leaves tokens out",
        ),
    ],
)
def test_settings_that_cannot_be(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyRolloutConfig(use_vllm=True, **settings)


def test_settings_of_vllm_do_not_matter_without_it() -> None:
    PolicyRolloutConfig(temperature=0.9, top_p=0.9, vllm_mode="server")
    PolicyRolloutConfig(
        use_vllm=True,
        vllm_importance_sampling_correction=False,
        vllm_importance_sampling_clip_max=None,
    )
    PolicyRolloutConfig(use_vllm=True, top_p=0.9, top_k=5)  # at temperature 1 both work
