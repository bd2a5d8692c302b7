"""The embedded base is there, small, ordinary, and does follow policies it never saw."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText, AutoTokenizer

from fastmpi.assets import held_out, tiny_base_path
from fastmpi.data.processor import Processor
from fastmpi.models.tokenizer import compact_words
from fastmpi.policies.gta import tiny as gta_tiny

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from tiny_base_gta import GTATasks  # noqa: E402
from tiny_base_model import accuracy, call_accuracy  # noqa: E402
from tiny_base_tasks import Tasks  # noqa: E402

TOKENIZER = AutoTokenizer.from_pretrained(tiny_base_path())


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(tiny_base_path())


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    processor = Processor.from_pretrained(tiny_base_path())
    return Tasks(processor, tmp_path_factory.mktemp("pictures"), num_scenes=150, seed=987_654)


def test_all_files_are_there_and_small():
    names = {path.name for path in tiny_base_path().iterdir()}
    expected = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    expected |= {"preprocessor_config.json", "chat_template.jinja", "README.md"}
    assert expected <= names
    assert sum(path.stat().st_size for path in tiny_base_path().iterdir()) < 10_000_000


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_text_round_trips(text):
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_words_are_single_tokens():
    words = [*compact_words(), *gta_tiny.words()]
    assert [w for w in words if len(TOKENIZER(w)["input_ids"]) != 1] == []


def test_a_picture_is_four_tokens(tasks):
    assert tasks.processor.image(tasks.files[0], tasks.folder).num_tokens == 4


def test_follows_unseen_policies(model, tasks):
    assert accuracy(model, tasks, 96, depth=2) >= 0.85


def test_follows_unseen_policies_with_pictures(model, tasks):
    assert accuracy(model, tasks, 96, depth=2, pictured=True) >= 0.75


def test_follows_unseen_tool_policies(model, tasks):
    assert call_accuracy(model, GTATasks(tasks), 64)["tool"] >= 0.75


def test_knows_no_tool_rules_without_the_policy(model, tasks):
    assert call_accuracy(model, GTATasks(tasks), 64, with_policy=False)["tool"] < 0.65


def test_knows_nothing_without_the_policy(model, tasks):
    assert accuracy(model, tasks, 96, depth=2, with_policy=False) < 0.35


def test_a_tenth_of_the_trees_is_held_out():
    names = [[("1", f"v{i}"), ("1.1", f"w{i % 7}")] for i in range(5000)]
    assert 0.08 < sum(map(held_out, names)) / 5000 < 0.12


def test_held_out_does_not_depend_on_order():
    pairs = [("1", "red"), ("1.1", "cube"), ("1.2", "small")]
    assert held_out(pairs) == held_out(pairs[::-1])


def test_card_states_its_accuracies():
    card = (tiny_base_path() / "README.md").read_text(encoding="utf-8")
    assert "| two layers (N=2) | " in card and "| four to six tools | " in card
    assert "{" not in card.replace("{Case 5}", "").replace('{"name"', "")
