"""Rules read back from the text of a tool policy: the inverse of `fastmpi.policies.gta.text`.

Everything here is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from fastmpi.policies.clevr_text import checked_style
from fastmpi.policies.gta.rules import (
    ACCOUNT_TYPES,
    FIELDS,
    Account,
    Choice,
    Formulas,
    Range,
    Rule,
    Target,
    Test,
)
from fastmpi.policies.gta.text import COMPACT_BOUNDS, FULL_BOUNDS, rule_text

_NUMBER = "[0-9]{1,9}"
_BOUND = rf"(?:{'|'.join(FULL_BOUNDS.values())}) {_NUMBER}"
_KIND = f"[{''.join(ACCOUNT_TYPES)}]"
# A test as reasoning quotes it or as the policy words it: "credits over 3", "credits are over 3".
_QUOTED = re.compile(
    rf"\b(?i:account type) (?:is )?(?P<account>{_KIND}(?:, {_KIND})*(?: or {_KIND})?)\b"
    rf"|\b(?P<field>(?i:{'|'.join(FIELDS)})) (?:is |are )?(?P<bounds>{_BOUND}(?: and {_BOUND})?)\b"
    r"|\b(?P<formulas>(?i:formulas))\b"
)
_RULE = re.compile(r"Rule (?P<id>\S+) \((?P<tool>\S+)\): If (?P<when>.+)")


def parse_rules(text: str, style: str = "full") -> tuple[Rule, ...]:
    """The rules in a policy or override text, exactly those that were rendered.

    A malformed rule is a `ValueError` that quotes it.
    """
    if checked_style(style) == "full":
        lines = [line for line in text.split("\n") if line.startswith("Rule ")]
        return tuple(_parsed(line, style) for line in lines)
    words = text.split()
    if words[:1] not in (["policy"], ["change"]) or words[2:3] != [":"] or words[-1] != "end":
        raise ValueError(f"no compact policy: {text[:80]!r}")
    body = " ".join(words[3:-1])
    return tuple(_parsed(line, style) for line in body.split(" ; ")) if body else ()


def quoted_tests(text: str) -> tuple[Test, ...]:
    """All tests that a text in full style quotes, in their order.

    A test that cannot be, such as credits over 5 and under 3, is left out.
    """
    tests = []
    for match in _QUOTED.finditer(text):
        try:
            tests.append(_quoted_test(match))
        except ValueError:
            continue
    return tuple(tests)


def _compact_tests(words: Sequence[str]) -> tuple[Test, ...]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "and":
            parts.append([])
        else:
            parts[-1].append(word)
    return tuple(map(_compact_test, parts))


def _parsed(line: str, style: str) -> Rule:
    try:
        rule = _full_rule(line) if style == "full" else _compact_rule(line)
    except ValueError as error:
        raise ValueError(f"no rule: {line[:200]!r}: {error}") from error
    written = rule_text(rule, style)
    if written != line:  # a word too much would be lost without a notice
        raise ValueError(f"no rule: {line[:200]!r}; is {written!r} meant?")
    return rule


def _full_rule(line: str) -> Rule:
    head, use, then = line.removesuffix(".").partition(", use ")
    match = _RULE.fullmatch(head)
    if match is None or not use:
        raise ValueError("expected 'Rule <id> (<tool>): If <test>, use <name>.'")
    when = _full_tests(match["when"])
    return Rule(match["id"], match["tool"], when, _full_then(match["tool"], then))


def _full_then(tool: str, text: str) -> Target | Choice:
    yes, chosen, rest = text.partition(" if ")
    if not chosen:
        return _target(tool, text)
    test, _, no = rest.rpartition(", otherwise ")
    tests = _full_tests(test)
    if len(tests) != 1:
        raise ValueError(f"{test[:80]!r}: a choice has one test")
    return Choice(tests[0], _target(tool, yes), _target(tool, no))


def _full_tests(text: str) -> tuple[Test, ...]:
    tests = [quoted_tests(part) for part in text.split(", and ")]
    if any(len(found) != 1 for found in tests):
        raise ValueError(f"{text[:80]!r} is no condition")
    return tuple(test for (test,) in tests)


def _quoted_test(match: re.Match[str]) -> Test:
    if match["formulas"]:
        return Formulas()
    if match["account"]:
        return Account(tuple(re.findall(f"\\b{_KIND}\\b", match["account"])))
    names = {word: name for name, word in FULL_BOUNDS.items()}
    pairs = re.findall(rf"({'|'.join(names)}) ({_NUMBER})", match["bounds"])
    return _range(match["field"].lower(), [(names[word], number) for word, number in pairs])


def _range(field: str, bounds: Sequence[tuple[str, str]]) -> Range:
    if len(dict(bounds)) < len(bounds):
        raise ValueError(f"a bound of {field} is there twice")
    return Range(field, **{name: int(number) for name, number in bounds})


def _compact_rule(line: str) -> Rule:
    words = line.split()
    tool, dot, _ = words[0].rpartition(".")
    if not dot or words[1:2] != ["if"] or "then" not in words:
        raise ValueError("expected '<tool>.<number> if <test> then <version>'")
    then = words.index("then")
    return Rule(words[0], tool, _compact_tests(words[2:then]), _compact_then(words[then + 1 :]))


def _compact_then(words: Sequence[str]) -> Target | Choice:
    if len(words) == 1:
        return _compact_target(words[0])
    if len(words) < 4:
        raise ValueError("expected a version, or a test and two versions, after 'then'")
    *test, yes, no = words
    return Choice(_compact_test(test), _compact_target(yes), _compact_target(no))


def _compact_test(words: Sequence[str]) -> Test:
    if list(words) == ["formulas"]:
        return Formulas()
    if words[:1] == ["account"]:
        return Account(tuple(words[1:]))
    names: Mapping[str, str] = {word: name for name, word in COMPACT_BOUNDS.items()}
    pairs = list(zip(words[1::2], words[2::2], strict=False))
    if len(words) % 2 == 0 or not all(
        word in names and re.fullmatch(_NUMBER, number) for word, number in pairs
    ):
        raise ValueError(f"{' '.join(words)[:80]!r} is no test")
    return _range(words[0], [(names[word], number) for word, number in pairs])


def _target(tool: str, name: str) -> Target:
    if not re.fullmatch(r"\w+", name):
        raise ValueError(f"{name[:80]!r} is no name of a tool")
    version = name.removeprefix(f"{tool}_v")
    return int(version) if version != name and version.isdecimal() else name


def _compact_target(word: str) -> Target:
    return int(word[1:]) if re.fullmatch(f"v{_NUMBER}", word) else word
