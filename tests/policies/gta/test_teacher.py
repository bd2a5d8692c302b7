"""Reasoning by a teacher, at a server on this machine."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from endpoint_server import completion, serving  # noqa: E402

from fastmpi.data.rows import read_rows  # noqa: E402
from fastmpi.policies.citations import citations  # noqa: E402
from fastmpi.policies.gta.data import GTAPolicyConfig, generate  # noqa: E402
from fastmpi.policies.gta.policy import gta_policy  # noqa: E402
from fastmpi.policies.gta.teacher import (  # noqa: E402
    TeacherSettings,
    taught,
    teacher_messages,
)

POLICY = gta_policy().to_policy()
POLICIES = {"gta": POLICY}
CALL = '{"name": "OCR_v5", "arguments": {"image": "image/image_1.jpg"}}'


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")


def row(number: int, prompt: str = "Read the sign.") -> dict[str, Any]:
    return {
        "id": f"train-{number}",
        "policy_id": "gta",
        "images": ["a.png"],
        "prompt": prompt,
        "reasoning": "by the rules",
        "answer": CALL,
    }


def picture(name: str) -> Image.Image:
    return Image.new("RGB", (4, 4), {"a.png": "red"}[name])


def settings(url: str, **values: Any) -> TeacherSettings:
    return TeacherSettings(teacher_model="m", teacher_base_url=url, **values)


def test_the_teacher_sees_policy_pictures_request_and_call() -> None:
    system, user = teacher_messages(row(1), POLICY, picture)
    texts = [part["text"] for part in user["content"] if part["type"] == "text"]
    assert POLICY.text in texts
    assert texts[-1].startswith("Read the sign.") and texts[-1].endswith(CALL)
    assert sum(part["type"] == "image_url" for part in user["content"]) == 1
    assert citations("Rule 4: the credits", POLICY)  # the form that the instruction asks for
    assert '"Rule <number>: <its condition>? Yes."' in system["content"]


def test_usable_reasoning_replaces_that_of_the_rules(tmp_path: Path) -> None:
    said: list[tuple[str, int]] = []
    with serving(lambda request: " I need OCR.\nRule 4: credits? Yes. ") as server:
        config = settings(
            server.url, teacher_prompt_price=1.0, teacher_completion_price=2.0
        ).teacher()
        assert config is not None
        cache = tmp_path / "t.jsonl"
        say = lambda text: said.append((text, len(server.requests)))  # noqa: E731
        made = taught([row(1), row(2, "Other.")], POLICIES, picture, config, cache=cache, say=say)
        again = taught([row(1)], POLICIES, picture, config, cache=cache, say=say)
    assert [r["reasoning"] for r in made.rows] == ["I need OCR.\nRule 4: credits? Yes."] * 2
    assert [{**r, "reasoning": "by the rules"} for r in made.rows] == [row(1), row(2, "Other.")]
    assert made.dropped == {}
    assert again.rows == made.rows[:1]
    assert len(server.requests) == 2
    assert said[0][1] == 0 and "$" in said[0][0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("   ", "no text"),
        ("so I end </think> here", "tags or a box"),
        ("<think> again", "tags or a box"),
        ("then \\boxed{1}", "tags or a box"),
        ("then \\boxed{", "tags or a box"),
        ("x" * 9000, "9,000 characters"),
        ((200, completion("I need", "length")), "cut off"),
        ((400, {"error": {"message": "filtered"}}), "filtered"),
    ],
)
def test_unusable_reasoning_is_dropped_and_said_why(answer: Any, reason: str) -> None:
    good = "I need OCR."

    def answer_of(request: dict) -> Any:
        return good if "fine" in request["messages"][-1]["content"][-1]["text"] else answer

    with serving(answer_of) as server:
        config = settings(server.url).teacher()
        assert config is not None
        made = taught([row(1), row(2, "fine")], POLICIES, picture, config, say=lambda text: None)
        assert [r["id"] for r in made.rows] == ["train-2"]
        assert list(made.dropped) == ["train-1"] and reason in made.dropped["train-1"]
        with pytest.raises(ValueError, match="no usable reasoning"):
            taught([row(1)], POLICIES, picture, config, say=lambda text: None)


def test_without_a_model_there_is_no_teacher() -> None:
    assert TeacherSettings().teacher() is None


def test_a_data_set_with_a_teacher(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    turn = itertools.count()
    with serving(lambda request: "I need a tool." if next(turn) else "") as server:
        given = {"teacher_model": "m", "teacher_base_url": server.url}
        out = tmp_path / "gta"
        folder = generate(GTAPolicyConfig(output_dir=str(out), num_train=5, num_test=3, **given))
    rows = read_rows(folder / "train_cot.jsonl")
    assert [row["reasoning"] for row in rows] == ["I need a tool."] * 4
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["num_rows"]["train"] == 5 and meta["num_rows"]["train_cot"] == 4
    assert list(meta["teacher_dropped"].values()) == ["the reply has no text"]
    assert "5 requests to m" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gta", "gta.teacher.jsonl"]
    with pytest.raises(ValueError, match="teacher_model: the tiny world"):
        GTAPolicyConfig(world="tiny", **given)
