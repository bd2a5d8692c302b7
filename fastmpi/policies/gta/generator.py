"""Dialogs without a download: requests of many kinds about drawn pictures, in any number.

The kinds take turns, so that every tool is called again and again. What one split has seen,
requests, texts and scenes, the other does not get.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastmpi.policies.gta.dialogs import Dialog, Dialogs, PictureSource
from fastmpi.policies.gta.draft import Draft, Maker
from fastmpi.policies.gta.queries import TEXT_MAKERS
from fastmpi.policies.gta.scene_queries import (
    SCENE_MAKERS,
    Unsuitable,
    attribute_told,
    imagined,
    restyled,
)

# Three tools that end few requests come twice in a round, for all of their versions to be needed.
MAKERS: tuple[Maker, ...] = (*TEXT_MAKERS, *SCENE_MAKERS, attribute_told, restyled, imagined)
MAX_TRIES = 1000


class DialogSource:
    """Makes dialogs; everything that it has made stays unique."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next_picture = 1

    def make(self, rng: np.random.Generator, num_calls: int) -> Dialogs:
        """Dialogs with exactly `num_calls` calls; the last one may lack its end."""
        dialogs: list[Dialog] = []
        pictures: dict[str, PictureSource] = {}
        left = num_calls
        order: list[Maker] = []
        while left > 0:
            order = order or [MAKERS[int(i)] for i in rng.permutation(len(MAKERS))]
            draft = self._drafted(rng, order.pop(), f"{len(dialogs) + 1}")
            dialog = draft.finished()
            dialogs.append(replace(dialog, calls=dialog.calls[:left]))
            pictures.update(draft.pictures)
            left -= len(dialog.calls)
        return Dialogs(tuple(dialogs), pictures)

    def _drafted(self, rng: np.random.Generator, maker: Maker, dialog_id: str) -> Draft:
        for _ in range(MAX_TRIES):
            draft = Draft(rng, dialog_id, self._next_picture)
            try:
                maker(draft)
            except Unsuitable:
                continue
            seen = {draft.query, *draft.contents}
            if not seen & self._taken:
                self._taken |= seen
                self._next_picture = draft.next_picture
                return draft
        raise ValueError(f"{maker.__name__}: nothing new in {MAX_TRIES} tries; ask for fewer rows")
