"""ops/positions.py against reference/positions.py and against transformers' own positions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmpi.ops.forest import build_forest
from fastmpi.ops.positions import (
    linear_forest_positions,
    linear_positions,
    mrope_batch_positions,
    mrope_forest_positions,
    mrope_positions,
)
from fastmpi.reference import positions as reference

MERGE = 2
# Square, tall, wide and of a single merged patch; t, h, w in patches.
GRIDS = np.array([[1, 4, 4], [1, 8, 4], [1, 2, 10], [1, 2, 2]], np.int32)
TOKENS = (GRIDS.prod(axis=1) // MERGE**2).astype(np.int32)

# A sample is a list of slots: -1 for one text token, else a whole image.
SAMPLES = st.lists(st.lists(st.integers(-1, len(GRIDS) - 1), max_size=6), max_size=5)


def flatten(samples: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    rows = [np.repeat(s, [1 if i < 0 else TOKENS[i] for i in s]).astype(np.int32) for s in samples]
    image_slots = np.concatenate([np.zeros(0, np.int32), *rows])
    return image_slots, np.cumsum([0, *map(len, rows)])


@given(SAMPLES)
def test_mrope_equals_reference(samples: list[list[int]]) -> None:
    ours = mrope_positions(*flatten(samples), GRIDS, MERGE)
    twin = reference.mrope_positions(*flatten(samples), GRIDS, MERGE)
    for a, b in zip(ours, twin, strict=True):
        assert a.dtype == b.dtype == np.int32
        np.testing.assert_array_equal(a, b)


@given(SAMPLES)
def test_linear_equals_reference(samples: list[list[int]]) -> None:
    ours = linear_positions(*flatten(samples), TOKENS)
    twin = reference.linear_positions(*flatten(samples), TOKENS)
    for a, b in zip(ours, twin, strict=True):
        assert a.dtype == b.dtype == np.int32
        np.testing.assert_array_equal(a, b)


def padded(samples: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """The same samples as rows of one width, with slots that show nothing behind them."""
    image_slots, offsets = flatten(samples)
    lengths = np.diff(offsets)
    rows = np.full((len(samples), int(lengths.max(initial=0)) + 1), 99, np.int32)
    for row, start, length in zip(rows, offsets, lengths, strict=False):
        row[:length] = image_slots[start : start + length]
    return rows, lengths


@given(SAMPLES)
def test_padded_samples_have_the_positions_of_concatenated_ones(samples: list[list[int]]) -> None:
    ours = mrope_batch_positions(*padded(samples), GRIDS, MERGE)
    twin = reference.mrope_batch_positions(*padded(samples), GRIDS, MERGE)
    assert ours.dtype == twin.dtype == np.int32
    np.testing.assert_array_equal(ours, twin)


@given(SAMPLES)
def test_rows_of_a_forest_have_the_positions_of_their_samples(samples: list[list[int]]) -> None:
    image_slots, offsets = flatten(samples)
    ids = np.arange(len(image_slots)) % 2  # paths may part inside an image too
    forest = build_forest(ids, image_slots, offsets)
    rows = forest.image_slots, forest.parent
    mrope = mrope_forest_positions(*rows, GRIDS, MERGE)
    linear = linear_forest_positions(*rows, TOKENS)
    for found, twin, unshared in [
        (mrope, reference.mrope_forest_positions(*rows, GRIDS, MERGE),
         mrope_positions(image_slots, offsets, GRIDS, MERGE)),
        (linear, reference.linear_forest_positions(*rows, TOKENS),
         linear_positions(image_slots, offsets, TOKENS)),
    ]:  # fmt: skip
        for a, b, alone in zip(found, twin, unshared, strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a[..., forest.flat_index], alone)


def rope_index_model(family: str):
    """A model of the family on the meta device: positions need its configuration only."""
    import torch
    import transformers

    config_class, model_class = {
        "qwen2_vl": (transformers.Qwen2VLConfig, transformers.Qwen2VLModel),
        "qwen2_5_vl": (transformers.Qwen2_5_VLConfig, transformers.Qwen2_5_VLModel),
        "qwen3_vl": (transformers.Qwen3VLConfig, transformers.Qwen3VLModel),
    }[family]
    small = {"num_hidden_layers": 1, "depth": 1, "spatial_merge_size": MERGE}
    with torch.device("meta"):
        return model_class(config_class(text_config={"num_hidden_layers": 1}, vision_config=small))


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_mrope_equals_get_rope_index_of_each_sample_alone(family: str) -> None:
    import torch

    # transformers tells images apart by the text between them: one token at least
    samples = [[-1, 0, -1, -1], [1, -1, 2, -1, 1], [-1] * 5, [3], [-1, 2, -1, 3, -1, 0, -1]]
    positions, _ = mrope_positions(*flatten(samples), GRIDS, MERGE)
    model = rope_index_model(family)
    for sample, found in zip(
        samples, np.split(positions, flatten(samples)[1][1:-1], 1), strict=True
    ):
        image_slots, _ = flatten([sample])
        expected, _ = model.get_rope_index(
            input_ids=torch.zeros(1, len(image_slots), dtype=torch.long),
            mm_token_type_ids=torch.from_numpy((image_slots >= 0).astype(np.int32))[None],
            image_grid_thw=torch.from_numpy(GRIDS[[i for i in sample if i >= 0]]),
        )
        np.testing.assert_array_equal(found, expected[:, 0].numpy())


def test_by_hand() -> None:
    """Text, then a picture of 2 rows and 1 column twice without text between, then text."""
    image_slots = np.array([-1, 0, 0, 0, 0, -1], np.int32)
    positions, within = mrope_positions(image_slots, np.array([0, 6]), np.array([[1, 4, 2]]), 2)
    assert positions.tolist() == [[0, 1, 1, 3, 3, 5], [0, 1, 2, 3, 4, 5], [0, 1, 1, 3, 3, 5]]
    assert within.tolist() == [0, 0, 1, 0, 1, 0]
    positions, within = linear_positions(image_slots, np.array([0, 1, 6]), np.array([2]))
    assert positions.tolist() == [[0, 0, 1, 2, 3, 4]] * 3
    assert within.tolist() == [0, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("positions", [mrope_positions, reference.mrope_positions])
def test_a_run_that_is_no_whole_image_names_sample_and_image(positions) -> None:
    image_slots = np.array([-1, -1, 0, 0, 0, -1], np.int32)
    message = "sample 1: image 0 takes 2 placeholders, but its run has 3"
    with pytest.raises(ValueError, match=message):
        positions(image_slots, np.array([0, 1, 6]), np.array([[1, 4, 2]], np.int32), 2)


def test_an_image_cannot_go_on_in_the_next_sample() -> None:
    with pytest.raises(ValueError, match="sample 0: image 0 takes 4 placeholders, .* has 3"):
        linear_positions(np.zeros(4, np.int32), np.array([0, 3, 4]), np.array([4]))


@pytest.mark.parametrize(
    ("grids", "merge_size", "message"),
    [
        ([[2, 4, 2]], 2, r"image 0: grid \(2, 4, 2\) is a video's"),
        ([[1, 3, 2]], 2, r"image 0: grid \(1, 3, 2\) is no multiple of merge_size 2"),
        ([[1, 0, 2]], 2, r"image 0: grid \(1, 0, 2\)"),
        ([[1, 4, 2]], 0, "merge_size must be at least 1"),
        ([[1, 4]], 2, r"grids must have shape \(images, 3\)"),
        ([1, 4, 2], 2, "grids must be 2-D"),
        (np.zeros((0, 3), np.int64), 2, "sample 0: image slot 0, but there are 0 images"),
    ],
)
def test_bad_grids(grids, merge_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mrope_positions(np.zeros(2, np.int32), np.array([0, 2]), grids, merge_size)


@pytest.mark.parametrize(
    ("tokens_per_image", "message"),
    [([], "image slot 0, but there are 0 images"), ([0], "image 0: takes 0 placeholders")],
)
def test_bad_tokens_per_image(tokens_per_image: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_positions(np.zeros(2, np.int32), np.array([0, 2]), tokens_per_image)


@pytest.mark.parametrize("offsets", [[0, 3], [1, 2], [0, 5, 2]])
def test_bad_offsets(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets must start at 0"):
        mrope_positions(np.full(2, -1), offsets, GRIDS, MERGE)


def test_a_path_that_shows_no_whole_image_names_its_row() -> None:
    forest = np.array([-1, 0, 0], np.int32), np.array([-1, 0, 1], np.int32)  # 2 of 4 placeholders
    with pytest.raises(ValueError, match="row 2: image 0 takes 4 placeholders, which do not"):
        mrope_forest_positions(*forest, GRIDS, MERGE)
    with pytest.raises(ValueError, match="row 1: image slot 0, but there are 0 images"):
        linear_forest_positions(*forest, np.zeros(0, np.int32))


@pytest.mark.parametrize("parent", [[0, 0], [-1, 1], [-1, -2], [-(2**31), 0], [-1, 2**31 - 1]])
def test_parents_stand_before_their_children(parent: list[int]) -> None:
    with pytest.raises(ValueError, match="is no row before it"):
        mrope_forest_positions([-1, -1], parent, GRIDS, MERGE)


@pytest.mark.parametrize(
    ("image_slots", "lengths", "message"),
    [
        ([[-1, -1]], [3], r"lengths\[0\] = 3 is not in \[0, 2\]"),
        ([[-1, -1]], [-1], r"lengths\[0\] = -1"),
        ([[-1, -1]], [1, 1], r"shape \(B, L\)"),
        ([-1, -1], [2], "image_slots must be 2-D"),
        ([[-1, 0]], [2], "sample 0: image 0 takes 4 placeholders, but its run has 1"),
    ],
)
def test_bad_batches(image_slots: list, lengths: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mrope_batch_positions(image_slots, lengths, GRIDS, MERGE)


def test_sizes_that_no_forest_has() -> None:
    """No samples, empty samples, a million rows, and a grid whose area overflows int32."""
    none = np.zeros(0, np.int32)
    assert mrope_positions(none, [0], GRIDS, MERGE)[0].shape == (3, 0)
    assert mrope_batch_positions(np.zeros((0, 5)).astype(int), none, GRIDS, MERGE)[1].shape == (
        0,
        5,
    )
    assert mrope_forest_positions(none, none, GRIDS, MERGE)[0].shape == (3, 0)
    million = np.full(1_000_000, -1, np.int32)
    assert not mrope_positions(million, np.arange(1_000_001), GRIDS, MERGE)[0].any()
    assert not mrope_forest_positions(million, million, GRIDS, MERGE)[0].any()
    vast = [[1, 2**31 - 2, 2**31 - 2]]
    with pytest.raises(ValueError, match="image 0 takes 1152921502459363329 placeholders"):
        mrope_positions([0, 0], [0, 2], vast, 2)


def test_positions_into_memory_that_is_used_again() -> None:
    image_slots, lengths = padded([[-1, 0], [1]])
    expected = mrope_batch_positions(image_slots, lengths, GRIDS, MERGE)
    out = np.full_like(expected, 7)
    assert mrope_batch_positions(image_slots, lengths, GRIDS, MERGE, out=out) is out
    np.testing.assert_array_equal(out, expected)
    frozen = out.copy()
    frozen.flags.writeable = False
    for bad in (out[:2], out[:, :, ::2], out.astype(np.int64), out[0], frozen, [1]):
        with pytest.raises(ValueError, match="out must"):
            mrope_batch_positions(image_slots, lengths, GRIDS, MERGE, out=bad)


def test_threads_change_nothing_but_the_time() -> None:
    """Enough tokens for three threads; of several broken samples the first is named."""
    rng = np.random.default_rng(0)
    samples = [rng.integers(-1, len(GRIDS), 40).tolist() for _ in range(3000)]
    image_slots, offsets = flatten(samples)
    assert len(image_slots) > 3 * 2**17
    alone = mrope_positions(image_slots, offsets, GRIDS, MERGE, num_threads=1)
    for num_threads in (2, 5):
        found = mrope_positions(image_slots, offsets, GRIDS, MERGE, num_threads=num_threads)
        for a, b in zip(alone, found, strict=True):
            np.testing.assert_array_equal(a, b)
    image_slots[offsets[[900, 1400]]] = 3
    image_slots[offsets[[900, 1400]] + 1] = 9
    with pytest.raises(ValueError, match="sample 900: image slot 9"):
        mrope_positions(image_slots, offsets, GRIDS, MERGE, num_threads=5)
