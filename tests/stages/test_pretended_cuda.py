"""The stages on a CUDA device that is only pretended: no tensor is where another is not.

Numbers are those of `test_gpu.py`'s runs on a real one; here kernels are not run, so that the loss
is nothing, and a step takes no longer than on the CPU.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from pretended_cuda import CUDA, Graph, pretended_cuda  # noqa: E402

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one")

RUNS = {
    "all of cpt": ("cpt", {"use_peft": False, "freeze_vision": False, "freeze_merger": False}),
    "sft of an adapter": ("sft", {"use_peft": True, "bf16": True, "gradient_checkpointing": True}),
    "rl with its reference": ("rl", {"use_peft": False, "beta": 0.1, "num_iterations": 2}),
    "rl that samples ahead": ("rl", {"use_peft": True, "async_generate": True}),
}


@pytest.mark.parametrize("run", RUNS)
def test_training_evaluation_and_resuming(world, run):
    stage, settings = RUNS[run]
    settings = {
        **settings,
        "max_steps": 1,
        "max_completion_length": 3,
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_steps": 1,
        "eval_dataset": world.rows[:1],
    }
    if stage != "rl":
        del settings["max_completion_length"]
    with pretended_cuda(launch=False):
        trainer = world.trainer(stage, **settings)
        assert trainer.model.device == CUDA and trainer.accelerator.device.type == "cuda"
        result = trainer.train()
        settings["max_steps"] = 2
        again = world.trainer(stage, **settings)
        assert again.train(resume_from_checkpoint="auto").global_step == 2
    assert math.isfinite(result.metrics["loss"])


def test_sampling_says_what_it_says_on_the_cpu(world, monkeypatch):
    """Kernels do run here, and steps as graphs."""
    from fastmpi.data.prompts import render
    from fastmpi.rollout.native import NativeEngine
    from fastmpi.rollout.sampling import SamplingParams

    def sampled(model):
        prompts = [render(row, model.processor, world.policies["kavo"]) for row in world.rows[:2]]
        params = SamplingParams(max_tokens=6, temperature=0.0, stop_token_ids=())
        engine = NativeEngine(model, memory_gib=0.01)
        responses = sum(engine.generate(prompts, 1, params), [])
        return [response.ids.tolist() for response in responses]

    replay, replays = Graph.replay, []
    monkeypatch.setattr(Graph, "replay", lambda graph: replays.append(replay(graph)))
    wanted = sampled(world.load())
    with pretended_cuda():
        model = world.load()
        assert model.device == CUDA
        assert sampled(model) == wanted and len(replays) >= 2


def test_devices_do_not_mix():
    with pretended_cuda(launch=False):
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        assert there.device == (there + 1).device == there.cpu().cuda().device == CUDA
        assert here.device == there.cpu().device == torch.device("cpu")
        with pytest.raises(RuntimeError, match="same device: aten.add.Tensor"):
            here + there
        with pytest.raises(RuntimeError, match="same device"):
            here[there.long()]
        with pytest.raises(TypeError, match="cannot numpy"):
            there.numpy()
        assert (there + here.sum()).device == there[torch.tensor([0])].device == CUDA
    assert not torch.cuda.is_available()


def test_gradients_cross_and_modules_move():
    with pretended_cuda(launch=False):
        layer = torch.nn.Linear(3, 2).to("cuda")
        given = torch.ones(1, 3, requires_grad=True)
        layer(given.to("cuda")).sum().backward()
        assert layer.weight.is_cuda and layer.weight.grad.is_cuda
        assert given.grad is not None and not given.grad.is_cuda


def test_a_graph_runs_again_on_its_memory_and_waits_for_nothing():
    with pretended_cuda(launch=False):
        total, step = torch.zeros(2, device="cuda"), torch.ones(2, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            doubled = step * 2
            total += doubled[:1]
        assert total.tolist() == [0, 0]
        graph.replay()
        step.fill_(5)
        graph.replay()
        assert total.tolist() == [12, 12] and doubled.tolist() == [10, 10]
        for wait in (lambda: total.sum().item(), lambda: total[total > 0], lambda: total.cpu()):
            with pytest.raises((RuntimeError, AssertionError), match="capturing"):
                with torch.cuda.graph(torch.cuda.CUDAGraph()):
                    wait()
