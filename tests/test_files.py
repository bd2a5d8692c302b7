"""What is written aside is there as a whole or not at all."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from fastmpi import files
from fastmpi.files import append_whole, make_folder, model_written, write_whole

sys.path.insert(0, str(Path(__file__).parent))

from disks import full_disk, read_only  # noqa: E402


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


def test_lines_that_find_no_room(tmp_path: Path) -> None:
    """The error names the file, whose whole lines stay as they are."""
    path = tmp_path / "a.jsonl"
    append_whole(path, b"one\n")
    with full_disk(6), pytest.raises(OSError, match=re.escape(str(path))):
        append_whole(path, b"two\n")
    assert path.read_bytes() == b"one\n"
    append_whole(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"


def test_text_that_finds_no_room(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.json", "one")
    with full_disk(6), pytest.raises(OSError, match=re.escape(str(tmp_path / "a.json"))):
        write_whole(tmp_path / "a.json", "longer than that")
    assert (tmp_path / "a.json").read_text() == "one" and names(tmp_path) == ["a.json"]


def test_what_must_be_on_disk_before_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of it a power failure keeps: a name that is seen stands for whole content."""
    done: list[str] = []
    replace, unlink = Path.replace, Path.unlink

    def renamed(self: Path, target: Path) -> None:
        done.append(f"{target.name} appears")
        replace(self, target)

    def removed(self: Path, missing_ok: bool = False) -> None:
        done.append(f"{self.name} goes")
        unlink(self, missing_ok)

    monkeypatch.setattr(files, "flush", lambda path: done.append(f"flush {path.name}"))
    monkeypatch.setattr(Path, "replace", renamed)
    monkeypatch.setattr(Path, "unlink", removed)
    with model_written(tmp_path / "new") as folder:
        fill(folder, "one")
    flushed, moved = done[: done.index("config.json goes")], done[done.index("config.json goes") :]
    assert flushed[0] == f"flush {tmp_path.name}"  # where the new folder's name is
    assert {"flush config.json", "flush model.safetensors", "flush tokenizer.json"} < set(flushed)
    assert moved == [
        "config.json goes", "flush new", "model.safetensors appears", "tokenizer.json appears",
        "flush new", "config.json appears", "flush new",
    ]  # fmt: skip
    done.clear()
    write_whole(tmp_path / "a.json", "two")
    assert done == ["flush a.json.writing", "a.json appears", f"flush {tmp_path.name}"]


def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.json", "one")
    with read_only(tmp_path):
        with pytest.raises(PermissionError, match=re.escape(str(tmp_path / "a.json"))):
            write_whole(tmp_path / "a.json", "two")
        with pytest.raises(PermissionError, match=re.escape(str(tmp_path / "b.jsonl"))):
            append_whole(tmp_path / "b.jsonl", b"two")
        with pytest.raises(PermissionError, match=re.escape(str(tmp_path / "new"))):
            make_folder(tmp_path / "new" / "deep")
        with pytest.raises(PermissionError, match=re.escape(str(tmp_path))):
            with model_written(tmp_path):
                raise AssertionError("nothing can be written here")
    assert (tmp_path / "a.json").read_text() == "one" and names(tmp_path) == ["a.json"]
