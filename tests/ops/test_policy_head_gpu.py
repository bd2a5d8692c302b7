"""The head at real sizes, on a GPU: accuracy, memory, sizes past 2^31, and what compiles when."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastmpi.ops.policy_head import policy_head
from fastmpi.ops.token_logprob import token_logprob, token_loss

pytestmark = pytest.mark.gpu

QWEN_3B = (151936, 2048)
QWEN_7B = (152064, 3584)


def _generator() -> torch.Generator:
    generator = torch.Generator("cuda")
    print("seed", generator.seed())  # inputs are drawn anew; a failure names them
    return generator


def _problem(vocabulary: int, width: int, count: int, dtype: torch.dtype):
    """Logits of deviation 2.5, as of a trained model; every row has one score."""
    generator = _generator()
    hidden = torch.randn(count, width, device="cuda", generator=generator)
    head = torch.randn(vocabulary, width, device="cuda", generator=generator) * 2.5 / width**0.5
    targets = torch.randint(vocabulary, (count,), device="cuda", generator=generator)
    return hidden.to(dtype), head.to(dtype), torch.arange(count, device="cuda"), targets


def _exact_logprobs(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) log-probs and (N, V) probabilities in fp64."""
    logp = (hidden.double() @ head.double().T).log_softmax(-1)
    return logp.gather(1, targets[:, None])[:, 0], logp.exp()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("vocabulary", "width"), [QWEN_3B, QWEN_7B])
def test_log_probs_err_less_than_a_twentieth_of_rounded_logits(vocabulary, width, dtype):
    hidden, head, rows, targets = _problem(vocabulary, width, 512, dtype)
    exact, _ = _exact_logprobs(hidden, head, targets)
    ours, _ = token_logprob(hidden, head, rows, targets, backend="triton")
    rounded = (hidden @ head.T).float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert (ours - exact).abs().mean() <= (rounded - exact).abs().mean() / 20
    assert (ours - exact).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_at_full_size(dtype):
    hidden, head, rows, targets = _problem(*QWEN_7B, 512, dtype)
    hidden.requires_grad_()
    head.requires_grad_()
    weights = torch.randn(512, device="cuda") / 512
    loss = token_loss(hidden, head, rows, targets, weights, backend="triton").loss
    dhidden, dhead = torch.autograd.grad(loss, (hidden, head))
    with torch.no_grad():
        _, slope = _exact_logprobs(hidden, head, targets)
        slope.scatter_add_(1, targets[:, None], -torch.ones_like(slope[:, :1]))
        slope *= weights[:, None].double()
        exact_hidden, exact_head = slope @ head.double(), slope.T @ hidden.double()
    precision = torch.finfo(dtype).eps
    for got, exact in ((dhidden, exact_hidden), (dhead, exact_head)):
        assert (got - exact).norm() / exact.norm() < precision


def test_more_than_2_to_the_31_logits_in_one_chunk():
    count = 15_000
    hidden, head, rows, targets = _problem(151936, 64, count, torch.bfloat16)
    assert count * len(head) > 2**31
    hidden.requires_grad_()
    weights = torch.full((count,), 1 / count, device="cuda")
    whole = token_loss(hidden, head, rows, targets, weights, chunk_rows=count, backend="triton")
    parts = token_loss(hidden, head, rows, targets, weights, chunk_rows=1024, backend="triton")
    torch.testing.assert_close(whole.logprob, parts.logprob, rtol=0, atol=1e-4)
    exact, _ = _exact_logprobs(hidden[-64:].detach(), head, targets[-64:])
    torch.testing.assert_close(whole.logprob[-64:].double(), exact, rtol=0, atol=1e-4)
    grads = [torch.autograd.grad(output.loss, hidden)[0].float() for output in (whole, parts)]
    assert (grads[0] - grads[1]).norm() <= 1e-2 * grads[1].norm()


def test_memory_of_a_frozen_head_stays_below_1_gb():
    hidden, head, rows, targets = _problem(*QWEN_7B, 16_384, torch.bfloat16)
    hidden.requires_grad_()
    sequences, weights = rows // 512, torch.full((16_384,), 1 / 16_384, device="cuda")
    advantages = torch.randn(32, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = policy_head(
        hidden, head, rows, targets, sequences, weights=weights, advantages=advantages,
        backend="triton",
    ).loss  # fmt: skip
    extra = torch.cuda.max_memory_allocated() - before
    loss.backward()
    gradient = hidden.numel() * hidden.element_size()
    assert extra - gradient < 1e9


def test_two_runs_are_equal_at_full_size():
    hidden, head, rows, targets = _problem(*QWEN_3B, 2048, torch.bfloat16)
    hidden.requires_grad_()
    head.requires_grad_()
    weights = torch.randn(2048, device="cuda")

    def run() -> tuple[Tensor, ...]:
        output = token_loss(hidden, head, rows, targets, weights, backend="triton")
        return output.logprob, *torch.autograd.grad(output.loss, (hidden, head))

    assert all(torch.equal(*pair) for pair in zip(run(), run(), strict=True))


def test_one_row_of_hundreds_of_targets_at_full_size():
    hidden, head, _, targets = _problem(*QWEN_3B, 700, torch.bfloat16)
    row = torch.zeros_like(targets)
    hidden.requires_grad_()
    weights = torch.randn(700, device="cuda")
    output = token_loss(hidden, head, row, targets, weights, backend="triton")
    (dhidden,) = torch.autograd.grad(output.loss, hidden)
    with torch.no_grad():
        logp = (hidden[:1].double() @ head.double().T).log_softmax(-1)
        slope = weights.double().sum() * logp.exp()
        slope.index_add_(1, targets, -weights.double()[None])
        exact = (slope @ head.double())[0]
    torch.testing.assert_close(output.logprob.double(), logp[0, targets], rtol=0, atol=1e-4)
    assert (dhidden[0] - exact).norm() < 4e-3 * exact.norm()
    assert not dhidden[1:].any()


def test_no_kernel_is_compiled_for_a_new_number_of_tokens():
    from fastmpi.kernels import token_logprob as kernels

    def run(count: int, chunk_rows: int | None) -> int:
        hidden, head, rows, targets = _problem(1000, 64, count, torch.bfloat16)
        hidden.requires_grad_()
        weights = torch.ones(count, device="cuda")
        loss = token_loss(
            hidden, head, rows, targets, weights, chunk_rows=chunk_rows, backend="triton"
        ).loss
        loss.backward()
        return len(kernels._score_rows.device_caches[torch.cuda.current_device()][0])

    assert len({run(*shape) for shape in ((5, None), (1, None), (64, 16), (1000, 7))}) == 1


def test_compiles_with_inductor():
    hidden, head, rows, targets = _problem(1000, 64, 100, torch.bfloat16)
    hidden.requires_grad_()
    weights = torch.ones(100, device="cuda")

    def run() -> Tensor:
        mixed = torch.tanh(hidden)
        loss = token_loss(mixed, head, rows, targets, weights, backend="triton").loss
        logprob, entropy = token_logprob(mixed, head, rows, targets, backend="triton")
        return loss + (logprob * entropy).sum()

    (wanted,) = torch.autograd.grad(run(), hidden)
    (got,) = torch.autograd.grad(torch.compile(run, fullgraph=True)(), hidden)
    assert (got - wanted).norm() <= 1e-2 * wanted.norm()
