"""Policies as a model sees them: chat messages, with the pictures they show.

A `PolicySet` is kept as one JSONL file, `{"policy_id", "messages", "images"}` a line and anything
else beside it, its pictures in files beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from fastmpi.data.images import load_image, resolve_path
from fastmpi.settings import did_you_mean


@dataclass(frozen=True, eq=False)
class Policy:
    """Rules in text and pictures.

    `messages` are chat turns, usually one system turn; `images` fill their image parts in order.
    `metadata` is kept and otherwise unused, a decision tree for example.
    """

    policy_id: str
    messages: Sequence[dict[str, Any]]
    images: Sequence[str | Path | Image.Image] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shown = sum(part["type"] == "image" for part in self._parts())
        if shown != len(self.images):
            raise ValueError(
                f"policy {self.policy_id!r}: its messages show {shown} images, "
                f"and {len(self.images)} are given"
            )

    @property
    def text(self) -> str:
        """The policy's words, each picture written as `<image>`."""
        return "".join(part.get("text", "<image>") for part in self._parts())

    def _parts(self) -> Iterator[Mapping[str, Any]]:
        for message in self.messages:
            content = message["content"]
            yield from [{"type": "text", "text": content}] if isinstance(content, str) else content


class PolicySet(Mapping[str, Policy]):
    """Policies by id, in the order they were given."""

    def __init__(self, policies: Mapping[str, Policy]) -> None:
        self._policies = dict(policies)

    @classmethod
    def from_policies(cls, policies: Sequence[Policy]) -> PolicySet:
        """`ValueError` where two policies have the same id."""
        by_id: dict[str, Policy] = {}
        for policy in policies:
            if policy.policy_id in by_id:
                raise ValueError(f"policy_id {policy.policy_id!r} is there twice")
            by_id[policy.policy_id] = policy
        return cls(by_id)

    @classmethod
    def from_jsonl(cls, path: str | Path) -> PolicySet:
        """Read one policy a line; picture paths are relative to the file's folder.

        A malformed line, a repeated id, and a picture that is missing or lies outside the folder
        are a `ValueError` that names file and line.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path}: no such file of policies")
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
        policies = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                policies.append(_read_policy(json.loads(line), path.parent))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
        if not policies:
            raise ValueError(f"{path} has no policies")
        try:
            return cls.from_policies(policies)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_jsonl(self, path: str | Path, image_folder: str = "images") -> None:
        """Write one policy a line, and the pictures as PNG files into `image_folder` beside it."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(_write_policy(p, path.parent, image_folder)) for p in self.values()]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")

    def __getitem__(self, policy_id: str) -> Policy:
        return self._policies[policy_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._policies)

    def __len__(self) -> int:
        return len(self._policies)

    def find(self, policy_id: str) -> Policy:
        """The policy of that id, or a `ValueError` that names the nearest one there is."""
        if policy_id not in self._policies:
            raise ValueError(f"unknown policy_id {policy_id!r}{did_you_mean(policy_id, self)}")
        return self._policies[policy_id]


def _read_policy(data: Any, folder: Path) -> Policy:
    if not isinstance(data, dict):
        raise ValueError(f"expected an object, got {type(data).__name__}")
    for key, kind in (("policy_id", str), ("messages", list)):
        if not isinstance(data.get(key), kind):
            raise ValueError(f"key {key!r}: expected {kind.__name__}, got {data.get(key)!r}")
    for message in data["messages"]:
        _check_message(message)
    images = data.get("images", [])
    if not isinstance(images, list) or not all(isinstance(name, str) for name in images):
        raise ValueError(f"key 'images': expected a list of file names, got {images!r}")
    rest = {k: v for k, v in data.items() if k not in ("policy_id", "messages", "images")}
    paths = [_existing(folder, name) for name in images]
    return Policy(data["policy_id"], data["messages"], paths, rest)


def _existing(folder: Path, name: str) -> Path:
    path = resolve_path(name, folder)
    if not path.is_file():
        raise ValueError(f"image {name!r} does not exist in {folder}")
    return path


def _check_message(message: Any) -> None:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(f"key 'messages': a turn needs a role, got {message!r}")
    content = message.get("content")
    if isinstance(content, str):
        return
    if not isinstance(content, list) or not all(map(_is_part, content)):
        raise ValueError(
            "key 'messages': content is text, or a list of {'type': 'text', 'text': ...} and "
            f"{{'type': 'image'}}, got {content!r}"
        )


def _is_part(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    return part.get("type") == "image" or (
        part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def _write_policy(policy: Policy, folder: Path, image_folder: str) -> dict[str, Any]:
    names = [f"{image_folder}/{policy.policy_id}_{i}.png" for i in range(len(policy.images))]
    for name, image in zip(names, policy.images, strict=True):
        path = resolve_path(name, folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        load_image(image).save(path)
    messages = list(policy.messages)
    return {
        **policy.metadata,
        "policy_id": policy.policy_id,
        "messages": messages,
        "images": names,
    }
