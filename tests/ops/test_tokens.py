"""ops/tokens.py against reference/tokens.py, and against what each of them says it returns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmpi.ops import tokens
from fastmpi.reference import tokens as reference

PAD = 9  # the placeholder token
TOKENS = np.array([3, 1, 2], np.int32)  # of three images

# A sample is a list of text tokens (negative: any id is legal) and images, as (image,).
ITEM = st.one_of(st.integers(-2, 2), st.tuples(st.integers(0, len(TOKENS) - 1)))
SAMPLES = st.lists(st.lists(ITEM, max_size=6), max_size=5)
Samples = list[list[Any]]


def arrays(samples: Samples) -> tuple[Any, ...]:
    """Each image is one placeholder."""
    ids = [PAD if isinstance(item, tuple) else item for sample in samples for item in sample]
    shown = [[item[0] for item in sample if isinstance(item, tuple)] for sample in samples]
    return (
        np.array(ids, np.int64),
        np.cumsum([0, *map(len, samples)]),
        PAD,
        np.array([image for images in shown for image in images], np.int32),
        np.cumsum([0, *map(len, shown)]),
        TOKENS,
    )


def equal(ours: Any, twin: Any) -> None:
    for a, b in zip(ours, twin, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@given(SAMPLES)
def test_expanded_samples_equal_the_reference(samples: Samples) -> None:
    ours = tokens.expand_placeholders(*arrays(samples))
    equal(ours, reference.expand_placeholders(*arrays(samples)))
    ids, offsets, slots = ours
    for sample, start, end in zip(samples, offsets, offsets[1:], strict=False):
        expected = [(item, -1) for item in sample]
        for i, item in reversed(list(enumerate(sample))):
            if isinstance(item, tuple):
                expected[i : i + 1] = [(PAD, item[0])] * int(TOKENS[item[0]])
        found = zip(ids[start:end].tolist(), slots[start:end].tolist(), strict=True)
        assert list(found) == expected


@given(SAMPLES)
def test_slots_of_expanded_samples_are_those_of_their_expansion(samples: Samples) -> None:
    ids, offsets, slots = tokens.expand_placeholders(*arrays(samples))
    again = (ids, offsets, *arrays(samples)[2:])
    equal([tokens.assign_image_slots(*again)], [slots])
    equal([tokens.assign_image_slots(*again)], [reference.assign_image_slots(*again)])


@given(st.lists(st.binary(min_size=16, max_size=16) | st.sampled_from([b"a" * 16, b"b" * 16])))
def test_equal_keys_have_one_slot(keys: list[bytes]) -> None:
    slots, first = tokens.distinct_images(keys)
    equal((slots, first), reference.distinct_images(keys))
    assert [keys[i] for i in first] == list(dict.fromkeys(keys))
    assert [keys[first[slot]] for slot in slots] == keys
    rows = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16)
    equal(tokens.distinct_images(rows), (slots, first))


def test_many_keys_that_begin_alike() -> None:
    keys = [b"\0" * 12 + i.to_bytes(4, "big") for i in range(20_000)]
    slots, first = tokens.distinct_images(keys + keys[::-1])
    np.testing.assert_array_equal(first, np.arange(20_000))
    np.testing.assert_array_equal(slots[20_000:], np.arange(20_000)[::-1])


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.booleans(), max_size=20))
def test_feature_rows_equal_the_reference(images: list[int], text: list[bool]) -> None:
    slots = np.repeat(np.array(images, np.int32), TOKENS[images])
    within = [np.arange(TOKENS[image]) for image in images]
    where = np.cumsum(text[: len(slots)] + [False] * (len(slots) - len(text)), dtype=int)
    slots = np.insert(slots, where, -1).astype(np.int32)
    inside = np.insert(np.concatenate([np.zeros(0, int), *within]), where, 0).astype(np.int32)
    equal(tokens.feature_rows(slots, inside, TOKENS), reference.feature_rows(slots, inside, TOKENS))


def test_by_hand() -> None:
    ids, offsets, slots = tokens.expand_placeholders(
        [1, PAD, 2, PAD, PAD], [0, 3, 5], PAD, [1, 0, 1], [0, 1, 3], [2, 1]
    )
    assert ids.tolist() == [1, PAD, 2, PAD, PAD, PAD]
    assert offsets.tolist() == [0, 3, 6]
    assert slots.tolist() == [-1, 1, -1, 0, 0, 1]
    rows, features = tokens.feature_rows(slots, np.array([0, 0, 0, 0, 1, 0]), [2, 1])
    assert rows.tolist() == [1, 3, 4, 5]
    assert features.tolist() == [2, 0, 1, 2]


GOOD = {
    "ids": [1, PAD],
    "offsets": [0, 2],
    "image_token_id": PAD,
    "shown": [0],
    "shown_offsets": [0, 1],
    "tokens_per_image": [1],
}


@pytest.mark.parametrize("op", [tokens.expand_placeholders, tokens.assign_image_slots])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": [1, 1]}, "sample 0: 0 placeholder tokens for"),
        ({"offsets": [0, 1]}, r"offsets\[1\] = 1"),
        ({"offsets": [0, 3]}, r"offsets\[1\] = 3"),
        ({"offsets": [0, 2, 2]}, r"shown_offsets must be as long as offsets \(3\)"),
        ({"offsets": []}, "offsets must be 1-D and not empty"),
        ({"shown": [1]}, r"shown\[0\] = 1, but there are 1 images"),
        ({"shown": [-1]}, r"shown\[0\] = -1"),
        ({"shown_offsets": [0, 2]}, r"offsets\[1\] = 2"),
        ({"tokens_per_image": [0]}, "image 0 takes 0 placeholders"),
        ({"ids": [[1, PAD]]}, r"ids must be 1-D"),
    ],
)
def test_bad_arguments(op: Any, change: dict[str, list], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        op(**{**GOOD, **change})


def test_an_expansion_too_long_to_count() -> None:
    vast = {"ids": [PAD] * 3, "offsets": [0, 3], "shown": [0] * 3, "shown_offsets": [0, 3]}
    with pytest.raises(ValueError, match="fewer than 2.*tokens, got 6442450941"):
        tokens.expand_placeholders(**{**GOOD, **vast, "tokens_per_image": [2**31 - 1]})


def test_a_million_samples() -> None:
    offsets = np.arange(1_000_001)
    ids, found, slots = tokens.expand_placeholders(
        np.full(1_000_000, PAD), offsets, PAD, np.zeros(1_000_000, int), offsets, [1]
    )
    np.testing.assert_array_equal(found, offsets)
    assert (ids == PAD).all() and not slots.any()


@pytest.mark.parametrize(
    ("slots", "within"), [([1], [0]), ([0], [3]), ([0], [-1]), ([2**31 - 1], [0])]
)
def test_features_that_are_not_there(slots: list[int], within: list[int]) -> None:
    with pytest.raises(ValueError, match="row 0 shows placeholder .* which is not there"):
        tokens.feature_rows(slots, within, [3])


@pytest.mark.parametrize("keys", [[b"a", b"bc"], np.zeros((2, 0), np.uint8), np.zeros(4, np.uint8)])
def test_bad_keys(keys: Any) -> None:
    with pytest.raises(ValueError, match="keys must"):
        tokens.distinct_images(keys)
