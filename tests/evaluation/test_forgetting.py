"""The tiny base's other tasks: what is asked, and how answers are marked."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from PIL import Image

from fastmpi.assets import PICTURE_SIZE, held_out
from fastmpi.evaluation.forgetting import forgetting, forgetting_rows, score_forgetting
from fastmpi.policies.clevr_tree import ClevrTree

DESCRIBE = {"task": "describe", "answer": "small red cube ; none ; none ; large blue sphere ;"}
PATHS = [f"<think>C1 red yes C1.1 cube no</think>\\boxed{{Case {n}}}" for n in range(4)]
TRACE = {"task": "trace", "paths": PATHS}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return forgetting_rows(tmp_path_factory.mktemp("forgetting"), count=12)


def test_rows(made) -> None:
    rows, policies = made
    assert [row["task"] for row in rows] == ["describe"] * 12 + ["trace"] * 12
    assert len({row["id"] for row in rows}) == 24
    for row in rows[:12]:
        assert row["answer"].count(";") == 4
        assert 2 <= 4 - row["answer"].count("none") <= 4
        assert Image.open(row["images"][0]).size == PICTURE_SIZE
    for row in rows[12:]:
        tree = ClevrTree.from_json(policies[row["policy_id"]].metadata["tree"])
        assert held_out((node.id, node.value) for node in tree.nodes())
        assert len(row["paths"]) == 4
        assert row["prompt"] == f"trace {tree.name}"
        assert policies[row["policy_id"]].text.startswith(f"policy {tree.name} : C1 if ")


def test_gold_answers_score_one(made) -> None:
    rows, _ = made
    assert {score_forgetting(row, row["answer"]) for row in rows} == {1.0}


def test_rows_depend_on_the_seed_alone(made, tmp_path: Path) -> None:
    rows, policies = made
    again, others = (forgetting_rows(tmp_path / str(seed), count=12, seed=seed) for seed in (0, 1))
    assert [row["answer"] for row in again[0]] == [row["answer"] for row in rows]
    assert list(again[1]) == list(policies)
    assert [row["answer"] for row in others[0]] != [row["answer"] for row in rows]
    first = [Path(data[0]["images"][0]).read_bytes() for data in (rows, again[0])]
    assert first[0] == first[1]


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("small red cube ; none ; none ; large blue sphere ; C1 red yes", 1),
        ("small red sphere ; none ; none ; large blue sphere ;", 7 / 8),
        ("none ; none ; none ; large blue sphere ;", 5 / 8),
        ("small red cube ; none", 4 / 8),
        ("small red cube ; small none ; none ; large blue sphere", 7 / 9),  # a word too many
        ("none ; small red cube ; none ; large blue sphere ;", 4 / 10),
        ("", 0),
        ("\\boxed{Case 1}", 0),
    ],
)
def test_share_of_right_words(response: str, score: float) -> None:
    assert score_forgetting(DESCRIBE, response) == pytest.approx(score)


@pytest.mark.parametrize(
    ("response", "score"),
    [
        (f"{PATHS[3]} ;{PATHS[0]} ;", 1),
        (f" {PATHS[3]}  ; {PATHS[0]}", 1),
        (f"{PATHS[3]} ;{PATHS[3]} ;", 1),
        (f"{PATHS[3]} ;", 0.5),
        (f"C1 red ;{PATHS[3]} ;{PATHS[0]}", 0.5),  # the second right one comes too late
        (f"{PATHS[3]} ;{PATHS[0].replace('red', 'blue')} ;", 0.5),
        ("C1 red yes", 0),
        ("", 0),
    ],
)
def test_share_of_traced_paths(response: str, score: float) -> None:
    assert score_forgetting(TRACE, response) == score


@pytest.mark.parametrize("piece", [";", "a ", "small red cube ; ", "\u202e", "\0;"])
@pytest.mark.parametrize("row", [DESCRIBE, TRACE])
def test_hostile_responses(piece: str, row: dict) -> None:
    start = time.process_time()
    assert 0 <= score_forgetting(row, piece * (10_000_000 // len(piece))) <= 1
    assert time.process_time() - start < 1


def test_figures_are_means_by_task() -> None:
    items = [{"task": "describe", "score": s} for s in (1.0, 0.5)] + [{"task": "trace", "score": 0}]
    found = forgetting(items)
    assert (found["describe"].value, found["describe"].n) == (0.75, 2)
    assert (found["trace"].value, found["trace"].n) == (0, 1)


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="count must be at least 1"):
        forgetting_rows(tmp_path, count=0)
