"""What a response says of the rules."""

from __future__ import annotations

from dataclasses import dataclass

CITED_CHARACTERS = 100_000
"""So many at the start of a response are read for citations, whatever the policy."""


@dataclass(frozen=True)
class Citation:
    """One condition or rule that a response names.

    id: as written ("1.2", "OCR.1"). exists: the policy has such a condition. faithful: it exists,
    and the test that the response quotes is the one that stands there.
    """

    id: str
    exists: bool
    faithful: bool
