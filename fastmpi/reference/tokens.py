"""Placeholder tokens and the images they show, in plain numpy.

Legend: N tokens of S samples, concatenated; P showings of I distinct images; T rows of a forest,
K of which show images. Sample s shows the images `shown[shown_offsets[s]:shown_offsets[s + 1]]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


def distinct_images(keys: NDArray[np.uint8] | Sequence[bytes]) -> tuple[Int32, Int64]:
    """The slot of each key (P,) in the order of first appearance, and where that was (I,)."""
    slots: dict[bytes, int] = {}
    first: list[int] = []
    numbered = np.zeros(len(keys), np.int32)
    for i, key in enumerate(keys):
        if bytes(key) not in slots:
            slots[bytes(key)] = len(first)
            first.append(i)
        numbered[i] = slots[bytes(key)]
    return numbered, np.array(first, np.int64)


def expand_placeholders(
    ids: Int64,  # (N,)
    offsets: Int64,  # (S + 1,)
    image_token_id: int,
    shown: Int32,  # (P,) the image of each placeholder
    shown_offsets: Int64,  # (S + 1,)
    tokens_per_image: Int32,  # (I,)
) -> tuple[Int64, Int64, Int32]:
    """Repeats every placeholder as often as its image has tokens.

    Returns ids (N',), offsets (S + 1,) and image slots (N',), -1 for text.
    """
    for sample, (found, wanted) in enumerate(
        zip(_placeholders(ids, offsets, image_token_id), np.diff(shown_offsets), strict=True)
    ):
        if found != wanted:
            raise ValueError(f"sample {sample}: {found} placeholder tokens for {wanted} images")
    is_image = ids == image_token_id
    repeats = np.ones(len(ids), np.int64)
    repeats[is_image] = tokens_per_image[shown]
    slots = np.full(len(ids), -1, np.int32)
    slots[is_image] = shown
    ends = np.concatenate([[0], np.cumsum(repeats)])
    return np.repeat(ids, repeats), ends[offsets], np.repeat(slots, repeats)


def assign_image_slots(
    ids: Int64,  # (N,) placeholders expanded
    offsets: Int64,  # (S + 1,)
    image_token_id: int,
    shown: Int32,  # (P,)
    shown_offsets: Int64,  # (S + 1,)
    tokens_per_image: Int32,  # (I,)
) -> Int32:
    """The image that each token shows (N,), -1 for text."""
    for sample, found in enumerate(_placeholders(ids, offsets, image_token_id)):
        images = shown[shown_offsets[sample] : shown_offsets[sample + 1]]
        wanted = int(tokens_per_image[images].sum())
        if found != wanted:
            raise ValueError(f"sample {sample}: {found} placeholder tokens for images of {wanted}")
    slots = np.full(len(ids), -1, np.int32)
    slots[ids == image_token_id] = np.repeat(shown, tokens_per_image[shown])
    return slots


def feature_rows(
    image_slots: Int32,  # (T,) index of the image a row shows, -1 for text
    within: Int32,  # (T,) index of the row inside its image
    tokens_per_image: Int32,  # (I,)
) -> tuple[Int64, Int64]:
    """Rows that show images (K,), and what they show: rows of all images' features, joined (K,)."""
    starts = np.concatenate([[0], np.cumsum(tokens_per_image)]).astype(np.int64)
    rows = np.flatnonzero(image_slots >= 0)
    return rows, starts[image_slots[rows]] + within[rows]


def _placeholders(ids: Int64, offsets: Int64, image_token_id: int) -> list[int]:
    """Placeholder tokens of each sample."""
    parts = zip(offsets[:-1], offsets[1:], strict=True)
    return [int((ids[start:end] == image_token_id).sum()) for start, end in parts]
