"""`fastmpi data ...`: data sets made here."""

from __future__ import annotations

from collections.abc import Sequence

from fastmpi.commands.command import Command, common, merged
from fastmpi.flags import add_flags, flags_of, parse


def clevr_policy(command: Command, words: Sequence[str]) -> int:
    from fastmpi.policies.clevr_data import ClevrPolicyConfig, generate

    flags = flags_of(ClevrPolicyConfig)
    parser = command.parser()
    known = {**common(parser), **flags}
    add_flags(parser, flags, "the data set")
    _, values, _ = parse(parser, words, known)
    settings, _ = merged(values, known, command.name)
    folder = generate(ClevrPolicyConfig.from_dict(settings))
    print(f"{folder}: policies.jsonl, train.jsonl, train_cot.jsonl, test.jsonl, images/")
    return 0
