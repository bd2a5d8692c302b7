"""Sampling: the distribution it draws from, top-k and top-p, forbidden tokens, random streams."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmpi.rollout.sampling import (
    Sampler,
    SamplingParams,
    invert_cdf,
    keep_top_k,
    keep_top_p,
    logits_held,
    uniforms,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
from allocations import Allocations  # noqa: E402

LOGITS = torch.tensor([2.0, 0.5, -torch.inf, 1.0, 0.0, -1.0, 1.5], dtype=torch.float64)


def _sampler(logits: torch.Tensor, forbidden=(), **options) -> Sampler:
    """A head whose logits are `logits` for the hidden state (1,)."""
    return Sampler(SamplingParams(max_tokens=1, **options), logits[:, None], None, forbidden)


def _draw(sampler: Sampler, count: int) -> tuple[np.ndarray, np.ndarray]:
    uniform = torch.from_numpy(np.random.default_rng(0).random(count))
    tokens, logprobs = sampler(torch.ones(count, 1, dtype=torch.float64), uniform)
    return tokens.numpy(), logprobs.numpy()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature):
    finite = LOGITS[torch.isfinite(LOGITS)]
    tokens, logprobs = _draw(_sampler(finite, temperature=temperature), 20_000)
    wanted = (finite / temperature).log_softmax(-1).numpy()
    np.testing.assert_allclose(logprobs, wanted[tokens], rtol=0, atol=1e-12)
    observed = np.bincount(tokens, minlength=len(finite))
    expected = 20_000 * np.exp(wanted)
    # 5 degrees of freedom: 25.7 is exceeded once in 10,000; the seed is fixed
    assert ((observed - expected) ** 2 / expected).sum() < 25.7


def test_inversion_takes_the_first_token_beyond_the_point():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, 0.0, -torch.inf]]).expand(6, -1)
    below_one = np.nextafter(1.0, 0.0)
    points = torch.tensor([0.0, 0.33, 0.34, 0.66, 0.67, below_one], dtype=torch.float64)
    assert invert_cdf(logits.exp(), points).tolist() == [1, 1, 3, 3, 4, 4]


def test_largest_uniform_never_falls_off_the_end():
    logits = torch.randn(500, 97, generator=torch.Generator().manual_seed(0))
    logits[:, -1] = -torch.inf
    last = torch.full((500,), np.nextafter(1.0, 0.0), dtype=torch.float64)
    assert int(invert_cdf(logits.exp(), last).max()) <= 95


def test_top_k():
    kept = keep_top_k(LOGITS[None], 3)[0]
    assert torch.isfinite(kept).nonzero()[:, 0].tolist() == [0, 3, 6]
    assert torch.equal(keep_top_k(LOGITS[None], 99)[0], LOGITS)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.5, [0]), (0.7, [0, 3]), (0.9, [0, 1, 3]), (1e-9, [0])]
)
def test_top_p_keeps_the_fewest_tokens_with_that_mass(top_p, kept):
    probabilities = torch.tensor([0.5, 0.17, 0.08, 0.25], dtype=torch.float64)
    left = keep_top_p(probabilities.log()[None], top_p)[0]
    assert torch.isfinite(left).nonzero()[:, 0].tolist() == kept
    torch.testing.assert_close(left[kept], probabilities.log()[kept])


def test_log_probs_are_those_before_top_k_top_p_and_forbidden_tokens():
    finite = LOGITS[torch.isfinite(LOGITS)]
    sampler = _sampler(finite, forbidden=(0,), top_k=2, top_p=0.9, temperature=2.0)
    tokens, logprobs = _draw(sampler, 100)
    assert set(tokens) == {2, 5}
    np.testing.assert_allclose(logprobs, (finite / 2).log_softmax(-1).numpy()[tokens], atol=1e-12)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forbidden_tokens_never_occur_however_likely(temperature):
    logits = torch.zeros(8, dtype=torch.float64)
    logits[3], logits[5] = 1e4, 9e3
    sampler = _sampler(logits, forbidden=(3,), forbidden_token_ids=(5,), temperature=temperature)
    tokens, _ = _draw(sampler, 500)
    assert not {3, 5} & set(tokens.tolist())


def test_streams_are_distinct_and_repeat():
    streams = [uniforms(*key, count=4) for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]]
    assert len({tuple(stream) for stream in streams}) == 4
    np.testing.assert_array_equal(uniforms(3, 5, 7, 9)[:4], uniforms(3, 5, 7, 4))
    assert uniforms(2**64 - 1, 0, 0, 1) != uniforms(2**64 - 2, 0, 0, 1)  # no key becomes a float
    assert uniforms(0, 0, 0, 2).tolist() == pytest.approx([0.01154675, 0.24154920])  # frozen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"temperature": -1.0}, "temperature must be 0 or above"),
        ({"temperature": float("nan")}, "temperature must be 0 or above"),
        ({"top_p": 0.0}, "top_p must lie in"),
        ({"top_k": -1}, "top_k must be 0"),
        ({"seed": -1}, "seed must lie in"),
    ],
)
def test_wrong_params(options, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**{"max_tokens": 4, **options})


def test_wrong_forbidden_tokens():
    with pytest.raises(ValueError, match=r"forbidden_token_ids must lie in \[0, 7\)"):
        _sampler(LOGITS, forbidden_token_ids=(7,))
    with pytest.raises(ValueError, match="every token is forbidden"):
        _sampler(LOGITS, forbidden_token_ids=tuple(range(7)))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_logits_on_cuda_are_not_rounded(dtype, softcap):
    hidden = torch.randn(8, 256, device="cuda").to(dtype)
    head = torch.randn(5000, 256, device="cuda").to(dtype)
    sampler = Sampler(SamplingParams(max_tokens=1, temperature=0.7), head, softcap, ())
    with torch.autocast("cuda", torch.bfloat16):
        tokens, logprobs = sampler(hidden, torch.rand(8, device="cuda", dtype=torch.float64))
    logits = hidden.double() @ head.double().T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    wanted = (logits / 0.7).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (20, 1.0), (0, 0.9), (20, 0.9)])
def test_a_draw_holds_what_is_counted(top_k, top_p):
    num_rows, vocabulary = 32, 20_000
    hidden, head = torch.randn(num_rows, 1), torch.randn(vocabulary, 1)
    sampler = Sampler(SamplingParams(1, top_k=top_k, top_p=top_p), head, None, (3, 4))
    with torch.inference_mode(), Allocations() as count:
        sampler(hidden, torch.rand(num_rows, dtype=torch.float64))
    found = count.peak / (4 * num_rows * vocabulary)
    assert found == pytest.approx(logits_held(top_k, top_p), rel=0.15)
