"""ops/forest.py against reference/forest.py, and both against what a prefix forest is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmpi.ops.forest import ForestLayout, build_forest
from fastmpi.reference import forest as reference

# Two token ids and two images: most prefixes meet, and empty, equal and nested samples are common.
TOKENS = st.tuples(st.integers(0, 1), st.integers(-1, 1))
SAMPLES = st.lists(st.lists(TOKENS, max_size=6), max_size=8)
Samples = list[list[tuple[int, int]]]


def flatten(samples: Samples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokens = np.array([t for sample in samples for t in sample], np.int64).reshape(-1, 2)
    offsets = np.cumsum([0, *map(len, samples)])
    return tokens[:, 0].copy(), tokens[:, 1].astype(np.int32), offsets


def text(*samples: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return flatten([[(token, -1) for token in sample] for sample in samples])


def paths(forest: ForestLayout) -> list[list[int]]:
    """Rows from the root to each row."""
    result: list[list[int]] = []
    for row, parent in enumerate(forest.parent):
        result.append([*(result[parent] if parent >= 0 else []), row])
    return result


@given(SAMPLES)
def test_samples_come_back_from_the_forest(samples: Samples) -> None:
    ids, image_slots, offsets = flatten(samples)
    forest = build_forest(ids, image_slots, offsets)
    np.testing.assert_array_equal(forest.tokens[forest.flat_index], ids)
    np.testing.assert_array_equal(forest.image_slots[forest.flat_index], image_slots)
    path = paths(forest)
    for start, end in zip(offsets, offsets[1:], strict=False):
        if start < end:
            rows = forest.flat_index[start:end].tolist()
            assert path[rows[-1]] == rows


@given(SAMPLES)
def test_every_distinct_prefix_is_one_row(samples: Samples) -> None:
    forest = build_forest(*flatten(samples))
    prefixes = {tuple(sample[: n + 1]) for sample in samples for n in range(len(sample))}
    found = [
        tuple((int(forest.tokens[r]), int(forest.image_slots[r])) for r in rows)
        for rows in paths(forest)
    ]
    assert len(found) == len(prefixes)
    assert set(found) == prefixes


@given(SAMPLES, st.booleans())
def test_subtree_end_is_the_ancestor_relation(samples: Samples, share: bool) -> None:
    forest = build_forest(*flatten(samples), share=share)
    for query, ancestors in enumerate(paths(forest)):
        sees = [k for k in range(query + 1) if query < forest.subtree_end[k]]
        assert sees == ancestors


@given(SAMPLES)
def test_siblings_stand_in_the_order_of_their_first_sample(samples: Samples) -> None:
    ids, image_slots, offsets = flatten(samples)
    forest = build_forest(ids, image_slots, offsets)
    first = {}
    for i, row in enumerate(forest.flat_index):
        first.setdefault(int(row), i)
    for parent in {-1, *forest.parent.tolist()}:
        children = np.flatnonzero(forest.parent == parent)
        assert sorted(children, key=lambda row: first[int(row)]) == children.tolist()


@given(SAMPLES, st.booleans())
def test_equals_reference(samples: Samples, share: bool) -> None:
    ours = build_forest(*flatten(samples), share=share)
    twin = reference.build_forest(*flatten(samples), share=share)
    for field in dataclasses.fields(ForestLayout):
        a, b = getattr(ours, field.name), getattr(twin, field.name)
        assert a.dtype == b.dtype, field.name
        np.testing.assert_array_equal(a, b, err_msg=field.name)


@given(SAMPLES)
def test_without_sharing_every_sample_is_a_root(samples: Samples) -> None:
    ids, image_slots, offsets = flatten(samples)
    forest = build_forest(ids, image_slots, offsets, share=False)
    np.testing.assert_array_equal(forest.flat_index, np.arange(len(ids)))
    np.testing.assert_array_equal(forest.subtree_end, np.repeat(offsets[1:], np.diff(offsets)))
    assert (forest.parent == -1).sum() == sum(map(bool, samples))


def test_layout_by_hand() -> None:
    forest = build_forest(*text([1, 2, 3], [1, 2, 4, 5], [], [9], [1, 2]))
    assert forest.tokens.tolist() == [1, 2, 3, 4, 5, 9]
    assert forest.parent.tolist() == [-1, 0, 1, 1, 3, -1]
    assert forest.subtree_end.tolist() == [5, 5, 3, 5, 5, 6]
    assert forest.flat_index.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 0, 1]


def test_different_images_never_merge_although_their_ids_agree() -> None:
    picture = [(7, -1), (8, 0), (8, 0), (9, -1)]
    other = [(7, -1), (8, 1), (8, 1), (9, -1)]
    assert len(build_forest(*flatten([picture, other])).tokens) == 7
    assert len(build_forest(*flatten([picture, picture])).tokens) == 4


def test_a_chain_of_a_million_tokens() -> None:
    ids = np.arange(1_000_000)
    forest = build_forest(ids, np.full(len(ids), -1, np.int32), np.array([0, len(ids)]))
    assert forest.parent[-1] == len(ids) - 2
    assert forest.subtree_end[0] == len(ids)


def test_many_siblings() -> None:
    """Enough children of one node to grow the hash table several times, each seen twice."""
    order = np.random.default_rng(0).permutation(5000)
    samples = [[1, int(token)] for token in order] + [[1, int(token)] for token in reversed(order)]
    forest = build_forest(*text(*samples))
    np.testing.assert_array_equal(forest.tokens[1:], order)


@pytest.mark.parametrize("share", [True, False])
def test_threads_change_nothing(share: bool) -> None:
    """Enough tokens for three threads, in samples of very different lengths."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 4000, 200)
    ids = rng.integers(0, 3, lengths.sum())
    samples = ids, np.full(len(ids), -1, np.int32), np.cumsum([0, *lengths])
    alone = build_forest(*samples, share=share, num_threads=1)
    for num_threads in (2, 3, 7):
        found = build_forest(*samples, share=share, num_threads=num_threads)
        for field in dataclasses.fields(ForestLayout):
            a, b = getattr(alone, field.name), getattr(found, field.name)
            np.testing.assert_array_equal(a, b, err_msg=field.name)


def test_a_million_samples_of_one_token() -> None:
    ids = np.arange(1_000_000) % 1000 - 500  # negative ids too
    forest = build_forest(ids, np.full(len(ids), -1, np.int32), np.arange(len(ids) + 1))
    np.testing.assert_array_equal(forest.tokens, np.arange(-500, 500))
    np.testing.assert_array_equal(forest.flat_index, np.arange(1_000_000) % 1000)


def test_a_staircase_of_nested_samples() -> None:
    """Each sample is one token longer than the one before it, or one shorter."""
    for steps in (range(400), range(400)[::-1]):
        forest = build_forest(*text(*([7] * step for step in steps)))
        assert forest.parent.tolist() == list(range(-1, 398))
        assert set(forest.subtree_end) == {399}


@pytest.mark.parametrize("num_threads", [0, -1, 5000])
def test_bad_num_threads(num_threads: int) -> None:
    with pytest.raises(ValueError, match="num_threads must be"):
        build_forest([1], [-1], [0, 1], num_threads=num_threads)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": [0, 2]}, r"end at the number of tokens \(3\), but offsets\[1\] = 2"),
        ({"offsets": [0, 4]}, r"offsets\[1\] = 4"),
        ({"offsets": [1, 3]}, r"start at 0.*offsets\[0\] = 1"),
        ({"offsets": [0, 3, 2, 3]}, r"never fall.*offsets\[2\] = 2"),
        ({"offsets": [0, 2**62, 3]}, r"offsets\[2\] = 3"),
        ({"offsets": []}, "offsets must be 1-D and not empty"),
        ({"ids": [1, 2]}, "ids must be 1-D and as long as image_slots"),
        ({"ids": [1.0, 2.0, 3.0]}, "ids must hold integers, got float64"),
        ({"ids": [[1, 2, 3]]}, r"ids must be 1-D, got shape \(1, 3\)"),
        ({"image_slots": [-1, -1, 2**31]}, "image_slots must fit int32"),
    ],
)
def test_bad_arguments(change: dict[str, list], message: str) -> None:
    arguments = {"ids": [1, 2, 3], "image_slots": [-1, -1, -1], "offsets": [0, 3]}
    with pytest.raises(ValueError, match=message):
        build_forest(**{**arguments, **change})
