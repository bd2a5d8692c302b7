"""`fastmpi bench`: an op timed beside its peers."""

from __future__ import annotations

from collections.abc import Sequence

from fastmpi.bench import BENCHES, COLUMNS, BenchInputs, known_benches
from fastmpi.commands.command import Command
from fastmpi.flags import add_flags, flags_of, parse


def bench(command: Command, words: Sequence[str]) -> int:
    described = "; ".join(f"{name}: {what}" for name, what in BENCHES.items())
    flags = flags_of(BenchInputs, leave_out=["name"])
    parser = command.parser("name", described)
    parser.epilog = COLUMNS
    add_flags(parser, flags, "the measurement")
    namespace, values, _ = parse(parser, words, flags)
    if namespace.name is None:
        raise ValueError(f"bench needs a name: one of {known_benches()}")
    inputs = BenchInputs.from_dict({"name": namespace.name, **values})

    from fastmpi.benchmarks.command import run_bench

    run_bench(inputs)
    return 0
