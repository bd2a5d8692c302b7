"""Rules that say which version of a tool a user gets, by account type, credits and age.

Every rule stands alone, so that it can be read, cited and changed by itself: for each profile
exactly one rule of a tool applies. `check_rules` proves this over all boundaries. The exception is
a rule on the picture (OCR of formulas): where it applies, those on the profile have no say.
Numbers are whole, so "over 250" and "from 251" mean the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

ACCOUNT_TYPES = ("A", "B", "C", "D")
FIELDS = ("credits", "age")
LARGEST = 999_999_999  # of a number; rules are read back from text, and no text is unbounded


@dataclass(frozen=True)
class Profile:
    """A user: account type A to D, credits and age in whole numbers from 0."""

    account_type: str
    credits: int
    age: int

    def __post_init__(self) -> None:
        if self.account_type not in ACCOUNT_TYPES:
            raise ValueError(f"account_type {self.account_type!r} is none of A, B, C, D")
        for field in FIELDS:
            _checked_number(field, getattr(self, field))

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Profile:
        """Read what `to_json` gave; a missing or unknown key is a `ValueError`."""
        try:
            return cls(**data)
        except TypeError as error:
            raise ValueError(f"profile: {error}") from error


@dataclass(frozen=True)
class Account:
    """Is the account type one of `types`?"""

    types: tuple[str, ...]

    def __post_init__(self) -> None:
        # In alphabetical order, as the text writes them: equal tests compare equal.
        known = tuple(kind for kind in ACCOUNT_TYPES if kind in self.types)
        if not known or known != self.types:
            raise ValueError(f"account types {self.types!r}: some of A, B, C, D in this order")

    def holds(self, profile: Profile, formulas: bool = False) -> bool:
        return profile.account_type in self.types

    def to_json(self) -> dict[str, Any]:
        return {"account": list(self.types)}


@dataclass(frozen=True)
class Range:
    """Does a number lie within one or two bounds? At most one below, at most one above."""

    field: str
    over: int | None = None
    at_least: int | None = None
    under: int | None = None
    at_most: int | None = None

    def __post_init__(self) -> None:
        if self.field not in FIELDS:
            raise ValueError(f"range over {self.field!r}, which is none of {', '.join(FIELDS)}")
        for _, bound in self.bounds():
            _checked_number(f"bound of {self.field}", bound)
        below = [b for b in (self.over, self.at_least) if b is not None]
        above = [b for b in (self.under, self.at_most) if b is not None]
        if len(below) > 1 or len(above) > 1 or not below + above:
            raise ValueError(f"{self}: one bound below, one above, or both are needed")
        if not any(
            self._contains(bound + step) for _, bound in self.bounds() for step in (-1, 0, 1)
        ):
            raise ValueError(f"{self}: no number lies within")

    def bounds(self) -> list[tuple[str, int]]:
        """The bounds that are set, the lower one first: [("over", 250), ("at_most", 750)]."""
        names = ("over", "at_least", "under", "at_most")
        return [(name, bound) for name in names if (bound := getattr(self, name)) is not None]

    def holds(self, profile: Profile, formulas: bool = False) -> bool:
        return self._contains(getattr(profile, self.field))

    def _contains(self, number: int) -> bool:
        return (
            0 <= number <= LARGEST
            and (self.over is None or number > self.over)
            and (self.at_least is None or number >= self.at_least)
            and (self.under is None or number < self.under)
            and (self.at_most is None or number <= self.at_most)
        )

    def to_json(self) -> dict[str, Any]:
        return {"field": self.field, **dict(self.bounds())}


@dataclass(frozen=True)
class Formulas:
    """Does the image contain formulas? The only test on the picture."""

    def holds(self, profile: Profile, formulas: bool = False) -> bool:
        return formulas

    def to_json(self) -> dict[str, Any]:
        return {"formulas": True}


Test = Account | Range | Formulas
# A version of the rule's own tool, or the name of another tool.
Target = int | str


@dataclass(frozen=True)
class Choice:
    """A second question inside a rule: the target is `yes` where `test` holds, else `no`."""

    test: Test
    yes: Target
    no: Target

    def __post_init__(self) -> None:
        if isinstance(self.test, Formulas):
            raise ValueError("a choice inside a rule asks for the profile, not for formulas")
        if self.yes == self.no:
            raise ValueError(f"a choice between {self.yes} and itself is none")


@dataclass(frozen=True)
class Rule:
    """Where all tests of `when` hold, `tool` is called as `then` says.

    `id` is a number in the full style ("4"), and `<tool>.<number>` in the compact one ("OCR.1").
    """

    id: str
    tool: str
    when: tuple[Test, ...]
    then: Target | Choice

    def __post_init__(self) -> None:
        asked = [getattr(test, "field", type(test).__name__) for test in self.when]
        if not asked or len(set(asked)) < len(asked):
            raise ValueError(f"rule {self.id}: one test or more, each of something else")

    @property
    def on_picture(self) -> bool:
        return any(isinstance(test, Formulas) for test in self.when)

    @property
    def targets(self) -> tuple[Target, ...]:
        """What the rule may choose, once or twice."""
        return (self.then.yes, self.then.no) if isinstance(self.then, Choice) else (self.then,)

    @property
    def tests(self) -> tuple[Test, ...]:
        """All tests, that of the choice last."""
        return (*self.when, self.then.test) if isinstance(self.then, Choice) else self.when

    def applies(self, profile: Profile, formulas: bool = False) -> bool:
        return all(test.holds(profile, formulas) for test in self.when)

    def to_json(self) -> dict[str, Any]:
        then: Any = self.then
        if isinstance(then, Choice):
            then = {"test": then.test.to_json(), "yes": then.yes, "no": then.no}
        when = [test.to_json() for test in self.when]
        return {"id": self.id, "tool": self.tool, "when": when, "then": then}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Rule:
        """Read what `to_json` gave; anything else is a `ValueError` that names the rule."""
        try:
            then = data["then"]
            if isinstance(then, Mapping):
                then = Choice(_test(then["test"]), _target(then["yes"]), _target(then["no"]))
            else:
                then = _target(then)
            when = tuple(_test(test) for test in data["when"])
            return cls(str(data["id"]), str(data["tool"]), when, then)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"rule {data.get('id')!r}: {error}") from error


def boundary_profiles(rules: Iterable[Rule]) -> list[Profile]:
    """Profiles at, one below and one above every bound of the rules, for every account type.

    Between them no test changes its answer, so that they stand for all profiles.
    """
    points: dict[str, set[int]] = {field: {0} for field in FIELDS}
    for rule in rules:
        for test in rule.tests:
            if isinstance(test, Range):
                points[test.field].update(b + d for _, b in test.bounds() for d in (-1, 0, 1))
    credits, ages = (sorted(n for n in points[field] if 0 <= n <= LARGEST) for field in FIELDS)
    return [Profile(*values) for values in product(ACCOUNT_TYPES, credits, ages)]


def check_rules(tool: str, rules: Sequence[Rule]) -> None:
    """Check that of a tool's rules exactly one applies to every profile.

    A gap or an overlap is a `ValueError` that names tool and profile. Of the rules on the picture,
    at most one may apply.
    """
    on_profile = [rule for rule in rules if not rule.on_picture]
    on_picture = [rule for rule in rules if rule.on_picture]
    for profile in boundary_profiles(rules):
        applying = [rule.id for rule in on_profile if rule.applies(profile)]
        if not applying and on_profile:
            raise ValueError(f"tool {tool}: no rule applies to {profile}")
        pictured = [rule.id for rule in on_picture if rule.applies(profile, formulas=True)]
        for several in (applying, pictured):
            if len(several) > 1:
                raise ValueError(f"tool {tool}: rules {', '.join(several)} all apply to {profile}")


def rules_of(rules: Iterable[Rule], tool: str) -> Iterator[Rule]:
    """A tool's rules in the order they are gone through: those on the picture come first."""
    own = [rule for rule in rules if rule.tool == tool]
    yield from sorted(own, key=lambda rule: not rule.on_picture)


def _checked_number(what: str, value: Any) -> None:
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise ValueError(f"{what}: {value!r} is no whole number from 0 to {LARGEST}")


def _test(data: Mapping[str, Any]) -> Test:
    if "account" in data:
        return Account(tuple(data["account"]))
    return Range(**data) if "field" in data else _formulas(data)


def _formulas(data: Mapping[str, Any]) -> Formulas:
    if dict(data) != {"formulas": True}:
        raise ValueError(f"{data!r} is no test")
    return Formulas()


def _target(value: Any) -> Target:
    if type(value) is int or isinstance(value, str):
        return value
    raise ValueError(f"{value!r} is neither a version nor a tool")
