"""What commands share: their flags, and how a YAML file and flags become settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastmpi.flags import Flag, Parser, add_flags
from fastmpi.settings import coerce, did_you_mean, read_yaml

CONFIG = Flag("config", str, None, "YAML file of the settings below; flags override it.")
TRUST_REMOTE = Flag("trust_remote_code", bool, False, "Run Python code in the model's folder.")
TRUST_RECIPE = Flag("trust_recipe_code", bool, False, "Run reward functions named by dotted path.")
OVERWRITE = Flag("overwrite", bool, False, "Start anew where the output folder has results.")
# What a file cannot set.
_COMMAND_LINE_ONLY = ("config", "trust_remote_code", "trust_recipe_code", "overwrite")


@dataclass(frozen=True)
class Command:
    """A word or two after `fastmpi`. `body(command, words)` returns the exit code."""

    name: str
    help: str
    body: Callable[[Command, Sequence[str]], int]

    def run(self, words: Sequence[str]) -> int:
        return self.body(self, words)

    def parser(self, positional: str | None = None, choices: str | None = None) -> Parser:
        usage = " ".join(filter(None, [f"fastmpi {self.name}", positional, "[flags]"]))
        parser = Parser(prog=f"fastmpi {self.name}", usage=usage, description=self.help)
        if positional is not None:
            parser.add_argument(positional, nargs="?", help=choices)
        return parser


def common(parser: Parser, *flags: Flag) -> dict[str, Flag]:
    """Adds `--config` and `flags` to the parser and returns them by name."""
    known = {flag.name: flag for flag in (CONFIG, *flags)}
    add_flags(parser, known, "the run")
    return known


def merged(
    values: Mapping[str, Any], known: Mapping[str, Flag], command: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings from YAML and flags, and the flags that only the command line may give."""
    own = {name: values[name] for name in _COMMAND_LINE_ONLY if name in values}
    settings = {name: value for name, value in values.items() if name not in _COMMAND_LINE_ONLY}
    if own.get("config") is not None:
        from_file = read_yaml(own["config"])
        for key in from_file:
            if key not in known or key in _COMMAND_LINE_ONLY:
                near = did_you_mean(key, [name for name in known if name not in _COMMAND_LINE_ONLY])
                raise ValueError(f"{own['config']}: {command} has no setting {key!r}{near}")
            from_file[key] = coerce(f"{own['config']}: {key}", from_file[key], known[key].hint)
        settings = {**from_file, **settings}
    return settings, own


def require(settings: Mapping[str, Any], flags: Mapping[str, Flag], command: str) -> None:
    """`ValueError` that names the first required flag without a value."""
    for name, flag in flags.items():
        if flag.required and settings.get(name) is None:
            raise ValueError(f"{command} needs --{name.replace('_', '-')}")


def quiet() -> None:
    """Hides the bars that transformers draws for every folder it reads or writes; downloads keep
    theirs."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def tell(text: str) -> None:
    """A result, once: of several processes the first one prints it."""
    if os.environ.get("RANK", "0") == "0":
        print(text)
