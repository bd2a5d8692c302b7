"""`token_logprob` against log_softmax of full logits: values, gradients, chunks, repeated rows."""

from __future__ import annotations

import math

import pytest
import torch

from fastmpi.ops.token_logprob import token_logprob, token_loss
from fastmpi.reference import token_logprob as reference


def _scores(
    num_rows: int = 7,
    hidden_size: int = 5,
    vocabulary: int = 11,
    dtype: torch.dtype = torch.float64,
):
    """Random scores; row 3 has three targets, one of them twice, and some rows have none."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_rows, hidden_size, dtype=dtype, generator=generator)
    head = torch.randn(vocabulary, hidden_size, dtype=dtype, generator=generator)
    rows = torch.tensor([3, 0, 3, 6, 3, 5, 0])
    targets = torch.tensor([1, 10, 4, 0, 1, 7, 2])
    return hidden, head, rows, targets


def _full_logits(hidden, head, rows, targets, temperature=1.0, softcap=None):
    logits = hidden @ head.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logp = (logits / temperature).log_softmax(-1)[rows]
    return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def test_hand_computed():
    hidden = torch.tensor([[1.0, 0.0]])
    head = torch.tensor(
        [[math.log(2.0), 9.0], [0.0, 9.0], [0.0, -9.0]]
    )  # probabilities 1/2, 1/4, 1/4
    logprob, entropy = token_logprob(hidden, head, torch.tensor([0, 0]), torch.tensor([0, 2]))
    assert logprob.tolist() == pytest.approx([math.log(0.5), math.log(0.25)], abs=1e-6)
    assert entropy.tolist() == pytest.approx([1.5 * math.log(2)] * 2, abs=1e-6)


@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, None), (0.7, None), (1.3, 2.0)])
@pytest.mark.parametrize("chunk_rows", [1, 2, None])
def test_equals_full_logits(temperature, softcap, chunk_rows):
    hidden, head, rows, targets = _scores()
    leaves = [hidden.requires_grad_(), head.requires_grad_()]
    options = {"temperature": temperature, "softcap": softcap}
    ours = reference.token_logprob(hidden, head, rows, targets, chunk_rows=chunk_rows, **options)
    full = _full_logits(hidden, head, rows, targets, **options)
    mix = torch.arange(1.0, 8.0, dtype=torch.float64)
    for got, wanted in zip(ours, full, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-13)
        got_grads = torch.autograd.grad((got * mix).sum(), leaves, retain_graph=True)
        wanted_grads = torch.autograd.grad((wanted * mix).sum(), leaves, retain_graph=True)
        torch.testing.assert_close(got_grads, wanted_grads, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk_rows", [2, None])
def test_gradcheck(chunk_rows):
    hidden, head, rows, targets = _scores()

    def scores(hidden, head):
        return reference.token_logprob(
            hidden, head, rows, targets, temperature=0.8, softcap=3.0, chunk_rows=chunk_rows
        )

    assert torch.autograd.gradcheck(scores, (hidden.requires_grad_(), head.requires_grad_()))


def test_logits_of_bfloat16_input_are_float32():
    hidden, head, rows, targets = _scores(dtype=torch.bfloat16)
    logprob, entropy = token_logprob(hidden, head, rows, targets)
    wanted, _ = _full_logits(hidden.double(), head.double(), rows, targets)
    assert logprob.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logprob.double(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("chunk_rows", [1, None])
def test_autocast_does_not_round_logits(chunk_rows):
    hidden, head, rows, targets = _scores(dtype=torch.float32)
    leaves = [hidden.requires_grad_(), head.requires_grad_()]

    def scored():
        return reference.token_logprob(hidden, head, rows, targets, chunk_rows=chunk_rows)[0]

    wanted = scored()
    with torch.autocast("cpu", torch.bfloat16):
        got = scored()
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(got.sum(), leaves), torch.autograd.grad(wanted.sum(), leaves)
    )


def test_token_loss_is_the_weighted_sum_of_log_probs():
    hidden, head, rows, targets = _scores()
    leaves = [hidden.requires_grad_(), head.requires_grad_()]
    weights = torch.arange(-1.0, 6.0, dtype=torch.float64)
    output = token_loss(hidden, head, rows, targets, weights, chunk_rows=2)
    logprob, entropy = _full_logits(hidden, head, rows, targets)
    wanted = -(weights * logprob).sum()
    torch.testing.assert_close(output, (wanted, logprob, entropy), rtol=0, atol=1e-12)
    assert not output.logprob.requires_grad and not output.entropy.requires_grad
    got = torch.autograd.grad(output.loss, leaves)
    torch.testing.assert_close(got, torch.autograd.grad(wanted, leaves), rtol=0, atol=1e-12)


def test_no_scores_give_an_empty_result_with_a_zero_gradient():
    hidden, head, rows, targets = _scores()
    logprob, entropy = token_logprob(hidden.requires_grad_(), head, rows[:0], targets[:0])
    (logprob.sum() + entropy.sum()).backward()
    assert logprob.shape == (0,) and not hidden.grad.any()


def test_chunks_keep_no_logits_for_the_backward_pass():
    hidden, head, rows, targets = _scores()
    shapes: list[tuple[int, ...]] = []

    def note(tensor):
        shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        reference.token_logprob(hidden.requires_grad_(), head, rows, targets, chunk_rows=1)
    assert shapes and not any(shape[-1:] == (head.shape[0],) for shape in shapes if len(shape) == 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rows": torch.tensor([0, 0, 0, 0, 0, 0, 7])},
            r"rows must lie in \[0, 7\), got values from 0 to 7",
        ),
        ({"targets": torch.tensor([0, 0, 0, 0, 0, 0, -1])}, r"targets must lie in \[0, 11\)"),
        ({"targets": torch.tensor([1])}, r"targets must have shape \(7\)"),
        ({"rows": torch.zeros(7)}, "rows must be int32 or int64"),
        ({"rows": torch.zeros(7).numpy()}, "rows must be a tensor, got ndarray"),
        ({"head": torch.zeros(11, 5, dtype=int)}, "head must hold floats, got torch.int64"),
        ({"head": torch.zeros(11, 4)}, r"head must have shape \(\*, 5\)"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"softcap": -1.0}, "softcap must be above 0"),
    ],
)
def test_wrong_arguments(change, message):
    hidden, head, rows, targets = _scores()
    arguments = {"hidden": hidden, "head": head, "rows": rows, "targets": targets, **change}
    with pytest.raises(ValueError, match=message):
        token_logprob(**arguments)
