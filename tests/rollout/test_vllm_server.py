"""The vLLM engine as a server, against a stand-in for `vllm serve`."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))
from vllm_server_standin import serving  # noqa: E402

from fastmpi.rollout.native import NativeEngine  # noqa: E402
from fastmpi.rollout.sampling import SamplingParams  # noqa: E402
from fastmpi.rollout.vllm_server import VLLMServerEngine  # noqa: E402


@pytest.fixture
def single(load_tiny):
    return lambda family="qwen2_5_vl": load_tiny(family, torch.float32)


@pytest.fixture
def server(tiny_folders):
    with serving(tiny_folders["qwen2_5_vl"]) as found:
        yield found


def connect(server, model, folder, **settings) -> VLLMServerEngine:
    return VLLMServerEngine(model.processor, server.url, folder, timeout=5, **settings)


def disturb(model) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_responses_are_those_of_the_model_in_training(
    tiny_folders, single, example_prompts, tmp_path, family
):
    model = single(family)
    prompts, params = example_prompts(model), SamplingParams(5, temperature=0)
    with serving(tiny_folders[family]) as server:
        engine = connect(server, model, tmp_path / "weights")
        disturb(model)
        engine.sync(model)
        found = engine.generate(prompts, 1, params)
    expected = NativeEngine(model).generate(prompts, 1, params)
    for (ours,), (theirs,) in zip(expected, found, strict=True):
        assert theirs.ids.tolist() == ours.ids.tolist()
        assert theirs.finished == ours.finished
        np.testing.assert_allclose(theirs.logprobs, ours.logprobs, atol=2e-4)


def test_weights_of_each_update_arrive_and_the_newest_stay(
    server, single, example_prompts, tmp_path
):
    model = single()
    engine = connect(server, model, tmp_path / "weights")
    prompts, params = example_prompts(model)[:1], SamplingParams(2, temperature=0)
    (tmp_path / "weights" / "weights-7").mkdir(parents=True)  # of an earlier run
    for update in (1, 2):
        disturb(model)
        engine.sync(model)
        (found,) = engine.generate(prompts, 1, params)[0]
        (expected,) = NativeEngine(model).generate(prompts, 1, params)[0]
        np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=2e-4)
        assert [f.name for f in (tmp_path / "weights").iterdir()] == [f"weights-{update}"]
    assert server.llm.calls.count("reset_prefix_cache") == 2


def test_the_path_is_absolute(server, single, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = single()
    connect(server, model, "out/weights").sync(model)
    (path, body), *_ = server.asked
    assert path == "/collective_rpc"
    assert body["kwargs"]["weights_path"] == str(tmp_path / "out/weights/weights-1")


def test_seeds_and_order_under_many_requests(server, single, example_prompts, tmp_path):
    model = single()
    engine = connect(server, model, tmp_path)
    prompts, params = example_prompts(model), SamplingParams(3, seed=2)
    whole = engine.generate(prompts, 4, params, streams=[0, 1, 2, 3, 4, 5])
    again = engine.generate(prompts[3:5], [4, 2], params, streams=[3, 4])
    assert [r.ids.tolist() for r in again[0]] == [r.ids.tolist() for r in whole[3]]
    assert [r.ids.tolist() for r in again[1]] == [r.ids.tolist() for r in whole[4][:2]]
    assert engine.generate(prompts, 0, params) == [[]] * 6
    assert not any("Authorization" in headers for headers in server.headers)


def test_of_several_processes_one_writes_and_all_wait(server, single, tmp_path):
    model, waited = single(), []
    engine = connect(server, model, tmp_path, is_main=False, wait=lambda: waited.append(1))
    engine.sync(model)
    assert waited == [1] and server.asked == [] and list(tmp_path.iterdir()) == []


def test_a_server_that_lacks_something(tiny_folders, single, example_prompts, tmp_path):
    model = single()
    with serving(tiny_folders["qwen2_5_vl"], dev_mode=False) as server:
        with pytest.raises(ValueError, match="has no /server_info; .*VLLM_SERVER_DEV_MODE=1"):
            connect(server, model, tmp_path)
    with serving(tiny_folders["qwen2_5_vl"], scale_out=False) as server:
        engine = connect(server, model, tmp_path)
        with pytest.raises(ValueError, match="has no /inference/.*--enable-scale-out"):
            engine.generate(example_prompts(model)[:1], 1, SamplingParams(1))
    with serving(tiny_folders["qwen2_5_vl"], logprobs_mode="processed_logprobs") as server:
        with pytest.raises(ValueError, match="--logprobs-mode raw_logprobs"):
            connect(server, model, tmp_path)
        connect(server, model, tmp_path, temperature=0.7)


def test_errors_of_the_server_are_told(server, single, example_prompts, tmp_path):
    model = single()
    engine = connect(server, model, tmp_path)
    server.broken["/inference/v1/generate"] = (400, "x" * 2000 + " too long")
    with pytest.raises(RuntimeError, match="answers 400: xxx") as raised:
        engine.generate(example_prompts(model)[:1], 1, SamplingParams(1))
    assert len(str(raised.value)) < 700
    server.reset_works = False
    with pytest.raises(RuntimeError, match="prefix cache"):
        engine.sync(model)


def test_no_server(single, tmp_path):
    processor = single().processor
    with socket.socket() as taken:  # bound and never listening: nothing else gets the port
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConnectionError, match="no vLLM server answers at http://127"):
            VLLMServerEngine(processor, url, tmp_path, timeout=0)
    with pytest.raises(ValueError, match="begins with http"):
        VLLMServerEngine(processor, "file:///etc", tmp_path)


def test_a_server_that_goes_away(server, single, example_prompts, tmp_path, monkeypatch):
    model = single()
    engine = connect(server, model, tmp_path)
    monkeypatch.setattr(engine, "base_url", "http://127.0.0.1:1")
    with pytest.raises(ConnectionError, match="the vLLM server at"):
        engine.generate(example_prompts(model)[:1], 1, SamplingParams(1))


def test_what_cannot_be_sampled_is_refused_before_anything_is_sent(
    server, single, example_prompts, tmp_path
):
    model = single()
    engine = connect(server, model, tmp_path)
    with pytest.raises(ValueError, match="before the temperature"):
        engine.generate(example_prompts(model), 1, SamplingParams(1, temperature=0.5))
    assert server.asked == []
