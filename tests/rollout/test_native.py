"""The native engine against transformers' generate, the training forward, and itself in company."""

from __future__ import annotations

import gc
from dataclasses import replace
from weakref import ref

import numpy as np
import pytest
import torch

from fastmpi.data.batch import ForestBatch
from fastmpi.data.samples import Prompt, Sample
from fastmpi.models.sizes import TextShape
from fastmpi.ops.token_logprob import token_logprob
from fastmpi.rollout import native
from fastmpi.rollout.engine import Response
from fastmpi.rollout.native import NativeEngine
from fastmpi.rollout.pool import token_bytes
from fastmpi.rollout.sampling import Sampler, SamplingParams
from fastmpi.rollout.segments import lay_out, make_requests

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


def _all_same(first: list[list[Response]], second: list[list[Response]]) -> bool:
    pairs = zip(sum(first, []), sum(second, []), strict=True)
    return all(_same(a, b) for a, b in pairs)


@pytest.mark.parametrize("stop", [(), tuple(range(40, 90))])
def test_limits_change_nothing(qwen, example_prompts, stop):
    prompts = example_prompts(qwen)
    params = replace(SAMPLE, stop_token_ids=stop)
    whole = NativeEngine(qwen).generate(prompts, 3, params)
    assert len({len(response.ids) for response in sum(whole, [])}) > 3 or not stop
    for limits in (
        {"max_responses": 7},
        {"max_responses": 1},
        {"max_prompt_tokens": 1},
        {"max_responses": 4, "min_shared_tokens": 4},
        *({"memory_gib": gib(qwen, n), "min_shared_tokens": 4} for n in (75, 90, 130, 200, 10**4)),
    ):
        assert _all_same(whole, NativeEngine(qwen, **limits).generate(prompts, 3, params)), limits


def test_the_order_of_prompts_changes_nothing(qwen, example_prompts):
    prompts = example_prompts(qwen)
    whole = NativeEngine(qwen).generate(prompts, 3, SAMPLE)
    order = [4, 2, 0, 5, 1, 3]
    engine = NativeEngine(qwen, memory_gib=gib(qwen, 150), min_shared_tokens=4)
    mixed = engine.generate([prompts[i] for i in order], 3, SAMPLE, streams=order)
    assert _all_same([whole[i] for i in order], mixed)


def gib(model, num_tokens: int) -> float:
    """The memory of so many tokens' keys and values."""
    text = TextShape.of(model.base.config)
    return num_tokens * token_bytes(text, model.dtype) / 2**30


def test_a_stated_memory_is_allocated_once_and_never_exceeded(qwen, example_prompts, monkeypatch):
    prompts = example_prompts(qwen)
    made = []
    pool = native.KeyValuePool
    monkeypatch.setattr(
        native, "KeyValuePool", lambda *arguments: made.append(pool(*arguments)) or made[-1]
    )
    engine = NativeEngine(qwen, memory_gib=gib(qwen, 130.5))
    for some in (prompts, prompts[:2], prompts):
        engine.generate(some, 2, SAMPLE)
    assert len(made) == 1 and made[0].num_tokens == 130
    held = [tensor for tensor in vars(made[0]).values() if isinstance(tensor, torch.Tensor)]
    assert sum(tensor.nbytes for tensor in held) == made[0].nbytes <= engine.memory_gib * 2**30
    free = NativeEngine(qwen)
    free.generate(prompts, 2, SAMPLE)
    free.generate(prompts, 2, SAMPLE)
    assert len(made) == 3  # without a bound nothing is kept


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_memory_goes_when_a_call_does(
    load_tiny, example_prompts, monkeypatch, memory, asynchronous
):
    """At once, not when Python next looks for cycles: a step's memory would lie in an update's."""
    model = load_tiny("qwen2_5_vl")
    monkeypatch.setattr(native.Decoder, "asynchronous", asynchronous)
    pools = []
    pool = native.KeyValuePool
    monkeypatch.setattr(
        native, "KeyValuePool", lambda *sizes: (made := pool(*sizes), pools.append(ref(made)))[0]
    )
    engine = NativeEngine(model, memory_gib=gib(model, 200) if memory else None)
    gc.collect()
    gc.disable()
    try:
        engine.generate(example_prompts(model)[:2], 2, SAMPLE)
        assert len(pools) == 1 and (pools[0]() is not None) == memory
        engine.memory_gib = engine.memory_gib and gib(model, 100)
        engine.generate(example_prompts(model)[:2], 2, SAMPLE)
        assert len(pools) == 2 and pools[0]() is None
    finally:
        gc.enable()


def test_memory_is_made_anew_for_another_precision(load_tiny, example_prompts):
    model = load_tiny("qwen2_5_vl", torch.float32)
    prompts = example_prompts(model)[:2]
    engine = NativeEngine(model, memory_gib=gib(model, 200))
    before = engine.generate(prompts, 2, SAMPLE)
    with torch.autocast("cpu", torch.bfloat16):
        engine.generate(prompts, 2, SAMPLE)
    assert _all_same(before, engine.generate(prompts, 2, SAMPLE))


def test_a_prompt_that_does_not_fit_says_what_it_needs(qwen, example_prompts):
    prompts = example_prompts(qwen)
    longest = max(len(prompt.ids) for prompt in prompts)
    engine = NativeEngine(qwen, memory_gib=gib(qwen, longest + 10))
    message = rf"rollout_memory_gib: a prompt of {longest} tokens and a response of 12 need"
    with pytest.raises(ValueError, match=message):
        engine.generate(prompts, 2, SAMPLE)
    with pytest.raises(ValueError, match="memory_gib must be above 0, got 0"):
        NativeEngine(qwen, memory_gib=0)


def test_what_prompts_share_is_read_once_however_small_the_memory(qwen, example_prompts):
    prompts = example_prompts(qwen)
    seen = []
    hidden = qwen.hidden
    qwen.hidden = lambda batch, *rest: seen.append(batch.num_tokens) or hidden(batch, *rest)
    try:
        engine = NativeEngine(qwen, max_responses=2, min_shared_tokens=4)
        engine.generate(prompts, 2, SAMPLE)
    finally:
        del qwen.hidden
    requests = lay_out(make_requests(prompts, [1] * 6), qwen.processor, 4)
    distinct = {segment for request in requests for segment in request.segments}
    assert len(seen) > 2 and sum(seen) == sum(segment.length for segment in distinct)


def test_one_token_each(qwen, example_prompts):
    prompts = example_prompts(qwen)
    whole = NativeEngine(qwen).generate(prompts, 3, SAMPLE)
    engine = NativeEngine(qwen, max_responses=4)
    for before, after in zip(
        sum(whole, []),
        sum(engine.generate(prompts, 3, replace(SAMPLE, max_tokens=1)), []),
        strict=True,
    ):
        assert after.ids.tolist() == before.ids[:1].tolist() and not after.finished


def test_weights_are_the_models_own(load_tiny, example_prompts):
    """Nothing of the model's size is copied, and an update is seen at once."""
    model = load_tiny("qwen2_5_vl", torch.float32)
    prompts = example_prompts(model)[:2]
    engine = NativeEngine(model, memory_gib=gib(model, 200))
    before = engine.generate(prompts, 2, SAMPLE)
    changed = load_tiny("qwen2_5_vl", torch.float32)
    for ours, theirs in zip(model.parameters(), changed.parameters(), strict=True):
        noise = 0.05 * torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
        ours.data.add_(noise), theirs.data.add_(noise)
    after = engine.generate(prompts, 2, SAMPLE)
    assert _all_same(after, NativeEngine(changed).generate(prompts, 2, SAMPLE))
    assert not _all_same(before, after)
    sampler = Sampler(SAMPLE, model.head, None, ())
    assert sampler._head.data_ptr() == model.head.data_ptr()


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
    requests = lay_out(make_requests(prompts, [1] * len(prompts)), qwen.processor, 1)
    held = sum(segment.length for segment in {s for r in requests for s in r.segments})
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
    assert len(asked) == 2  # each picture once
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
