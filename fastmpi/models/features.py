"""What the vision tower made of pictures: rows that take the place of placeholder embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Features of distinct pictures, encoded once and placed wherever a picture is shown.

    keys: of the pictures, in order; counts: rows of each. rows: (N, H), end to end.
    deepstack: (N, H) each, added to the hidden states after the first text layers (Qwen3-VL).
    """

    keys: tuple[str, ...]
    counts: tuple[int, ...]
    rows: Tensor
    deepstack: tuple[Tensor, ...] = ()

    def select(self, keys: Sequence[str]) -> ImageFeatures:
        """The features of the pictures `keys`, in that order. `ValueError` for an unknown key."""
        if tuple(keys) == self.keys:
            return self
        place = {key: i for i, key in enumerate(self.keys)}
        if missing := [key for key in keys if key not in place]:
            raise ValueError(f"no features of {len(missing)} images, the first is {missing[0]}")
        ends = torch.tensor(self.counts).cumsum(0).tolist()
        chosen = [place[key] for key in keys]
        spans = [torch.arange(ends[i] - self.counts[i], ends[i]) for i in chosen]
        index = torch.cat([torch.zeros(0, dtype=torch.int64), *spans]).to(self.rows.device)
        return ImageFeatures(
            tuple(keys),
            tuple(self.counts[i] for i in chosen),
            self.rows[index],
            tuple(level[index] for level in self.deepstack),
        )

    def to(self, device: torch.device | str) -> ImageFeatures:
        """The same on `device`."""
        rows, deepstack = self.rows.to(device), tuple(level.to(device) for level in self.deepstack)
        return ImageFeatures(self.keys, self.counts, rows, deepstack)

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.rows, *self.deepstack))

    @classmethod
    def concatenate(cls, parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """The pictures of all `parts`, in order."""
        levels = zip(*(part.deepstack for part in parts), strict=True)
        return cls(
            tuple(key for part in parts for key in part.keys),
            tuple(count for part in parts for count in part.counts),
            torch.cat([part.rows for part in parts]),
            tuple(torch.cat(level) for level in levels),
        )
