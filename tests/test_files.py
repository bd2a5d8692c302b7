"""What is written aside is there as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import SafetensorError

from fastmpi.files import model_written, write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(folder: Path, text: str) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text(text)


def test_text_replaces_text(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_whole(tmp_path / "a.json", text)
        assert (tmp_path / "a.json").read_text() == text
    assert names(tmp_path) == ["a.json"]


def test_a_failed_write_leaves_the_old_text(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.json", "one")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "a.json", "two \ud800")
    assert (tmp_path / "a.json").read_text() == "one" and names(tmp_path) == ["a.json"]


def test_a_model_moves_into_its_folder(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("kept")
    for text in ("one", "two"):
        with model_written(tmp_path) as folder:
            fill(folder, text)
        assert names(tmp_path) == [
            "config.json", "metrics.jsonl", "model.safetensors", "tokenizer.json"
        ]  # fmt: skip
        assert (tmp_path / "model.safetensors").read_text() == text


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_failed_model_leaves_the_old_one(tmp_path: Path, error: BaseException) -> None:
    with model_written(tmp_path) as folder:
        fill(folder, "one")
    with pytest.raises(type(error)), model_written(tmp_path) as folder:
        (folder / "config.json").write_text("two")
        raise error
    assert (tmp_path / "config.json").read_text() == "one"
    assert names(tmp_path) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_killed_while_files_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At no moment does the folder load as a mixture of two models."""
    with model_written(tmp_path) as folder:
        fill(folder, "one")
    replace, left = Path.replace, 2

    def killed(self: Path, target: Path) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt), model_written(tmp_path) as folder:
        fill(folder, "two")
    assert not (tmp_path / "config.json").exists()
    monkeypatch.undo()
    with model_written(tmp_path) as folder:
        fill(folder, "three")
    assert names(tmp_path) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_safetensors_errors_name_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"{tmp_path} cannot be written: .*space"):
        with model_written(tmp_path):
            raise SafetensorError("I/O error: No space left")
    assert names(tmp_path) == []
