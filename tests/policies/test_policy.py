"""Policy sets: files out and in, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from fastmpi.policies import Policy, PolicySet


def text_policy(name: str = "L2-Kavo") -> Policy:
    return Policy(name, [{"role": "system", "content": "if red then Case 1"}])


def picture_policy(name: str = "L2-Mira") -> Policy:
    content = [
        {"type": "text", "text": "if like "},
        {"type": "image"},
        {"type": "text", "text": " then Case 1"},
    ]
    picture = PIL.Image.new("RGB", (5, 4), (200, 10, 10))
    return Policy(name, [{"role": "system", "content": content}], [picture], {"depth": 2})


def test_a_set_is_a_mapping_in_order() -> None:
    policies = PolicySet.from_policies([picture_policy(), text_policy()])
    assert list(policies) == ["L2-Mira", "L2-Kavo"] and len(policies) == 2
    assert policies["L2-Kavo"].text == "if red then Case 1"
    assert policies["L2-Mira"].text == "if like <image> then Case 1"


def test_jsonl_round_trip_keeps_messages_pictures_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "set" / "policies.jsonl"
    PolicySet.from_policies([text_policy(), picture_policy()]).to_jsonl(path)
    data = [json.loads(line) for line in path.read_text().splitlines()]
    assert data[1]["images"] == ["images/L2-Mira_0.png"]
    again = PolicySet.from_jsonl(path)
    assert again["L2-Mira"].messages == picture_policy().messages
    assert again["L2-Mira"].metadata == {"depth": 2}
    picture = PIL.Image.open(again["L2-Mira"].images[0])
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(picture_policy().images[0]))
    again.to_jsonl(tmp_path / "copy" / "policies.jsonl")
    copy = PolicySet.from_jsonl(tmp_path / "copy" / "policies.jsonl")
    assert copy["L2-Mira"].images[0] == ((tmp_path / "copy" / "images" / "L2-Mira_0.png").resolve())


def test_an_unknown_id_names_the_nearest() -> None:
    policies = PolicySet.from_policies([text_policy(), picture_policy()])
    assert policies.find("L2-Kavo") is policies["L2-Kavo"]
    with pytest.raises(ValueError, match="unknown policy_id 'L2-Kava'; did you mean 'L2-Kavo'?"):
        policies.find("L2-Kava")


def test_pictures_and_placeholders_must_agree() -> None:
    with pytest.raises(ValueError, match="show 1 images, and 0 are given"):
        Policy("p", picture_policy().messages)


def test_an_id_that_leaves_the_folder_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "set" / "policies.jsonl"
    with pytest.raises(ValueError, match="outside"):
        PolicySet.from_policies([picture_policy("../../x")]).to_jsonl(path)
    assert not list(tmp_path.glob("*.png"))


GOOD = {"policy_id": "a", "messages": [{"role": "system", "content": "x"}]}
IMAGE = [{"role": "system", "content": [{"type": "image"}]}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: "),
        ([1], "line 2: expected an object"),
        ({"messages": []}, "line 2: key 'policy_id'"),
        ({"policy_id": "b"}, "line 2: key 'messages'"),
        ({"policy_id": "b", "messages": ["x"]}, "line 2: key 'messages'"),
        ({"policy_id": "b", "messages": [{"role": "system", "content": [{"type": "video"}]}]},
         "line 2: key 'messages'"),
        ({"policy_id": "b", "messages": IMAGE}, "line 2: policy 'b': its messages show 1"),
        ({"policy_id": "b", "messages": IMAGE, "images": ["x.png"]}, "'x.png' does not exist"),
        ({"policy_id": "b", "messages": IMAGE, "images": ["../x.png"]}, "points outside"),
        ({"policy_id": "b", "messages": IMAGE, "images": "x.png"}, "line 2: key 'images'"),
        (GOOD, "policy_id 'a' is there twice"),
    ],
)  # fmt: skip
def test_bad_files_are_named(tmp_path: Path, line: object, message: str) -> None:
    path = tmp_path / "policies.jsonl"
    bad = line if isinstance(line, str) else json.dumps(line)
    path.write_text(json.dumps(GOOD) + "\n" + bad + "\n")
    with pytest.raises(ValueError, match=message) as error:
        PolicySet.from_jsonl(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none.jsonl"):
        PolicySet.from_jsonl(tmp_path / "none.jsonl")


def test_blank_lines_and_no_policies(tmp_path):
    path = tmp_path / "policies.jsonl"
    path.write_text("\n")
    with pytest.raises(ValueError, match="has no policies"):
        PolicySet.from_jsonl(path)
    PolicySet.from_policies([Policy("a", [{"role": "system", "content": "x"}], [])]).to_jsonl(path)
    path.write_text(path.read_text() + "\n")
    assert list(PolicySet.from_jsonl(path)) == ["a"]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b"{"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "policies.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"policies\.jsonl"):
        PolicySet.from_jsonl(tmp_path / "policies.jsonl")
