"""`fastmpi data ...`: data sets made here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastmpi.commands.command import Command, common, merged
from fastmpi.flags import add_flags, flags_of, parse
from fastmpi.settings import SettingsT


def clevr_policy(command: Command, words: Sequence[str]) -> int:
    from fastmpi.policies.clevr_data import ClevrPolicyConfig, generate

    return _made(generate(_settings(command, words, ClevrPolicyConfig)))


def gta_policy(command: Command, words: Sequence[str]) -> int:
    from fastmpi.policies.gta.data import GTAPolicyConfig, generate

    return _made(generate(_settings(command, words, GTAPolicyConfig)))


def _settings(command: Command, words: Sequence[str], kind: type[SettingsT]) -> SettingsT:
    flags = flags_of(kind)
    parser = command.parser()
    known = {**common(parser), **flags}
    add_flags(parser, flags, "the data set")
    _, values, _ = parse(parser, words, known)
    settings, _ = merged(values, known, command.name)
    return kind.from_dict(settings)


def _made(folder: Path) -> int:
    names = sorted(path.name for path in folder.glob("*.jsonl"))
    print(f"{folder}: {', '.join(names)}, and pictures")
    return 0
