"""Rows are read as they were written, and every fault names its place."""

from __future__ import annotations

import json
from pathlib import Path

import PIL.Image
import pytest

from fastmpi.data.rows import read_rows


def row(number: int, **change) -> dict:
    data = {
        "id": f"r{number}",
        "policy_id": "L2-Kavo",
        "images": ["images/a.png"],
        "prompt": "what?",
        "reasoning": "thus",
        "answer": "Case 1",
    }
    return {**data, **change}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data" / "images").mkdir(parents=True)
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "data" / "images" / "a.png")
    (tmp_path / "data" / "images" / "bad.png").write_bytes(b"no picture")
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    return tmp_path / "data"


def write(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    lines = [data if isinstance(data, str) else json.dumps(data) for data in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_file_is_read_with_extra_columns_and_absolute_pictures(folder: Path) -> None:
    rows = read_rows(write(folder, row(1, leaf="1.2"), "", row(2)), policies=["L2-Kavo"])
    assert [r["id"] for r in rows] == ["r1", "r2"]
    assert rows[0]["leaf"] == "1.2"
    assert rows[0]["images"] == [str((folder / "images" / "a.png").resolve())]


def test_ids_and_images_have_defaults(folder: Path) -> None:
    rows = read_rows(write(folder, {"prompt": "a"}, {"prompt": "b", "images": None}))
    assert [(r["id"], r["images"]) for r in rows] == [("1", []), ("2", [])]


def test_lists_and_datasets_serve_too(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    picture = PIL.Image.new("RGB", (4, 4))
    assert read_rows([row(1, images=[picture])])[0]["images"] == [picture]
    table = datasets.Dataset.from_list([row(1, images=[]), row(2, images=[])])
    assert [r["answer"] for r in read_rows(table)] == ["Case 1", "Case 1"]


def test_what_is_written_also_loads_as_a_json_data_set(folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = str(write(folder, row(1), row(2)))
    table = datasets.load_dataset(
        "json", data_files=path, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert table[1] == row(2)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "rows.jsonl, line 2 is not JSON"),
        ("[" * 100_000, "rows.jsonl, line 2 is not JSON"),
        ('{"n": ' + "9" * 5000 + "}", "rows.jsonl, line 2 is not JSON"),
        (row(2, prompt="\ud800"), "line 2: 'prompt' holds half a surrogate pair"),
        ([1], "line 2: a row is an object, not list"),
        (row(2, answer=None), "line 2: there is no 'answer'"),
        (row(2, answer=3), "line 2: 'answer' is text, not int"),
        (row(2, images="a.png"), "line 2: 'images' is a list, not str"),
        (row(2, images=[3]), "line 2: 'images' holds paths"),
        (row(1), "line 2: id 'r1' is that of 1 too"),
        (row(2, policy_id="L2-Kava"), "unknown policy_id 'L2-Kava'; did you mean 'L2-Kavo'"),
        (row(2, images=["images/none.png"]), "line 2: image 'images/none.png' does not exist"),
        (row(2, images=["../secret.png"]), "line 2: .*outside"),
        (row(2, images=["images/bad.png"]), "line 2: .*bad.png"),
    ],
)
def test_faults_name_file_line_and_key(folder: Path, bad: object, message: str) -> None:
    path = write(folder, row(1), bad)
    with pytest.raises(ValueError, match=message) as error:
        read_rows(path, columns=("answer",), policies=["L2-Kavo"], check_images=True)
    assert "rows.jsonl" in str(error.value)


def test_a_fault_in_a_list_names_the_row() -> None:
    with pytest.raises(ValueError, match="row 1: there is no 'prompt'"):
        read_rows([row(1, images=[]), row(2, prompt=None, images=[])])


def test_pictures_are_decoded_only_when_asked(folder: Path) -> None:
    assert len(read_rows(write(folder, row(1, images=["images/bad.png"])))) == 1


def test_no_rows_and_no_file(folder: Path) -> None:
    with pytest.raises(ValueError, match="rows.jsonl has no rows"):
        read_rows(write(folder))
    with pytest.raises(ValueError, match="none.jsonl cannot be read"):
        read_rows(folder / "none.jsonl")
    with pytest.raises(ValueError, match="the data set has no rows"):
        read_rows([])


def test_line_separators_inside_a_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a\u2028b\u0085c"}\n\n', encoding="utf-8")
    assert [row["prompt"] for row in read_rows(path)] == ["a\u2028b\u0085c"]
