"""A decoding step waits for nothing, and graphs of it are captured and replayed."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastmpi.ops import backend
from fastmpi.ops.decode_attention import DecodePlan
from fastmpi.rollout import cache, stepping
from fastmpi.rollout.cache import DecodeCache
from fastmpi.rollout.native import NativeEngine
from fastmpi.rollout.sampling import SamplingParams
from fastmpi.rollout.stepping import Decoder, StepGraphs, weights_key

PARAMS = SamplingParams(20, temperature=2.0, seed=5, stop_token_ids=tuple(range(40, 90)))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _written(groups) -> list[list[int]]:
    return [response.ids.tolist() for group in groups for response in group]


class _NoWaiting(TorchDispatchMode):
    """Fails where the host would wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "item", "masked_select"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.0}, {"top_k": 5, "top_p": 0.9}])
def test_a_step_never_waits(model, example_prompts, monkeypatch, changes):
    eager, steps = Decoder.eager_step, []

    def watched(self, num_rows):
        with _NoWaiting():
            steps.append(num_rows)
            eager(self, num_rows)

    monkeypatch.setattr(Decoder, "eager_step", watched)
    # the CPU's backend asks for the longest response, the GPU's does not
    monkeypatch.setattr(cache, "decode_attention", lambda q, *_, **__: q)
    NativeEngine(model).generate(
        example_prompts(model), 1, replace(PARAMS, max_tokens=3, **changes)
    )
    assert len(steps) == 2


@pytest.fixture
def asynchronous(monkeypatch):
    """The engine takes the CPU for a device that it should not wait for."""
    monkeypatch.setattr(Decoder, "asynchronous", True)
    monkeypatch.setattr(DecodeCache, "waits_for_nothing", True)


class _Graph:
    """Keeps what is called while it is captured, and calls it again."""

    capturing: _Graph | None = None

    def __init__(self) -> None:
        self.calls: list[partial] = []
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for call in self.calls:
            call()


@pytest.fixture
def fake_graphs(monkeypatch) -> list[_Graph]:
    """CUDA's graphs on the CPU: a capture runs nothing."""
    made: list[_Graph] = []

    @contextmanager
    def capture(graph, *, pool, capture_error_mode):
        assert not torch.is_autocast_cache_enabled() and capture_error_mode == "thread_local"
        _Graph.capturing = graph
        made.append(graph)
        yield
        _Graph.capturing = None

    eager = Decoder.eager_step

    def step(self, num_rows):
        if _Graph.capturing is None:
            eager(self, num_rows)
        else:
            _Graph.capturing.calls.append(partial(eager, self, num_rows))

    monkeypatch.setattr(Decoder, "eager_step", step)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", _Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    return made


@pytest.mark.parametrize("max_responses", [1000, 5, 1])
@pytest.mark.parametrize("min_shared_tokens", [4, 1000])
def test_looking_seldom_changes_nothing(
    qwen, example_prompts, monkeypatch, max_responses, min_shared_tokens
):
    prompts = example_prompts(qwen)
    wanted = _written(NativeEngine(qwen).generate(prompts, 3, PARAMS))
    monkeypatch.setattr(Decoder, "asynchronous", True)
    engine = NativeEngine(
        qwen,
        max_responses=max_responses,
        min_shared_tokens=min_shared_tokens,
        cuda_graphs=False,
    )
    assert _written(engine.generate(prompts, 3, PARAMS)) == wanted


def test_replayed_steps_write_the_same(qwen, example_prompts, monkeypatch, fake_graphs):
    prompts = example_prompts(qwen)
    wanted = _written(NativeEngine(qwen).generate(prompts, 3, PARAMS))
    assert not fake_graphs
    monkeypatch.setattr(Decoder, "asynchronous", True)
    monkeypatch.setattr(DecodeCache, "waits_for_nothing", True)
    engine = NativeEngine(qwen, max_responses=5, memory_gib=0.01)
    for _ in range(2):
        assert _written(engine.generate(prompts, 3, PARAMS)) == wanted
    assert 1 <= len(fake_graphs) <= 4  # 5, 3, 2 and 1 rows: the second call captures nothing
    assert sum(graph.replays for graph in fake_graphs) > 20


def test_weights_that_moved_are_captured_anew(
    load_tiny, example_prompts, asynchronous, fake_graphs
):
    model = load_tiny("qwen2_5_vl")
    prompts = example_prompts(model)[:2]
    params = replace(PARAMS, stop_token_ids=())
    engine = NativeEngine(model, memory_gib=0.01)
    engine.generate(prompts, 2, params)
    before = weights_key(model)
    with torch.no_grad():
        model.head.mul_(1.1)  # in place, as an optimiser does
    engine.generate(prompts, 2, replace(params, seed=6))
    assert weights_key(model) == before and len(fake_graphs) == 1
    model.head.data = model.head.data.clone()
    engine.generate(prompts, 2, params)
    assert len(fake_graphs) == 2
    engine.generate(prompts, 2, replace(params, temperature=1.5))
    assert len(fake_graphs) == 3


def test_attention_in_plain_torch_is_not_captured(qwen, example_prompts, monkeypatch, fake_graphs):
    """float64 has no kernel: it would wait, which ends a capture."""
    monkeypatch.setattr(Decoder, "asynchronous", True)
    NativeEngine(qwen, memory_gib=0.01).generate(example_prompts(qwen), 3, PARAMS)
    assert not fake_graphs


def test_a_graph_follows_two_eager_steps(fake_graphs):
    seen = []
    graphs = StepGraphs()
    for num_rows in (4, 4, 2, 4, 4, 2, 4):
        graphs.run(seen.append, num_rows)
    assert seen == [4, 4, 2, 4, 2] and [graph.replays for graph in fake_graphs] == [3]
    assert stepping._EAGER_STEPS == 2 and torch.is_autocast_cache_enabled()


def test_the_engine_with_the_kernels(load_tiny, example_prompts, monkeypatch):
    """In Triton's interpreter: float32, and so the same tokens but for ties."""
    if not backend.kernels_run_on_cpu():
        pytest.skip("needs Triton's interpreter")
    model = load_tiny("qwen2_5_vl", torch.float32)
    prompts = example_prompts(model)[2:5]
    params = replace(PARAMS, max_tokens=5)
    wanted = NativeEngine(model, min_shared_tokens=4).generate(prompts, 2, params)
    monkeypatch.setattr(cache, "DecodePlan", partial(DecodePlan, backend="triton"))
    engine = NativeEngine(model, min_shared_tokens=4, max_responses=4)
    found = engine.generate(prompts, 2, params)
    for ours, theirs in zip(sum(found, []), sum(wanted, []), strict=True):
        assert ours.ids.tolist() == theirs.ids.tolist()
        torch.testing.assert_close(ours.logprobs, theirs.logprobs, rtol=0, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_write_what_eager_steps_write(load_tiny, example_prompts, dtype):
    """Also after an update in place, with another seed, and when the batch shrinks."""
    model = load_tiny("qwen2_5_vl", dtype).to(DEVICE)
    prompts = example_prompts(model)
    graphed = NativeEngine(model, memory_gib=0.01, max_responses=8)
    eager = NativeEngine(model, memory_gib=0.01, max_responses=8, cuda_graphs=False)
    for seed in range(3):
        params = replace(PARAMS, max_tokens=40, seed=seed)
        found, wanted = (engine.generate(prompts, 4, params) for engine in (graphed, eager))
        assert _written(found) == _written(wanted)
        for ours, theirs in zip(sum(found, []), sum(wanted, []), strict=True):
            torch.testing.assert_close(ours.logprobs, theirs.logprobs, rtol=0, atol=1e-6)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
    assert graphed._kept[1]._graphs._graphs


@pytest.mark.gpu
def test_graphs_under_autocast_see_the_weights_of_now(load_tiny, example_prompts):
    model = load_tiny("qwen2_5_vl", torch.float32).to(DEVICE)
    prompts = example_prompts(model)
    graphed = NativeEngine(model, memory_gib=0.01)
    eager = NativeEngine(model, memory_gib=0.01, cuda_graphs=False)
    with torch.autocast("cuda", torch.bfloat16):
        for _ in range(2):
            found, wanted = (e.generate(prompts, 2, PARAMS) for e in (graphed, eager))
            assert _written(found) == _written(wanted)
            with torch.no_grad():
                model.head.mul_(1.2)
