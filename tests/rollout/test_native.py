"""The native engine against transformers' generate, the training forward, and itself in company."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastmpi.data.batch import ForestBatch
from fastmpi.data.samples import Prompt, Sample
from fastmpi.ops.token_logprob import token_logprob
from fastmpi.rollout.engine import Response
from fastmpi.rollout.native import NativeEngine
from fastmpi.rollout.prefill import prefill
from fastmpi.rollout.sampling import SamplingParams

SAMPLE = SamplingParams(max_tokens=12, temperature=1.3, seed=5, stop_token_ids=())
GREEDY = SamplingParams(max_tokens=12, temperature=0.0)


def _same(first: Response, second: Response) -> bool:
    return np.array_equal(first.ids, second.ids) and first.finished == second.finished


def _training_logprobs(model, prompt: Prompt, response: Response, temperature: float) -> np.ndarray:
    """What the stages compute for these tokens."""
    sample = Sample.from_prompt(prompt, response.ids)
    batch = ForestBatch.from_samples([sample], model.processor)
    scores = batch.sample_scores()
    with torch.no_grad():
        logprob, _ = token_logprob(
            model.hidden(batch), model.head, scores.rows, scores.targets, temperature=temperature
        )
    return logprob.numpy()


@pytest.mark.parametrize("min_shared_tokens", [4, 1000])
def test_greedy_equals_generate(model, example_prompts, stock_generate, min_shared_tokens):
    prompts = example_prompts(model)
    engine = NativeEngine(model, min_shared_tokens=min_shared_tokens)
    responses = engine.generate(prompts, 1, GREEDY)
    for prompt, (response,) in zip(prompts, responses, strict=True):
        assert response.ids.tolist() == stock_generate(model, prompt, 12)


@pytest.mark.parametrize("min_shared_tokens", [4, 1000])
def test_log_probs_equal_the_training_forward(model, example_prompts, min_shared_tokens):
    prompts = example_prompts(model)
    engine = NativeEngine(model, min_shared_tokens=min_shared_tokens)
    responses = engine.generate(prompts, [2, 0, 1, 3, 1, 1], SAMPLE)
    assert [len(group) for group in responses] == [2, 0, 1, 3, 1, 1]
    for prompt, group in zip(prompts, responses, strict=True):
        for response in group:
            wanted = _training_logprobs(model, prompt, response, SAMPLE.temperature)
            # Response keeps float32; the models' norms cast to float32 even in fp64
            np.testing.assert_allclose(response.logprobs, wanted, rtol=0, atol=2e-6)


def test_fp32_log_probs_equal_the_training_forward(load_tiny, example_prompts):
    model = load_tiny("qwen2_5_vl", torch.float32)
    prompts = example_prompts(model)
    for prompt, (response,) in zip(
        prompts, NativeEngine(model).generate(prompts, 1, SAMPLE), strict=True
    ):
        wanted = _training_logprobs(model, prompt, response, SAMPLE.temperature)
        np.testing.assert_allclose(response.logprobs, wanted, rtol=0, atol=1e-5)


def test_autocast_log_probs_are_near_the_training_forward(load_tiny, example_prompts):
    model = load_tiny("qwen2_5_vl", torch.float32)
    prompts = example_prompts(model)
    with torch.autocast("cpu", torch.bfloat16):
        responses = NativeEngine(model).generate(prompts, 1, SAMPLE)
        for prompt, (response,) in zip(prompts, responses, strict=True):
            wanted = _training_logprobs(model, prompt, response, SAMPLE.temperature)
            np.testing.assert_allclose(response.logprobs, wanted, rtol=0, atol=0.1)


def test_a_decoding_step_equals_the_forest(model, example_prompts, lift_casts):
    """Hidden states of every step, in fp64 without the models' fp32 casts, to 1e-12."""
    lift_casts(model.base)
    prompts = sorted(example_prompts(model), key=lambda prompt: len(prompt.ids))  # as rows lie
    steps: list[torch.Tensor] = []
    decode = model.decode
    model.decode = lambda *arguments: steps.append(decode(*arguments)) or steps[-1]
    try:
        responses = NativeEngine(model).generate(prompts, 2, SAMPLE)
    finally:
        del model.decode
    samples = [
        Sample.from_prompt(prompt, response.ids)
        for prompt, group in zip(prompts, responses, strict=True)
        for response in group
    ]
    batch = ForestBatch.from_samples(samples, model.processor)
    with torch.no_grad():
        hidden = model.hidden(batch)[batch.flat_index]
    for step, decoded in enumerate(steps):
        rows = [int(end) - SAMPLE.max_tokens + step for end in batch.offsets[1:]]
        torch.testing.assert_close(decoded, hidden[rows], rtol=0, atol=1e-12)


def test_a_response_does_not_depend_on_its_company(qwen, example_prompts):
    prompts = example_prompts(qwen)
    engine = NativeEngine(qwen)
    together = engine.generate(prompts, [3, 1, 5, 2, 1, 2], SAMPLE)
    for index, prompt in enumerate(prompts):
        (alone,) = engine.generate([prompt], 1, SAMPLE, streams=[index])
        assert _same(alone[0], together[index][0])
    reversed_ = engine.generate(prompts[::-1], 2, SAMPLE, streams=list(range(6))[::-1])
    for index in (0, 2, 3, 5):
        assert _same(reversed_[5 - index][1], together[index][1])


def test_waves_change_nothing(qwen, example_prompts):
    prompts = example_prompts(qwen)
    whole = NativeEngine(qwen).generate(prompts, 3, SAMPLE)
    for limits in ({"max_responses": 7}, {"max_prompt_tokens": 1}):
        parts = NativeEngine(qwen, **limits).generate(prompts, 3, SAMPLE)
        assert all(
            _same(a, b)
            for x, y in zip(whole, parts, strict=True)
            for a, b in zip(x, y, strict=True)
        )


def test_equal_prompts_are_prefilled_once_and_keep_their_streams(qwen, example_prompts):
    prompt = example_prompts(qwen)[2]
    twin = Prompt(prompt.ids.copy(), prompt.images)
    seen = []
    hidden = qwen.hidden
    qwen.hidden = lambda batch, *rest: (
        seen.append(batch.num_unshared_tokens) or hidden(batch, *rest)
    )
    try:
        responses = NativeEngine(qwen).generate([prompt, twin], 2, SAMPLE)
    finally:
        del qwen.hidden
    assert seen == [len(prompt.ids)]
    assert not _same(responses[0][0], responses[1][0])
    same_stream = NativeEngine(qwen).generate([prompt, twin], 2, SAMPLE, streams=[4, 4])
    assert _same(same_stream[0][1], same_stream[1][1])


def test_policy_aware_prompts_share_the_policy(qwen, example_prompts):
    aware = example_prompts(qwen)[2:4]
    batch = ForestBatch.from_prompts(aware, qwen.processor)
    shared = int((aware[0].ids[:20] == aware[1].ids[:20]).cumprod().sum())
    assert shared >= 15 and batch.num_tokens <= batch.num_unshared_tokens - shared


def test_sharing_between_prompts_changes_nothing(qwen, example_prompts):
    """Nor does it hold a token twice that could be shared."""
    prompts = example_prompts(qwen)
    plain = NativeEngine(qwen, min_shared_tokens=1000).generate(prompts, 3, SAMPLE)
    shared = NativeEngine(qwen, min_shared_tokens=1).generate(prompts, 3, SAMPLE)
    for ours, theirs in zip(shared, plain, strict=True):
        assert all(map(_same, ours, theirs))
    batch = ForestBatch.from_prompts(prompts, qwen.processor)
    with torch.inference_mode():
        images = [image for prompt in prompts for image in prompt.images]
        features = qwen.encode_images(images)
        read = prefill(qwen, prompts, [1] * len(prompts), features, min_shared_tokens=1)
    shelves = [*read.cache._shelves, *(shared.shelf for shared in read.cache._shared)]
    held = sum(int((~shelf._padding).sum()) for shelf in shelves)
    # a prompt's last token is its own, also where another prompt goes on after it
    assert batch.num_tokens <= held <= batch.num_tokens + len(prompts)


def test_other_seeds_and_responses_differ(qwen, example_prompts):
    prompts = example_prompts(qwen)[:1]
    engine = NativeEngine(qwen)
    group = engine.generate(prompts, 4, SAMPLE)[0]
    assert len({tuple(response.ids) for response in group}) == 4
    again, other = (engine.generate(prompts, 4, replace(SAMPLE, seed=s))[0] for s in (5, 6))
    assert _same(again[3], group[3]) and not _same(other[3], group[3])


def test_stop_tokens_end_a_response_and_belong_to_it(qwen, example_prompts):
    prompts = example_prompts(qwen)
    free = NativeEngine(qwen).generate(prompts, 4, SAMPLE)
    stop = [int(free[0][0].ids[4]), int(free[3][2].ids[0])]
    stopped = NativeEngine(qwen).generate(prompts, 4, replace(SAMPLE, stop_token_ids=tuple(stop)))
    lengths = set()
    for before, after in zip(sum(free, []), sum(stopped, []), strict=True):
        hits = np.flatnonzero(np.isin(before.ids, stop))
        wanted = before.ids[: hits[0] + 1] if len(hits) else before.ids
        assert after.ids.tolist() == wanted.tolist() and after.finished == bool(len(hits))
        kept = before.logprobs[: len(after.ids)]
        np.testing.assert_allclose(after.logprobs, kept, rtol=0, atol=1e-6)
        lengths.add(len(after.ids))
    assert {1, 12} <= lengths  # some stop at once, some are cut: rows left the batch in between


def test_the_models_own_stop_tokens_are_the_default(qwen, example_prompts):
    prompts = example_prompts(qwen)[:2]
    favourite = qwen.processor.eos_token_ids[0]
    before = qwen.head.detach().clone()
    with torch.no_grad():
        hidden = qwen.hidden(ForestBatch.from_prompts(prompts[:1], qwen.processor))[-1]
        qwen.head[favourite] = 100 * hidden / hidden.norm()
    try:
        (response,), _ = NativeEngine(qwen).generate(prompts, 1, GREEDY)
    finally:
        qwen.head.data.copy_(before)
    assert response.ids.tolist() == [favourite] and response.finished


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_placeholders_are_never_sampled(qwen, example_prompts, temperature):
    prompts = example_prompts(qwen)[:2]
    forbidden = list(qwen.processor.forbidden_token_ids)
    assert qwen.processor.image_token_id in forbidden
    before = qwen.head.detach().clone()
    with torch.no_grad():
        hidden = qwen.hidden(ForestBatch.from_prompts(prompts, qwen.processor))
        qwen.head[forbidden] = 1000 * hidden[-1] / hidden[-1].norm()
    try:
        groups = NativeEngine(qwen).generate(prompts, 3, replace(SAMPLE, temperature=temperature))
    finally:
        qwen.head.data.copy_(before)
    assert not np.isin(np.concatenate([r.ids for r in sum(groups, [])]), forbidden).any()


def test_longer_than_the_first_buffers(qwen, example_prompts, stock_generate):
    prompt = example_prompts(qwen)[0]
    params = SamplingParams(max_tokens=70, temperature=0.0)
    ((response,),) = NativeEngine(qwen).generate([prompt], 1, params)
    assert response.ids.tolist() == stock_generate(qwen, prompt, 70)


def test_features_can_be_handed_over(qwen, example_prompts, monkeypatch):
    prompts = example_prompts(qwen)
    wanted = NativeEngine(qwen).generate(prompts, 1, SAMPLE)
    asked = []
    encode = qwen.encode_images
    monkeypatch.setattr(qwen, "encode_images", lambda images: pytest.fail("encoded again"))
    engine = NativeEngine(qwen, features=lambda images: asked.extend(images) or encode(images))
    given = engine.generate(prompts, 1, SAMPLE)
    assert len(asked) == 6
    assert all(_same(a[0], b[0]) for a, b in zip(wanted, given, strict=True))


def test_generation_leaves_training_alone(load_tiny, example_prompts):
    model = load_tiny("qwen2_5_vl", torch.float32)
    model.train()
    prompts = example_prompts(model)
    kept = []
    engine = NativeEngine(model, features=lambda x: kept.append(model.encode_images(x)) or kept[0])
    engine.generate(prompts, 1, SAMPLE)
    features = kept[0]
    assert model.training and not features.rows.is_inference()
    model.hidden(ForestBatch.from_prompts(prompts, model.processor), features).sum().backward()
    assert all(
        p.grad is not None
        for n, p in model.named_parameters()
        if "layers.0" in n and p.requires_grad
    )


def test_progress_counts_tokens_and_responses(qwen, example_prompts):
    calls = []
    engine = NativeEngine(qwen, max_responses=4, progress=lambda *call: calls.append(call))
    responses = engine.generate(
        example_prompts(qwen)[:3], 2, replace(SAMPLE, stop_token_ids=(7, 9))
    )
    tokens = sum(len(response.ids) for response in sum(responses, []))
    assert calls[-1][1:] == (6, tokens)
    assert calls == sorted(calls, key=lambda call: call[2])


@pytest.mark.parametrize(
    ("prompts", "num_responses", "streams", "message"),
    [
        (2, [1], None, "2 prompts, 1 num_responses and 2 streams"),
        (1, 1, [1, 2], "1 prompts, 1 num_responses and 2 streams"),
        (1, -1, None, "prompt 0: num_responses must not be negative"),
        (0, 1, None, "prompt 0 is empty"),
    ],
)
def test_wrong_calls(qwen, example_prompts, prompts, num_responses, streams, message):
    given = example_prompts(qwen)[:prompts] or [Prompt(np.zeros(0, np.int64))]
    with pytest.raises(ValueError, match=message):
        NativeEngine(qwen).generate(given, num_responses, SAMPLE, streams=streams)


def test_a_diverged_model_is_an_error(load_tiny, example_prompts):
    model = load_tiny("llava")
    model.head.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="logits are not finite"):
        NativeEngine(model).generate(example_prompts(model)[:1], 1, SAMPLE)


def test_no_prompts(qwen):
    assert NativeEngine(qwen).generate([], 3, SAMPLE) == []
