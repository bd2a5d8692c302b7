"""The vLLM engine in this process, against a stand-in for the module, or vLLM itself on a GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))
from vllm_standin import module  # noqa: E402

from fastmpi.data.samples import Prompt  # noqa: E402
from fastmpi.rollout.native import NativeEngine  # noqa: E402
from fastmpi.rollout.sampling import SamplingParams  # noqa: E402
from fastmpi.rollout.vllm import VLLMEngine  # noqa: E402
from fastmpi.rollout.vllm_requests import collapse, response_seed  # noqa: E402


@pytest.fixture
def vllm(monkeypatch):
    stand_in = module()
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
    return stand_in


def engine_of(model, **settings) -> VLLMEngine:
    engine = VLLMEngine(model, dtype=torch.float32, **settings)
    engine.sync(model)
    return engine


@pytest.fixture
def single(load_tiny):
    """A model in fp32, as vLLM computes; fresh, since tests change its weights."""
    return lambda family="qwen2_5_vl": load_tiny(family, torch.float32)


def disturb(model, scale: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava"])
def test_greedy_responses_and_logprobs_are_those_of_the_model(
    vllm, single, example_prompts, family
):
    """Pictures, weights by name, stop and forbidden tokens: all must be right for this."""
    model = single(family)
    disturb(model)
    prompts, params = example_prompts(model), SamplingParams(6, temperature=0)
    found = engine_of(model).generate(prompts, 1, params)
    expected = NativeEngine(model).generate(prompts, 1, params)
    for (ours,), (theirs,) in zip(expected, found, strict=True):
        assert theirs.ids.tolist() == ours.ids.tolist()
        assert theirs.finished == ours.finished
        assert theirs.ids.dtype == np.int64 and theirs.logprobs.dtype == np.float32
        np.testing.assert_allclose(theirs.logprobs, ours.logprobs, atol=2e-4)


def test_how_vllm_is_started(vllm, single):
    engine = VLLMEngine(
        single(), dtype=torch.bfloat16, gpu_memory_utilization=0.4, max_model_len=99, seed=5
    )
    (llm,) = vllm.made
    assert llm.multiprocessing == "0"  # else weights cannot be handed over
    assert llm.load_format == "dummy" and llm.dtype == "bfloat16"
    assert llm.enable_prefix_caching and not llm.enable_sleep_mode
    assert (llm.gpu_memory_utilization, llm.max_model_len, llm.seed) == (0.4, 99, 5)
    assert llm.limit_mm_per_prompt == {"video": 0}
    assert not list(Path(engine.llm.model).glob("*.safetensors"))


def test_weights_arrive_under_lora_too(vllm, single, example_prompts):
    model = single()
    model.add_lora(4, 8)
    disturb(model)
    prompts, params = example_prompts(model)[:2], SamplingParams(4, temperature=0)
    found = engine_of(model).generate(prompts, 1, params)
    expected = NativeEngine(model).generate(prompts, 1, params)
    assert [r.ids.tolist() for (r,) in found] == [r.ids.tolist() for (r,) in expected]


def test_nothing_cached_outlives_the_weights(vllm, single, example_prompts):
    model = single()
    engine = engine_of(model)
    prompts, params = example_prompts(model)[:1], SamplingParams(3, temperature=0)
    (old,) = engine.generate(prompts, 1, params)[0]
    engine.generate(prompts, 1, params)
    assert vllm.made[0].counted_hits > 0
    disturb(model)
    engine.sync(model)
    (new,) = engine.generate(prompts, 1, params)[0]
    (expected,) = NativeEngine(model).generate(prompts, 1, params)[0]
    np.testing.assert_allclose(new.logprobs, expected.logprobs, atol=2e-4)
    assert abs(new.logprobs[0] - old.logprobs[0]) > 1e-3


def test_the_order_of_sleeping_and_waking(vllm, single, example_prompts):
    model = single()
    engine = VLLMEngine(model, dtype=torch.float32, sleep_mode=True)
    assert not engine.awake
    with pytest.raises(AssertionError, match="sync"):
        engine.generate(example_prompts(model)[:1], 1, SamplingParams(1))
    engine.sync(model)
    engine.generate(example_prompts(model)[:1], 1, SamplingParams(1))
    engine.sleep()
    engine.sleep()
    assert vllm.made[0].calls == [
        "sleep",
        ("wake_up", ("weights",)),
        "reload_weights",
        ("wake_up", ("kv_cache",)),
        "reset_prefix_cache",
        "generate",
        "sleep",
    ]


def test_without_sleep_mode_nothing_sleeps(vllm, single):
    engine = engine_of(single())
    engine.sleep()
    assert engine.awake
    assert vllm.made[0].calls == ["reload_weights", "reset_prefix_cache"]


def test_a_cache_that_cannot_be_reset_is_an_error(vllm, single, monkeypatch):
    model = single()
    engine = VLLMEngine(model, dtype=torch.float32)
    monkeypatch.setattr(engine.llm, "reset_prefix_cache", lambda: False)
    with pytest.raises(RuntimeError, match="prefix cache"):
        engine.sync(model)


def test_pictures_are_handed_over_once_with_their_names(vllm, single, example_prompts):
    model = single()
    prompts = example_prompts(model)
    engine_of(model).generate(prompts, 2, SamplingParams(1))
    asked = vllm.made[0].prompts
    assert len(asked) == 2 * len(prompts)
    two, one = asked[-2], asked[0]
    assert two["multi_modal_uuids"]["image"] == [image.key for image in prompts[-1].images]
    assert two["multi_modal_data"]["image"][1] is one["multi_modal_data"]["image"][0]
    assert "multi_modal_data" not in asked[8]  # no picture


def test_each_placeholder_run_collapses_to_one(qwen, example_prompts):
    prompts, token = example_prompts(qwen), qwen.processor.image_token_id
    for prompt in prompts:
        ids = np.array(collapse(prompt, token))
        assert (ids == token).sum() == len(prompt.images)
        assert np.array_equal(qwen.processor.expand(ids, prompt.images), prompt.ids)


def test_runs_that_touch_are_told_apart(load_tiny, example_prompts):
    model = load_tiny("llava")
    one, two = example_prompts(model)[5].images
    token = model.processor.image_token_id
    ids = model.processor.expand(np.array([5, token, token, 6]), [one, two])
    assert collapse(Prompt(ids, (one, two)), token) == [5, token, token, 6]


# ---- random numbers -----------------------------------------------------------------------------


def test_seeds_are_of_stream_and_response_alone(vllm, single, example_prompts):
    model = single()
    prompts, params = example_prompts(model), SamplingParams(5, seed=7)
    engine = engine_of(model)
    whole = engine.generate(prompts, 3, params, streams=[4, 5, 6, 7, 8, 9])
    part = engine.generate([prompts[2]], [2], params, streams=[6])
    assert [r.ids.tolist() for r in part[0]] == [r.ids.tolist() for r in whole[2][:2]]
    assert len({tuple(r.ids) for r in whole[4]}) > 1
    seeds = [p.seed for p in vllm.made[0].params]
    assert len(set(seeds[:18])) == 18 and seeds[18:] == seeds[6:8]


def test_seeds_differ_and_fit_vllm():
    seeds = {
        response_seed(seed, stream, response)
        for seed in (0, 1, 2**64 - 1)
        for stream in range(20)
        for response in range(20)
    }
    assert len(seeds) == 1200
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_default_streams_are_the_prompts_numbers(vllm, single, example_prompts):
    model = single()
    engine = engine_of(model)
    prompts = example_prompts(model)[:2]
    engine.generate(prompts, 1, SamplingParams(1))
    engine.generate(prompts, 1, SamplingParams(1), streams=[0, 1])
    seeds = [p.seed for p in vllm.made[0].params]
    assert seeds[:2] == seeds[2:]


# ---- what is asked of vLLM ----------------------------------------------------------------------


def test_what_is_asked_of_vllm(vllm, single, example_prompts):
    model = single()
    params = SamplingParams(9, 1.0, 0.8, 11, forbidden_token_ids=(3,))
    engine_of(model).generate(example_prompts(model)[:1], 1, params)
    (asked,) = vllm.made[0].params
    assert (asked.n, asked.logprobs, asked.max_tokens) == (1, 0, 9)
    assert (asked.temperature, asked.top_p, asked.top_k) == (1.0, 0.8, 11)
    assert asked.ignore_eos and not asked.detokenize
    assert tuple(asked.stop_token_ids) == model.processor.eos_token_ids
    assert set(asked.logit_bias) == {3, *model.processor.forbidden_token_ids}
    assert set(asked.logit_bias.values()) == {-100.0}


def test_own_stop_tokens_alone_stop(vllm, single, example_prompts):
    model = single()
    prompts = example_prompts(model)[:1]
    engine = engine_of(model)
    (free,) = engine.generate(prompts, 1, SamplingParams(6, 0, stop_token_ids=()))[0]
    assert not free.finished and len(free.ids) == 6
    stop = int(free.ids[2])
    (found,) = engine.generate(prompts, 1, SamplingParams(6, 0, stop_token_ids=(stop,)))[0]
    assert found.finished and found.ids[-1] == stop
    assert found.ids.tolist() == free.ids.tolist()[: len(found.ids)]


def test_forbidden_tokens_do_not_come(vllm, single, example_prompts):
    model = single()
    prompts = example_prompts(model)[:1]
    engine = engine_of(model)
    (free,) = engine.generate(prompts, 1, SamplingParams(4, 0))[0]
    banned = int(free.ids[0])
    params = SamplingParams(4, 0, forbidden_token_ids=(banned,))
    (found,) = engine.generate(prompts, 1, params)[0]
    assert banned not in found.ids
    (expected,) = NativeEngine(model).generate(prompts, 1, params)[0]
    assert found.ids.tolist() == expected.ids.tolist()
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=2e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
def test_logprobs_are_at_the_temperature_over_all_tokens(
    vllm, single, example_prompts, temperature
):
    """Of whatever was sampled: scored by the engine that has every logit."""
    model = single()
    prompt = example_prompts(model)[3]
    top_p = 0.9 if temperature == 1 else 1.0
    params = SamplingParams(5, temperature, top_p, stop_token_ids=())
    (found,) = engine_of(model, temperature=temperature).generate([prompt], 1, params)[0]
    engine = NativeEngine(model)
    for at, token in enumerate(found.ids):
        # one token after what came before, all others forbidden
        others = tuple(i for i in range(model.head.shape[0]) if i != token)
        shorter = Prompt(np.concatenate([prompt.ids, found.ids[:at]]), prompt.images)
        alone = SamplingParams(1, temperature, forbidden_token_ids=others)
        (scored,) = engine.generate([shorter], 1, alone)[0]
        assert scored.ids[0] == token
        # at another temperature than 1, placeholders are no part of vLLM's probabilities: here,
        # in a random model of 300 tokens, they hold up to 2 %
        forbidden = 0 if temperature == 1 else 0.03
        assert -5e-4 < found.logprobs[at] - scored.logprobs[0] < forbidden + 5e-4


@pytest.mark.parametrize(
    ("engine_temperature", "params", "message"),
    [
        (1.0, SamplingParams(4, 0.5), "before the temperature"),
        (0.5, SamplingParams(4, 0.5, top_p=0.9), "within the truncated tokens"),
        (0.5, SamplingParams(4, 0.5, top_k=5), "within the truncated tokens"),
        (2.5, SamplingParams(4, 2.5), r"\[0.01, 2\]"),
        (0.5, SamplingParams(4, 0.001), r"\[0.01, 2\]"),
        (1.0, SamplingParams(4, forbidden_token_ids=tuple(range(1025))), "1024 tokens at most"),
    ],
)
def test_what_vllm_cannot_do_is_refused(
    vllm, single, example_prompts, engine_temperature, params, message
):
    model = single()
    engine = engine_of(model, temperature=engine_temperature)
    with pytest.raises(ValueError, match=message):
        engine.generate(example_prompts(model)[:1], 1, params)
    assert "generate" not in vllm.made[0].calls


def test_greedy_works_at_any_temperature_of_the_engine(vllm, single, example_prompts):
    model = single()
    prompts, params = example_prompts(model)[:1], SamplingParams(3, 0, top_p=0.5)
    (found,) = engine_of(model, temperature=0.5).generate(prompts, 1, params)[0]
    (expected,) = NativeEngine(model).generate(prompts, 1, params)[0]
    assert found.ids.tolist() == expected.ids.tolist()
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=0.03)


def test_pictures_that_transformers_made_are_refused(vllm, single, example_prompts, monkeypatch):
    model = single()
    engine = engine_of(model)
    monkeypatch.setattr(model.processor, "pixel_rule", "do_pad is on")
    with pytest.raises(ValueError, match="do_pad is on.*kept as floats"):
        engine.generate(example_prompts(model), 1, SamplingParams(1))
    assert engine.generate(example_prompts(model)[4:5], 1, SamplingParams(1))  # no picture


def test_no_vllm_is_an_error_that_says_what_to_install(single, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match=r"pip install fastmpi\[vllm\]"):
        VLLMEngine(single())


# ---- what comes back ----------------------------------------------------------------------------


def answering(engine, monkeypatch, change) -> None:
    """Every answer of vLLM is changed on its way back."""
    ask = engine.llm.generate

    def generate(*args, **kwargs):
        outputs = ask(*args, **kwargs)
        for output in outputs:
            change(output)
        return outputs

    monkeypatch.setattr(engine.llm, "generate", generate)


def scored(output, logprob: float) -> None:
    output.logprobs[-1][output.token_ids[-1]].logprob = logprob


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: out.prompt_token_ids.append(1), "vLLM read 1?[0-9]+ tokens"),
        (lambda out: setattr(out.outputs[0], "finish_reason", "abort"), "by 'abort'"),
        (lambda out: scored(out.outputs[0], float("nan")), "no finite log-prob"),
        (lambda out: scored(out.outputs[0], -9999.0), "no finite log-prob"),
    ],
)
def test_answers_that_training_cannot_use(
    vllm, single, example_prompts, monkeypatch, change, message
):
    model = single()
    engine = engine_of(model)
    answering(engine, monkeypatch, change)
    with pytest.raises(RuntimeError, match=message):
        engine.generate(example_prompts(model)[:1], 1, SamplingParams(2))


def test_a_forbidden_token_in_an_answer_is_an_error(vllm, single, example_prompts, monkeypatch):
    model = single()
    engine = engine_of(model)
    bad = model.processor.image_token_id

    def change(output):
        output.outputs[0].token_ids[0] = bad
        output.outputs[0].logprobs[0][bad] = output.outputs[0].logprobs[0].popitem()[1]

    answering(engine, monkeypatch, change)
    with pytest.raises(RuntimeError, match=f"sampled {bad}, a forbidden token"):
        engine.generate(example_prompts(model)[:1], 1, SamplingParams(2))


def test_counts_and_nothing_to_do(vllm, single, example_prompts):
    model = single()
    engine = engine_of(model)
    prompts = example_prompts(model)[:3]
    found = engine.generate(prompts, [2, 0, 1], SamplingParams(1))
    assert [len(of_prompt) for of_prompt in found] == [2, 0, 1]
    assert engine.generate(prompts, 0, SamplingParams(1)) == [[], [], []]
    assert engine.generate([], 1, SamplingParams(1)) == []
    with pytest.raises(ValueError):
        engine.generate(prompts, [1, 1], SamplingParams(1))
    with pytest.raises(ValueError):
        engine.generate(prompts, 1, SamplingParams(1), streams=[1])


# ---- vLLM itself --------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_itself_agrees_with_the_model(example_prompts):
    """The shipped model in bfloat16: greedy first tokens mostly, log-probs within its rounding;
    then other weights, after a sleep."""
    from fastmpi.assets import tiny_base_path
    from fastmpi.models.forest_model import ForestModel

    model = ForestModel.from_pretrained(tiny_base_path(), dtype=torch.bfloat16, probe=False)
    engine = VLLMEngine(model, sleep_mode=True, gpu_memory_utilization=0.2, max_model_len=2048)
    prompts, params = example_prompts(model), SamplingParams(16, temperature=0)
    for _ in range(2):
        engine.sync(model)
        found = engine.generate(prompts, 1, params)
        engine.sleep()
        expected = NativeEngine(model).generate(prompts, 1, params)
        pairs = [(a, b) for (a,), (b,) in zip(expected, found, strict=True) if a.ids[0] == b.ids[0]]
        assert len(pairs) >= 4  # of 6; the others are near ties
        assert all(abs(float(a.logprobs[0] - b.logprobs[0])) < 0.1 for a, b in pairs)
        disturb(model, 0.002)
