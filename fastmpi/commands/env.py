"""`fastmpi env`: what is installed and what works."""

from __future__ import annotations

from collections.abc import Sequence

from fastmpi.commands.command import Command
from fastmpi.flags import Flag, add_flags, parse


def env(command: Command, words: Sequence[str]) -> int:
    parser = command.parser()
    as_json = {"json": Flag("json", bool, False, "Print JSON.")}
    add_flags(parser, as_json, "output")
    _, values, _ = parse(parser, words, as_json)

    from fastmpi.environment import environment, environment_tables

    found = environment()
    if values.get("json"):
        import json

        print(json.dumps(found.to_dict(), indent=1))
        return 0
    from rich.console import Console

    for table in environment_tables(found):
        Console().print(table)
    return 0
