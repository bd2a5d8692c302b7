"""Reads a GTA folder (the data set of tool use, arXiv 2407.08713) as its users download it.

`dataset.json` holds the dialogs, `toolmeta.json` the tools and their arguments, `image/` the
pictures. Everything that is used is checked, and a `ValueError` names file, dialog and turn.
Unusual: a picture that came with a query must be there; one that a tool made may be missing from a
download, and is then only a name. No path leaves the folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastmpi.data.images import load_image, resolve_path
from fastmpi.policies.gta.dialogs import Call, Dialog, Dialogs
from fastmpi.settings import did_you_mean

Inputs = Mapping[str, Mapping[str, bool]]
"""Tool -> argument -> whether it may be left out."""


def read_gta(folder: str | Path) -> Dialogs:
    """All dialogs of the folder that call tools, in the order of `dataset.json`."""
    folder = Path(folder)
    inputs = _read_tools(folder / "toolmeta.json")
    path = folder / "dataset.json"
    dialogs, pictures = [], {}
    for key, entry in _object(_json(path), f"{path}").items():
        try:
            dialog = _dialog(key, entry, inputs)
            pictures.update(_pictures(dialog, folder))
        except ValueError as error:
            raise ValueError(f"{path}, dialog {key!r}: {error}") from None
        dialogs.append(dialog)
    dialogs = [dialog for dialog in dialogs if dialog.calls]
    if not dialogs:
        raise ValueError(f"{path}: no dialog calls a tool")
    return Dialogs(tuple(dialogs), pictures)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; a GTA folder has one") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _read_tools(path: Path) -> Inputs:
    tools: dict[str, dict[str, bool]] = {}
    for name, tool in _object(_json(path), f"{path}").items():
        try:
            entries = [_object(item, "an input") for item in _list(tool, "inputs")]
            tools[name] = {_text(i, "name"): bool(i.get("optional", False)) for i in entries}
        except ValueError as error:
            raise ValueError(f"{path}, tool {name!r}: {error}") from None
    return tools


def _dialog(key: str, entry: Any, inputs: Inputs) -> Dialog:
    images = tuple(_file(_object(item, "a file")) for item in _list(entry, "files"))
    return Dialog(key, images, tuple(_calls(_list(entry, "dialogs"), inputs)))


def _file(item: Mapping[str, Any]) -> str:
    if item.get("type", "image") != "image":
        raise ValueError(f"key 'files': only images are understood, not {item['type']!r}")
    return _text(item, "path")


def _calls(turns: Sequence[Any], inputs: Inputs) -> list[Call]:
    """The calls of all assistant turns, each with the return that follows."""
    calls: list[Call] = []
    said: list[str] = []
    for number, turn in enumerate(turns):
        try:
            role = _text(_object(turn, "a turn"), "role")
            if role == "user":
                said.append(_text(turn, "content"))
            elif role == "assistant":
                calls += _called(turn, "\n".join(said), inputs)
            elif role == "tool":
                _answer(calls, turn)
            else:
                raise ValueError(f"key 'role': {role!r} is none of user, assistant, tool")
        except ValueError as error:
            raise ValueError(f"turn {number}: {error}") from None
    return calls


def _called(turn: Mapping[str, Any], query: str, inputs: Inputs) -> Iterator[Call]:
    """The calls of one turn, which may be several; none in the turn that answers the user."""
    if turn.get("tool_calls") is None:
        return
    if not query:
        raise ValueError("a call before the user has said anything")
    thought = turn.get("thought") or ""
    if not isinstance(thought, str):
        raise ValueError(f"key 'thought': expected text, got {thought!r:.80}")
    for item in _list(turn, "tool_calls"):
        function = _object(_object(item, "a call").get("function"), "key 'function'")
        name = _text(function, "name")
        arguments = _object(function.get("arguments"), "key 'arguments'")
        _check_arguments(name, arguments, inputs)
        yield Call(name, arguments, query, thought)


def _check_arguments(name: str, arguments: Mapping[str, Any], inputs: Inputs) -> None:
    if name not in inputs:
        raise ValueError(f"tool {name!r} is not in toolmeta.json{did_you_mean(name, inputs)}")
    for key, value in arguments.items():
        if key not in inputs[name]:
            raise ValueError(f"{name} has no argument {key!r}{did_you_mean(key, inputs[name])}")
        if value is not None and not isinstance(value, (str, int, float, bool)):
            raise ValueError(f"{name}: argument {key!r} is a {type(value).__name__}")
    for key, optional in inputs[name].items():
        if not optional and key not in arguments:
            raise ValueError(f"{name}: argument {key!r} is missing")


def _answer(calls: list[Call], turn: Mapping[str, Any]) -> None:
    """Gives a return to the first call of its tool that has none."""
    name, content = _text(turn, "name"), _object(turn.get("content"), "key 'content'")
    kind = _text(content, "type")
    if kind not in ("text", "image"):
        raise ValueError(f"key 'type': a tool returns text or image, not {kind!r}")
    for index, call in enumerate(calls):
        if call.tool == name and call.returned is None:
            made = kind == "image"
            returned = _text(content, "content")
            calls[index] = Call(name, call.arguments, call.query, call.thought, returned, made)
            return
    raise ValueError(f"a return of {name!r}, which was not called")


def _pictures(dialog: Dialog, folder: Path) -> dict[str, Path]:
    """Name -> file of the dialog's pictures that are there; all paths are checked."""
    found = {name: resolve_path(name, folder) for name in dialog.images}
    for name, path in found.items():
        if not path.is_file():
            raise ValueError(f"image {name!r} does not exist in {folder}")
        load_image(path)  # any file could be named there
    for call in dialog.calls:
        if call.made and call.returned and resolve_path(call.returned, folder).is_file():
            found[call.returned] = resolve_path(call.returned, folder)
            load_image(found[call.returned])
    return found


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what}: expected an object, got {value!r:.80}")
    return value


def _list(value: Any, key: str) -> Sequence[Any]:
    found = _object(value, "entry").get(key)
    if not isinstance(found, list):
        raise ValueError(f"key {key!r}: expected a list, got {found!r:.80}")
    return found


def _text(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    if not isinstance(found, str):
        raise ValueError(f"key {key!r}: expected text, got {found!r:.80}")
    return found
