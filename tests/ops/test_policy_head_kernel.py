"""The kernel of `policy_head` against fp64, in every combination of its terms."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastmpi.ops import policy_head as ops
from fastmpi.ops.policy_head import policy_head
from fastmpi.ops.token_logprob import token_logprob

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16]
if DEVICE == "cuda":  # the interpreter rounds to bfloat16 toward zero
    DTYPES.append(torch.bfloat16)

ROWS = torch.tensor([3, 0, 3, 6, 3, 5, 0], device=DEVICE)  # rows 1, 2, 4 have no scores
TARGETS = torch.tensor([1, 10, 4, 0, 1, 299, 2], device=DEVICE)  # row 3 has target 1 twice
SEQUENCES = torch.tensor([0, 1, 2, 0, 1, 2, 0], device=DEVICE)
WEIGHTS = torch.tensor([0.3, 0.1, 0.2, 0.0, 0.4, 0.5, 0.2], device=DEVICE)
ADVANTAGES = torch.tensor([1.5, -1.0, 0.5], device=DEVICE)
# Clipped above, below and by delta, on the bounds' right and wrong side, and not at all.
LOG_RATIOS = torch.tensor([0.4, 0.4, -0.4, 0.1, 1.2, -0.4, 0.0], device=DEVICE)
GAPS = torch.tensor([0.0, 1e-3, -0.3, 2.0, -2.0, 0.6, -0.6], device=DEVICE)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """What is not written stays NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def _operands(dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(8, 24, generator=generator).to(DEVICE, dtype)
    head = (torch.randn(300, 24, generator=generator) / 2).to(DEVICE, dtype)
    return hidden.requires_grad_(), head.requires_grad_()


def _exact_leaves(hidden, head):
    return [x.detach().double().requires_grad_() for x in (hidden, head)]


def _run(hidden, head, **options):
    columns = {"weights": WEIGHTS, "advantages": ADVANTAGES}
    output = policy_head(hidden, head, ROWS, TARGETS, SEQUENCES, **{**columns, **options})
    return output, torch.autograd.grad(output.loss, (hidden, head))


def _judged(hidden, head, **options):
    """The kernel's output and gradients, and those of the reference in fp64."""
    exact = _run(*_exact_leaves(hidden, head), backend="reference", **options)
    return _run(hidden, head, backend="triton", **options), exact


def _error(got, exact):
    return max(
        (g.double() - e.double()).abs().max().item() for g, e in zip(got, exact, strict=True)
    )


def _columns(hidden, head, *, old: bool, ref: bool):
    logprob = token_logprob(*_exact_leaves(hidden, head), ROWS, TARGETS)[0].detach()
    return {
        "old_logprob": logprob - LOG_RATIOS if old else None,
        "ref_logprob": logprob + GAPS if ref else None,
    }


TERMS = [
    {"old": old, "ref": ref, "delta": delta, "beta": beta, "importance_sampling_level": level}
    for old, ref, delta, beta, level in itertools.product(
        (False, True), (False, True), (None, 1.5), (0.0, 0.3), ("token", "sequence")
    )
    if (ref or not beta) and (old or (not delta and level == "token"))
]


@pytest.mark.parametrize("terms", TERMS)
def test_every_combination_of_terms(terms):
    hidden, head = _operands()
    options = dict(terms)
    columns = _columns(hidden, head, old=options.pop("old"), ref=options.pop("ref"))
    (got, got_grads), (exact, exact_grads) = _judged(
        hidden, head, epsilon=0.2, epsilon_high=0.25, chunk_rows=3, **columns, **options
    )
    assert torch.equal(got.clipped_low, exact.clipped_low)
    assert torch.equal(got.clipped_high, exact.clipped_high)
    assert _error(got, exact) < 1e-5
    assert _error(got_grads, exact_grads) < 1e-5


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7}, {"softcap": 3.0, "temperature": 1.3}]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_worse_than_plain_torch(dtype, options):
    hidden, head = _operands(dtype)
    columns = _columns(hidden, head, old=True, ref=True)
    (got, got_grads), (exact, exact_grads) = _judged(hidden, head, beta=0.1, **columns, **options)
    assert _error([got.logprob, got.entropy], [exact.logprob, exact.entropy]) < 1e-5

    logits = hidden @ head.T
    if "softcap" in options:
        logits = options["softcap"] * torch.tanh(logits / options["softcap"])
    logp = (logits.float() / options.get("temperature", 1.0)).log_softmax(-1)
    from fastmpi.reference.policy_loss import policy_loss

    plain = policy_loss(logp[ROWS, TARGETS], SEQUENCES, WEIGHTS, ADVANTAGES, beta=0.1, **columns)
    plain_error = _error(torch.autograd.grad(plain.loss, (hidden, head)), exact_grads)
    assert _error(got_grads, exact_grads) <= 1.1 * plain_error + 1e-5


def test_k3_keeps_its_digits_around_zero():
    hidden, head = _operands()
    logprob = token_logprob(hidden, head, ROWS, TARGETS, backend="triton")[0].detach()
    output, _ = _run(hidden, head, ref_logprob=logprob + 2**-10, backend="triton")
    gap = (logprob + 2**-10).double() - logprob.double()
    torch.testing.assert_close(output.kl.double(), torch.expm1(gap) - gap, rtol=1e-5, atol=0)


def test_rewards_of_a_mixed_group():
    hidden, head = _operands()
    of_rewards = {
        "advantages": None, "rewards": torch.tensor([1.0, 0.0, 0.5], device=DEVICE),
        "groups": torch.tensor([3, 3, 3], device=DEVICE),
        "arms": torch.tensor([0, 1, 1], device=DEVICE),
    }  # fmt: skip
    (got, got_grads), (exact, exact_grads) = _judged(hidden, head, **of_rewards)
    assert _error(got, exact) < 1e-5
    assert _error(got_grads, exact_grads) < 1e-5


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_without_gradients(level):
    hidden, head = _operands()
    columns = _columns(hidden, head, old=True, ref=True)
    options = {"importance_sampling_level": level, "backend": "triton", **columns}
    wanted, _ = _run(hidden, head, **options)
    with torch.no_grad():
        got = policy_head(
            hidden, head, ROWS, TARGETS, SEQUENCES, weights=WEIGHTS, advantages=ADVANTAGES,
            **options,
        )  # fmt: skip
    assert not got.loss.requires_grad
    assert all(torch.equal(*pair) for pair in zip(got, wanted, strict=True))


def test_measures_carry_no_gradient():
    output, _ = _run(*_operands(), backend="triton")
    assert [value.requires_grad for value in output] == [True] + [False] * 7


def test_the_gradient_is_multiplied_by_that_of_the_loss():
    hidden, head = _operands()
    _, once = _run(hidden, head, backend="triton")
    output = policy_head(
        hidden, head, ROWS, TARGETS, SEQUENCES, weights=WEIGHTS, advantages=ADVANTAGES,
        backend="triton",
    )  # fmt: skip
    twice = torch.autograd.grad(2 * output.loss, (hidden, head), retain_graph=True)
    again = torch.autograd.grad(2 * output.loss, (hidden, head))
    assert all(
        torch.equal(2 * a, b) and torch.equal(b, c)
        for a, b, c in zip(once, twice, again, strict=True)
    )


def test_there_are_no_second_derivatives():
    hidden, head = _operands()
    output = policy_head(
        hidden, head, ROWS, TARGETS, SEQUENCES, weights=WEIGHTS, advantages=ADVANTAGES,
        backend="triton",
    )  # fmt: skip
    (grad,) = torch.autograd.grad(output.loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_no_scores(dtype, level):
    hidden, head = _operands(dtype)
    none, nothing = ROWS[:0], WEIGHTS[:0]
    output = policy_head(
        hidden, head, none, none, none, weights=nothing, advantages=ADVANTAGES,
        importance_sampling_level=level, backend="triton",
    )  # fmt: skip
    assert output.loss.item() == 0
    assert not any(grad.any() for grad in torch.autograd.grad(output.loss, (hidden, head)))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_two_runs_are_equal(level):
    hidden, head = _operands(torch.float16)
    columns = _columns(hidden, head, old=True, ref=True)
    options = {"importance_sampling_level": level, "beta": 0.1, "backend": "triton", **columns}
    (first, first_grads), (second, second_grads) = (_run(hidden, head, **options) for _ in range(2))
    pairs = zip((*first, *first_grads), (*second, *second_grads), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_custom_op():
    operands = (*_operands(), ROWS, TARGETS, SEQUENCES, WEIGHTS, ADVANTAGES)
    torch.library.opcheck(
        ops._policy_head,
        (*operands, WEIGHTS, None, 0.2, 0.2, None, 0.0, 1.0, None, 3, None, True, True),
    )


def test_compiles_into_one_graph():
    hidden, head = _operands()

    def run():
        return policy_head(
            hidden, head, ROWS, TARGETS, SEQUENCES, weights=WEIGHTS, advantages=ADVANTAGES,
            backend="triton",
        ).loss  # fmt: skip

    wanted = torch.autograd.grad(run(), (hidden, head))
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(), (hidden, head)), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": WEIGHTS * float("nan")}, r"weights\[0\] is nan"),
        ({"advantages": ADVANTAGES[:2]}, r"sequences must lie in \[0, 2\)"),
        ({"advantages": ADVANTAGES.to("meta")}, "advantages must be on .*, got meta"),
        ({"old_logprob": WEIGHTS.to("meta")}, "old_logprob must be on .*, got meta"),
        ({"chunk_rows": -1}, "chunk_rows must be an integer"),
    ],
)
def test_wrong_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        _run(*_operands(), backend="triton", **change)
