"""Likeness of texts: words by hand, and BERTScore's place taken by a stand-in."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmpi.tool_calls import similarity
from fastmpi.tool_calls.similarity import similarity_name, text_similarity, token_f1


@pytest.fixture(autouse=True)
def fresh_measure(monkeypatch):
    """What is installed here must not decide a test, nor one test the next."""
    monkeypatch.setitem(sys.modules, "bert_score", None)
    similarity._measure.cache_clear()
    yield
    similarity._measure.cache_clear()


@pytest.mark.parametrize(
    ("predicted", "gold", "f1"),
    [
        ("a red cube", "a red cube", 1.0),
        ("A red CUBE", "a Red cube", 1.0),
        ("red cube", "a red cube", 2 * 2 / 5),
        ("the cube", "a red cube", 2 * 1 / 5),
        ("red red red", "red cube", 2 * 1 / 5),  # with counts
        ("cube red a", "a red cube", 1.0),  # without order
        ("cube.", "cube", 2 * 1 / 3),  # a mark is a word
        ("cubes", "cube", 0.0),
        ("straße", "STRASSE", 1.0),
        ("\u7ea2", "\u7ea2\u8272", 0.0),  # no white space: one word
        ("", "cube", 0.0),
        ("\u200b", "\u200c", 0.0),
    ],
)
def test_token_f1(predicted, gold, f1):
    assert token_f1([(predicted, gold)]) == pytest.approx([f1])
    assert text_similarity([(predicted, gold), (gold, predicted)]) == pytest.approx([f1, f1])


def test_token_f1_of_two_blank_texts():
    assert token_f1([("", ""), (" ", "\n")]).tolist() == [1, 1]


def test_white_space_around_does_not_count():
    pairs = [(" a b\n", "a b"), (" ", ""), ("", ""), (" ", "a"), ("a", "\n")]
    assert text_similarity(pairs).tolist() == [1, 1, 1, 0, 0]


def test_no_pairs():
    assert text_similarity([]).shape == (0,) and token_f1([]).shape == (0,)


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=5))
def test_any_texts_score_from_0_to_1_alike_both_ways(pairs):
    scores = text_similarity(pairs)
    assert scores.dtype == np.float64 and ((scores >= 0) & (scores <= 1)).all()
    assert scores.tolist() == text_similarity([(gold, text) for text, gold in pairs]).tolist()


class StandInScorer:
    """As `bert_score.BERTScorer`, as far as it is used: F1 is the share of the longer length."""

    made: list[dict] = []
    calls: list[tuple] = []

    def __init__(self, **arguments):
        self.made.append(arguments)
        self._tokenizer = ModuleType("tokenizer")

    def score(self, predicted, gold):
        self.calls.append((self._tokenizer.model_max_length, predicted, gold))
        lengths = np.array([[len(a), len(b)] for a, b in zip(predicted, gold, strict=True)])
        return None, None, (lengths.min(1) / lengths.max(1) * 1.25).astype(np.float32)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A hub cache, and the package's stand-in."""
    StandInScorer.made, StandInScorer.calls = [], []
    package = ModuleType("bert_score")
    package.BERTScorer = StandInScorer
    monkeypatch.setitem(sys.modules, "bert_score", package)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def put_weights(cache, repository, *names):
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in names:
        (snapshot / name).write_text("{}")
    return snapshot


COMPLETE = ("config.json", "model.safetensors", "tokenizer.json")


@pytest.mark.parametrize("repository", ["roberta-large", "FacebookAI/roberta-large"])
@pytest.mark.parametrize("names", [COMPLETE, ("config.json", "pytorch_model.bin", "vocab.json")])
def test_bert_score_where_it_and_its_weights_are(cache, repository, names):
    snapshot = put_weights(cache, repository, *names)
    pairs = [("a", "a"), ("abc", "abcdef"), ("", "b"), ("ab", "cd"), (" x ", "yz")]
    assert text_similarity(pairs).tolist() == [1.0, 0.625, 0.0, 1.0, 0.625]  # 1.25 is cut to 1
    assert similarity_name() == "BERTScore F1 (roberta-large)"
    (made,) = StandInScorer.made  # loaded once, from the folder
    assert made == {"model_type": str(snapshot), "num_layers": 17, "baseline_path": ""}
    # one batch, without the equal and the blank ones, of at most the tokens that the model has
    assert StandInScorer.calls == [(512, ["abc", "ab", "x"], ["abcdef", "cd", "yz"])]
    assert text_similarity([("a", "a"), ("", "b"), ("b", " ")]).tolist() == [1, 0, 0]
    assert len(StandInScorer.calls) == 1


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("config.json",),
        ("config.json", "tokenizer.json"),
        ("config.json", "model.safetensors"),
        ("model.safetensors", "tokenizer.json"),
    ],
)
def test_token_f1_where_weights_are_missing(cache, names):
    put_weights(cache, "roberta-large", *names)
    assert similarity_name() == "token-F1" and text_similarity([("a b", "a")]).tolist() == [2 / 3]
    assert StandInScorer.made == []


def test_token_f1_where_the_package_is_missing(cache, monkeypatch):
    put_weights(cache, "roberta-large", *COMPLETE)
    monkeypatch.delitem(sys.modules, "bert_score")
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    assert similarity_name() == "token-F1"


class Missing:
    """An environment without bert-score, whatever this one has."""

    def find_spec(self, name, path=None, target=None):
        if name == "bert_score":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_broken_package_is_no_reason_for_another_measure(cache, monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "bert_score")
    (tmp_path / "bert_score.py").write_text("import no_such_module_of_bert_score\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_of_bert_score"):
        similarity_name()
    sys.modules.pop("bert_score", None)
