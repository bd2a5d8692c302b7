"""Evaluation with a scripted engine: what is asked, how answers are marked, what is written."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from fastmpi.evaluation.evaluate import evaluate
from fastmpi.evaluation.result import EvalConfig, EvalResult
from fastmpi.models.forest_model import ForestModel
from fastmpi.policies.policy import Policy, PolicySet
from fastmpi.rollout.engine import Response

ANSWERS = ["Case 1", "Case 2", "Case 1"]


@pytest.fixture(scope="module")
def model(tiny_folder):
    return ForestModel.from_pretrained(tiny_folder("qwen2_5_vl"), probe=False)


@pytest.fixture
def rows():
    picture = Image.new("RGB", (64, 64), "red")
    return [
        {"id": f"r{i}", "policy_id": f"p{i % 2}", "images": [picture], "prompt": "question kavo",
         "answer": answer}
        for i, answer in enumerate(ANSWERS)
    ]  # fmt: skip


@pytest.fixture
def policies():
    text = "policy kavo : C1 if red then Case 1 else Case 2 end"
    messages = [{"role": "system", "content": [{"type": "text", "text": text}]}]
    return PolicySet.from_policies([Policy(name, messages) for name in ("p0", "p1")])


class Scripted:
    """An engine that says what it is told and keeps what it was asked."""

    def __init__(self, processor, texts):
        self.processor, self.texts, self.calls = processor, list(texts), []

    def generate(self, prompts, num_responses, params, *, streams=None):
        self.calls.append((list(prompts), num_responses, params, list(streams)))
        said = [self.texts.pop(0) for _ in prompts]
        ids = [self.processor.encode_response(text) for text in said]
        return [[Response(i, np.zeros(len(i), np.float32), True)] for i in ids]


def test_answers_are_marked_exactly(model, rows):
    texts = ["<think>C1 red yes</think>\\boxed{Case 1}", "\\boxed{Case 20}", "Case 1"]
    engine = Scripted(model.processor, texts)
    done = []
    config = EvalConfig(batch_size=2, num_timed_prompts=0, max_completion_length=9, seed=3)
    result = evaluate(model, rows, with_policy=False, config=config, engine=engine,
                      on_batch=done.append)  # fmt: skip
    assert [item["correct"] for item in result.items] == [True, False, False]
    assert [item["parsed"] for item in result.items][2] is None
    assert result.items[0]["response"] == texts[0] and result.items[0]["id"] == "r0"
    assert result.accuracy == pytest.approx(1 / 3) and result.n == 3
    assert done == [2, 3] and math.isnan(result.prefill_ms)
    assert [streams for *_, streams in engine.calls] == [[0, 1], [2]]
    params = engine.calls[0][2]
    assert (params.temperature, params.max_tokens, params.seed) == (0.0, 9, 3)


def test_policy_is_in_the_prompt_only_when_asked_for(model, rows, policies):
    asked = {}
    for with_policy in (True, False):
        engine = Scripted(model.processor, ["\\boxed{Case 1}"] * 3)
        result = evaluate(model, rows, policies, with_policy=with_policy, engine=engine)
        asked[with_policy] = engine.calls[0][0]
        assert result.prompt_tokens == len(asked[with_policy][0].ids)
        assert result.prefill_ms > 0
    assert "policy kavo" in model.processor.decode(asked[True][0].ids)
    assert "policy kavo" not in model.processor.decode(asked[False][0].ids)


def test_the_built_in_engine_answers(model, rows):
    config = EvalConfig(max_completion_length=3, num_timed_prompts=1, num_rows=2)
    first, again = (evaluate(model, rows, with_policy=False, config=config) for _ in range(2))
    assert first.n == 2 and first.items == again.items


def test_unknown_policy_and_no_rows(model, rows, policies):
    rows[1]["policy_id"] = "p11"
    with pytest.raises(ValueError, match="row 'r1': unknown policy_id 'p11'; did you mean 'p1'"):
        evaluate(model, rows, policies, with_policy=True)
    with pytest.raises(ValueError, match="no rows"):
        evaluate(model, [], with_policy=False)


@pytest.mark.parametrize("field", ["batch_size", "max_completion_length", "num_rows"])
def test_config_refuses_nonsense(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, not 0"):
        EvalConfig.from_dict({field: 0})


@pytest.mark.parametrize("temperature", [-1.0, 1e-300, 1e300])
def test_a_temperature_leaves_logits_finite(temperature):
    with pytest.raises(ValueError, match=r"temperature must be 0 or in \[0.0001, 10000\], not "):
        EvalConfig(temperature=temperature)


def test_result_summarises():
    common = {"policy_id": "a", "response": "\u05d0"}
    items = [{"id": i, "answer": f"Case {i}", "correct": i == 0, **common} for i in range(2)]
    result = EvalResult(True, items, 12.0, 3.0)
    assert result.summary()["by_outcome"]["Case 1"] == {
        "value": 0.0, "low": 0.0, "high": pytest.approx(0.793, abs=1e-3), "n": 1
    }  # fmt: skip
    assert result.line().startswith("with the policy: accuracy 0.500 (95 % 0.095 to 0.905, n 2)")
