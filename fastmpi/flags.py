"""Command line flags from dataclasses, read by the same strict rules as a YAML file.

`--learning-rate 1e-5`, `--learning_rate=1e-5`; a bool alone means true, a list takes several words,
`none` is None. Unusual: mistakes raise ValueError instead of printing a usage text, so that the
command ends with one line; an unknown flag is answered with the nearest known one.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from fastmpi.settings import coerce, did_you_mean, field_docs

_NONE = ("none", "null")


@dataclass(frozen=True)
class Flag:
    """One setting: its type, default (None where it has none) and documentation."""

    name: str
    hint: Any
    default: Any = None
    doc: str = ""
    required: bool = False


class Parser(argparse.ArgumentParser):
    """argparse that raises ValueError."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, **options)

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=8, width=96)


def flags_of(cls: type, leave_out: Iterable[str] = ()) -> dict[str, Flag]:
    """The fields of a dataclass as flags."""
    hints, docs = typing.get_type_hints(cls), field_docs(cls)
    flags = {}
    for field in dataclasses.fields(cls):
        if field.name not in leave_out:
            required = field.default is field.default_factory is dataclasses.MISSING
            default = None if required else _default(field)
            doc = " ".join(docs.get(field.name, "").split())
            flags[field.name] = Flag(field.name, hints[field.name], default, doc, required)
    return flags


def add_flags(parser: argparse.ArgumentParser, flags: Mapping[str, Flag], title: str) -> None:
    """A group of flags; what was not given stays out of the result."""
    group = parser.add_argument_group(title)
    for flag in flags.values():
        name = flag.name.replace("_", "-")
        count = "+" if _is_list(flag.hint) else ("?" if bool in _options(flag.hint) else None)
        group.add_argument(
            f"--{name}", dest=flag.name, nargs=count, const="true" if count == "?" else None,
            default=argparse.SUPPRESS, metavar=_metavar(flag.hint), help=_help(flag),
        )  # fmt: skip


def parse(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str],
    flags: Mapping[str, Flag],
    *,
    dotted: bool = False,
) -> tuple[argparse.Namespace, dict[str, Any], dict[str, str]]:
    """The namespace, the values of the given `flags`, and, if `dotted`, `--a.b value` pairs."""
    namespace, unknown = parser.parse_known_args([_hyphens(word) for word in arguments])
    values = {
        name: flag_value(flag, getattr(namespace, name))
        for name, flag in flags.items()
        if hasattr(namespace, name)
    }
    pairs = _take_dotted(unknown) if dotted else {}
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        word = unknown[0].split("=")[0]
        what = "flag" if word.startswith("-") else "argument"
        raise ValueError(f"unknown {what} {word!r}{did_you_mean(word, known)}")
    return namespace, values, pairs


def _hyphens(word: str) -> str:
    """`--max_steps=5` as `--max-steps=5`; values are left alone."""
    name, sign, value = word.partition("=")
    return name.replace("_", "-") + sign + value if word.startswith("--") else word


def flag_value(flag: Flag, text: str | Sequence[str]) -> Any:
    """What was written after a flag, as the flag's type."""
    name = f"--{flag.name.replace('_', '-')}"
    if not isinstance(text, str):
        if len(text) == 1 and text[0].lower() in _NONE:
            return [] if typing.get_origin(flag.hint) is list else None
        words: Any = [plain_value(word) for word in text] if not _inner_is_str(flag.hint) else text
        return coerce(name, list(words), flag.hint)
    if _takes_none(flag.hint) and text.lower() in _NONE:
        return None
    return coerce(name, text if _takes_text(flag.hint) else plain_value(text), flag.hint)


def plain_value(text: str) -> Any:
    """A word of the command line as YAML reads it."""
    import yaml

    try:
        return yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):  # a date that is none is a ValueError
        return text


def _take_dotted(unknown: list[str]) -> dict[str, str]:
    """Moves `--a.b value` and `--a.b=value` out of `unknown`."""
    pairs = {}
    while (at := next((i for i, w in enumerate(unknown) if _is_dotted(w)), None)) is not None:
        word = unknown.pop(at)
        name, sign, value = word[2:].partition("=")
        if not sign:
            if at == len(unknown):
                raise ValueError(f"--{name} needs a value")
            value = unknown.pop(at)
        pairs[name] = value
    return pairs


def _is_dotted(word: str) -> bool:
    return word.startswith("--") and "." in word.partition("=")[0]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _help(flag: Flag) -> str:
    default = "required" if flag.required else f"default: {_written(flag.default)}"
    return f"{flag.doc} ({default})".strip().replace("%", "%%")


def _written(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _options(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [option for option in typing.get_args(hint) if option is not type(None)]
    return [hint]


def _is_list(hint: Any) -> bool:
    return any(typing.get_origin(option) in (list, tuple) for option in _options(hint))


def _inner_is_str(hint: Any) -> bool:
    return any(str in typing.get_args(option) for option in _options(hint))


def _takes_none(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _takes_text(hint: Any) -> bool:
    """Whether words stay text; a choice beside another type is read as YAML reads it."""
    options = _options(hint)
    return str in options or all(typing.get_origin(o) is typing.Literal for o in options)


def _metavar(hint: Any) -> str:
    option = _options(hint)[0]
    if typing.get_origin(option) is typing.Literal:
        return "{" + ",".join(typing.get_args(option)) + "}"
    if typing.get_origin(option) in (list, tuple):
        return str(getattr(typing.get_args(option)[0], "__name__", "value")).upper()
    return str(getattr(option, "__name__", "value")).upper()
