"""The rows a stage trains on, checked before anything is written.

A row is a dict {"id", "policy_id", "images", "prompt", "reasoning", "answer"} and any more columns;
`datasets.Dataset` and lists of dicts both serve. `id` defaults to the row's number, `images` to
none.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fastmpi.policies import Policy

Row = dict[str, Any]


class Rows(Sequence[Row]):
    """A data set whose rows have what the stage needs; ValueError names the row that has not.

    digest: hash of ids, prompts and answers, which tells data sets apart on resuming.
    """

    def __init__(self, dataset: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        self._dataset = dataset
        if len(dataset) == 0:
            raise ValueError("the data set has no rows")
        hashed = hashlib.sha256()
        for row in self:
            for column in columns:
                if row.get(column) is None:
                    raise ValueError(f"row {row['id']!r} has no {column!r}")
            hashed.update(repr([row["id"], row.get("prompt"), row.get("answer")]).encode())
        self.digest = hashed.hexdigest()

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        row = dict(self._dataset[int(index)])
        row["id"] = str(index) if row.get("id") is None else row["id"]
        row["images"] = _as_list(row.get("images"))
        return row

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(len(self)))


def _as_list(images: Any) -> list[Any]:
    """The row's pictures; a column of single pictures is one each."""
    if images is None or isinstance(images, (list, tuple)):
        return list(images or [])
    return [images]


def policy_of(row: Row, policies: Mapping[str, Policy] | None) -> Policy:
    """The row's policy; ValueError names row and id where there is none of that name."""
    if policies is None:
        raise ValueError(f"row {row['id']!r} needs its policy: give the trainer `policies`")
    name = row["policy_id"]
    if name not in policies:
        close = difflib.get_close_matches(str(name), list(policies), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"row {row['id']!r}: unknown policy_id {name!r}{hint}")
    return policies[name]


def policies_digest(policies: Mapping[str, Policy] | None) -> str:
    """Hash of the policies' words and numbers of pictures."""
    known = sorted((policies or {}).items())
    texts = [(name, policy.text, len(policy.images)) for name, policy in known]
    return hashlib.sha256(repr(texts).encode()).hexdigest()


def check_length(
    row: Row,
    length: int,
    budget: int,
    what: str = "sample",
    setting: str = "max_tokens_per_microbatch = ",
) -> None:
    """ValueError if the row does not fit into a forward pass. setting: where `budget` is from."""
    if length > budget:
        raise ValueError(
            f"row {row['id']!r}: its {what} has {length} tokens, more than "
            f"{setting}{budget}; samples with images are never truncated"
        )


def shuffled(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """(num_rows,) int64: the order of the rows in one epoch, the same on every machine."""
    return np.random.default_rng([seed, epoch]).permutation(num_rows)
