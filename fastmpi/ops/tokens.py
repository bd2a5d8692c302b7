"""Placeholder tokens and the images they show, in C++. Twin: `fastmpi.reference.tokens`.

Legend: N tokens of S samples, concatenated; P showings of I distinct images; T rows of a forest,
K of which show images. Sample s shows the images `shown[shown_offsets[s]:shown_offsets[s + 1]]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastmpi import _C
from fastmpi.ops.arguments import integer_array

__all__ = ["assign_image_slots", "distinct_images", "expand_placeholders", "feature_rows"]

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


def distinct_images(keys: NDArray[np.uint8] | Sequence[bytes]) -> tuple[Int32, Int64]:
    """Numbers images by their content, so that each distinct one is encoded once.

    keys: (P, bytes) content keys, or P keys of equal length. Returns the slot of each (P,), in the
    order of first showing, and for each slot where it is shown first (I,).
    """
    if not isinstance(keys, np.ndarray):
        if len({len(key) for key in keys}) > 1:
            raise ValueError("keys must be equally long")
        width = len(keys[0]) if len(keys) else 1
        keys = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), width)
    return _C.distinct_keys(integer_array("keys", keys, np.uint8, ndim=2))


def expand_placeholders(
    ids: Int64,  # (N,)
    offsets: Int64,  # (S + 1,) sample s is ids[offsets[s]:offsets[s + 1]]
    image_token_id: int,
    shown: Int32,  # (P,) the image of each placeholder
    shown_offsets: Int64,  # (S + 1,)
    tokens_per_image: Int32,  # (I,)
) -> tuple[Int64, Int64, Int32]:
    """Repeats every placeholder as often as its image has tokens, in all samples at once.

    Returns the new ids (N',), their offsets (S + 1,) and their image slots (N',), -1 for text. A
    `ValueError` names the sample that has other than one placeholder for each image it shows.
    """
    return _C.expand_placeholders(
        *_token_arrays(ids, offsets, image_token_id, shown, shown_offsets, tokens_per_image)
    )


def assign_image_slots(
    ids: Int64,  # (N,) placeholders expanded
    offsets: Int64,  # (S + 1,)
    image_token_id: int,
    shown: Int32,  # (P,)
    shown_offsets: Int64,  # (S + 1,)
    tokens_per_image: Int32,  # (I,)
) -> Int32:
    """The image that each token shows (N,), -1 for text.

    A `ValueError` names the sample whose placeholders are not as many as its images take.
    """
    return _C.assign_image_slots(
        *_token_arrays(ids, offsets, image_token_id, shown, shown_offsets, tokens_per_image)
    )


def feature_rows(
    image_slots: Int32,  # (T,) index of the image a row shows, -1 for text
    within: Int32,  # (T,) index of the row inside its image
    tokens_per_image: Int32,  # (I,)
) -> tuple[Int64, Int64]:
    """Rows that show images (K,), and what they show: rows of all images' features, joined (K,)."""
    return _C.feature_rows(
        integer_array("image_slots", image_slots, np.int32),
        integer_array("within", within, np.int32),
        integer_array("tokens_per_image", tokens_per_image, np.int32),
    )


def _token_arrays(
    ids: Int64,
    offsets: Int64,
    image_token_id: int,
    shown: Int32,
    shown_offsets: Int64,
    tokens_per_image: Int32,
) -> tuple[Int64, Int64, int, Int32, Int64, Int32]:
    return (
        integer_array("ids", ids, np.int64),
        integer_array("offsets", offsets, np.int64),
        image_token_id,
        integer_array("shown", shown, np.int32),
        integer_array("shown_offsets", shown_offsets, np.int64),
        integer_array("tokens_per_image", tokens_per_image, np.int32),
    )
