"""Samples -> forest batch -> samples; what a batch carries equals what each sample had alone."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmpi.data.batch import ForestBatch, microbatches, outline, plan_shares
from fastmpi.data.images import Image
from fastmpi.data.samples import Prompt, Sample

PAD = 9  # the placeholder token


@dataclass
class Rule:
    rope: str = "mrope"
    merge_size: int = 2
    image_token_id: int = PAD


def image(key: str, h: int = 4, w: int = 4) -> Image:
    return Image(key, torch.zeros(1), (1, h, w), h * w // 4)


def sample(tokens: list, weights: list | None = None) -> Sample:
    """`tokens` mixes ids and images."""
    ids, images = [], []
    for token in tokens:
        if isinstance(token, Image):
            ids += [PAD] * token.num_tokens
            images.append(token)
        else:
            ids.append(token)
    weights = weights or [0.0] + [1.0] * (len(ids) - 1)
    return Sample(np.array(ids, np.int64), tuple(images), np.array(weights[: len(ids)], np.float32))


def ancestors(batch: ForestBatch, row: int) -> list[int]:
    path = [row]
    while batch.parent[path[-1]] >= 0:
        path.append(int(batch.parent[path[-1]]))
    return path[::-1]


@st.composite
def sample_lists(draw):
    pool = [image("a"), image("b"), image("c", 2, 6)]
    token = st.one_of(st.integers(0, 2), st.sampled_from(pool))
    rows = draw(st.lists(st.lists(token, min_size=1, max_size=8), min_size=1, max_size=6))
    return [sample(row) for row in rows]


@settings(max_examples=60, deadline=None)
@given(sample_lists(), st.booleans())
def test_every_sample_can_be_read_back(samples, share):
    batch = ForestBatch.from_samples(samples, Rule(), share=share)
    for s, original in enumerate(samples):
        rows = batch.flat_index[batch.offsets[s] : batch.offsets[s + 1]]
        assert batch.tokens[rows].tolist() == original.ids.tolist()
        assert ancestors(batch, int(rows[-1])) == rows.tolist()
        alone = ForestBatch.from_samples([original], Rule())
        assert torch.equal(batch.position_ids[:, rows], alone.position_ids)
        shown = features_of(batch, rows)
        assert shown == features_of(alone, alone.flat_index)


def features_of(batch: ForestBatch, rows: torch.Tensor) -> list:
    """(key, offset) of the picture feature that each placeholder row shows."""
    owners = [(im.key, i) for im in batch.images for i in range(im.num_tokens)]
    at = dict(zip(batch.image_rows.tolist(), batch.feature_rows.tolist(), strict=True))
    return [owners[at[r]] for r in rows.tolist() if r in at]


@settings(max_examples=40, deadline=None)
@given(sample_lists())
def test_merged_scores_carry_the_weight_of_the_unshared_ones(samples):
    batch = ForestBatch.from_samples(samples, Rule())
    merged, single = batch.scores(), batch.sample_scores()
    total = torch.zeros(batch.num_tokens)
    total.index_add_(0, batch.flat_index, batch.weights)
    assert merged.weights.sum().item() == pytest.approx(single.weights.sum().item())
    assert torch.equal(merged.weights, total[total != 0])
    pairs = set(zip(merged.rows.tolist(), merged.targets.tolist(), strict=True))
    assert pairs == set(zip(single.rows.tolist(), single.targets.tolist(), strict=True))


def test_sample_scores_keep_order_and_index():
    samples = [sample([1, 2, 3], [0, 0, 2.0]), sample([1, 2, 4, 5], [0, 0, 1.0, 3.0])]
    scores = ForestBatch.from_samples(samples, Rule()).sample_scores()
    assert scores.targets.tolist() == [3, 4, 5]
    assert scores.samples.tolist() == [0, 1, 1]
    assert scores.index.tolist() == [2, 2, 3]
    assert scores.weights.tolist() == [2.0, 1.0, 3.0]
    assert scores.rows[0] == scores.rows[1], "both first response tokens hang on the prompt"


def test_images_with_equal_ids_do_not_merge():
    a, b = sample([1, image("a"), 2]), sample([1, image("b"), 2])
    batch = ForestBatch.from_samples([a, b], Rule())
    assert a.ids.tolist() == b.ids.tolist()
    assert batch.num_tokens == 1 + 2 * (len(a.ids) - 1)
    assert ForestBatch.from_samples([a, a], Rule()).num_tokens == len(a.ids)


def test_placeholder_count_must_agree():
    bad = Sample(np.array([1, PAD, 2]), (image("a"),), np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="1 placeholder tokens for images of 4"):
        ForestBatch.from_samples([bad], Rule())


@pytest.mark.parametrize("share", [True, False])
def test_microbatches_cover_every_sample_once_within_the_budget(share):
    rng = np.random.default_rng(0)
    prompt = [[1, image("a"), 2], [1, image("b")], [3]]
    samples = [sample([*prompt[i % 3], *rng.integers(3, 8, 4).tolist()]) for i in range(12)]
    batches = microbatches(samples, Rule(), 24, share=share)
    assert sorted(torch.cat([b.sample_ids for b in batches]).tolist()) == list(range(12))
    assert all(b.num_tokens <= 24 for b in batches)
    for batch in batches:
        for s, name in enumerate(batch.sample_ids):
            ids = batch.ids[batch.offsets[s] : batch.offsets[s + 1]]
            assert ids.tolist() == samples[name].ids.tolist()


def test_linear_positions_count_tokens():
    batch = ForestBatch.from_prompts(
        [Prompt(np.array([1, PAD, PAD, PAD, PAD, 2]), (image("a"),))], Rule(rope="linear")
    )
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5]] * 3
    assert batch.scores().targets.numel() == 0


def test_outlines_plan_like_samples() -> None:
    """Samples with a picture in common come together, and processes have as much to run."""
    pictures = [image(key, 8, 8) for key in "abc"]
    samples = [sample([1, pictures[i % 3], 2, 10 + i]) for i in range(9)]
    outlines = [outline(s) for s in samples]
    assert sum(im.num_bytes for o in outlines for im in o.images) == 0
    plan = plan_shares(outlines, np.arange(9), 3, Rule(), 100)
    assert sorted(tuple(np.concatenate(cuts) % 3) for cuts in plan) == [(i,) * 3 for i in range(3)]
    alone = plan_shares(outlines, np.arange(9), 3, Rule(), 100, share=False)
    assert {sum(map(len, cuts)) for cuts in alone} == {3}
    groups = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    for cuts in plan_shares(outlines, groups, 3, Rule(), 100):
        assert len({int(groups[i]) for i in np.concatenate(cuts)}) == 1
