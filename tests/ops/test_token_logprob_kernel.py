"""The kernels of `token_logprob` and `token_loss` against fp64, no worse than plain torch."""

from __future__ import annotations

import pytest
import torch

from fastmpi.ops import token_logprob as ops
from fastmpi.ops.token_logprob import token_logprob, token_loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16]
if DEVICE == "cuda":  # the interpreter rounds to bfloat16 toward zero
    DTYPES.append(torch.bfloat16)
SHAPES = [{}, {"temperature": 0.7}, {"softcap": 3.0, "temperature": 1.3}]

ROWS = torch.tensor([3, 0, 3, 6, 3, 5, 0], device=DEVICE)  # rows 1, 2, 4 have no scores
TARGETS = torch.tensor([1, 10, 4, 0, 1, 7, 2], device=DEVICE)  # row 3 has target 1 twice


@pytest.fixture(autouse=True)
def poisoned_memory():
    """What is not written stays NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def _operands(vocabulary: int = 700, dtype: torch.dtype = torch.float32, rows: int = 8):
    generator = torch.Generator().manual_seed(vocabulary)
    hidden = torch.randn(rows, 24, generator=generator).to(DEVICE, dtype)
    head = (torch.randn(vocabulary, 24, generator=generator) / 2).to(DEVICE, dtype)
    return hidden.requires_grad_(), head.requires_grad_()


def _weights(count: int, dtype: torch.dtype = torch.float32):
    return torch.linspace(-1, 2, count, dtype=dtype, device=DEVICE)


def _plain(hidden, head, rows, targets, temperature=1.0, softcap=None):
    """The obvious way, logits in the operands' precision."""
    logits = hidden @ head.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logp = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(
        -1
    )[rows]
    return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def _exact(hidden, head, *rest, **options):
    leaves = [x.detach().double().requires_grad_() for x in (hidden, head)]
    return leaves, _plain(*leaves, *rest, **options)


def _error(got, exact):
    return max((g.double() - e).abs().max().item() for g, e in zip(got, exact, strict=True))


def _assert_no_worse(got, plain, exact, dtype):
    slack = 1.0 if dtype == torch.float32 else 1.1
    assert _error(got, exact) <= slack * _error(plain, exact) + 1e-5


@pytest.mark.parametrize("options", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk_rows", [3, None])
def test_scores_and_gradients(dtype, options, chunk_rows):
    hidden, head = _operands(dtype=dtype)
    leaves, exact = _exact(hidden, head, ROWS, TARGETS, **options)
    plain = _plain(hidden, head, ROWS, TARGETS, **options)
    ours = token_logprob(
        hidden, head, ROWS, TARGETS, chunk_rows=chunk_rows, backend="triton", **options
    )
    _assert_no_worse(ours, plain, exact, dtype)
    weights, grads = _weights(7), []
    for (logprob, entropy), inputs in (
        (ours, (hidden, head)),
        (plain, (hidden, head)),
        (exact, leaves),
    ):
        mix = (weights * logprob + weights.flip(0) * entropy).sum()
        grads.append(torch.autograd.grad(mix, inputs))
    _assert_no_worse(*grads, dtype)


@pytest.mark.parametrize("options", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_and_gradients(dtype, options):
    hidden, head = _operands(dtype=dtype)
    weights = _weights(7)
    leaves, exact = _exact(hidden, head, ROWS, TARGETS, **options)
    plain = _plain(hidden, head, ROWS, TARGETS, **options)
    ours = token_loss(hidden, head, ROWS, TARGETS, weights, backend="triton", **options)
    _assert_no_worse(ours[1:], plain, exact, dtype)
    losses = [ours.loss, *(-(weights * scores[0]).sum() for scores in (plain, exact))]
    assert losses[0].item() == pytest.approx(losses[2].item(), abs=1e-5)
    inputs = [(hidden, head), (hidden, head), leaves]
    grads = [torch.autograd.grad(loss, x) for loss, x in zip(losses, inputs, strict=True)]
    _assert_no_worse(*grads, dtype)


@pytest.mark.parametrize("vocabulary", [1, 5, 16, 255, 257, 513])
def test_vocabularies_of_any_size(vocabulary):
    hidden, head = _operands(vocabulary)
    targets = TARGETS % vocabulary
    targets[-1] = vocabulary - 1
    leaves, (exact, _) = _exact(hidden, head, ROWS, targets)
    ours = token_loss(hidden, head, ROWS, targets, _weights(7), backend="triton")
    wanted = torch.autograd.grad(-(_weights(7) * exact).sum(), leaves)
    assert _error([ours.logprob], [exact]) < 1e-5
    assert _error(torch.autograd.grad(ours.loss, (hidden, head)), wanted) < 1e-5


def test_a_row_with_hundreds_of_targets():
    hidden, head = _operands(600)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 2, (300,), generator=generator).to(DEVICE)
    targets = torch.randint(0, 600, (300,), generator=generator).to(DEVICE)  # some of them twice
    leaves, (exact, _) = _exact(hidden, head, rows, targets)
    ours = token_loss(hidden, head, rows, targets, _weights(300), backend="triton")
    wanted = torch.autograd.grad(-(_weights(300) * exact).sum(), leaves)
    assert _error([ours.logprob], [exact]) < 1e-5
    grads = torch.autograd.grad(ours.loss, (hidden, head))
    assert _error(grads, wanted) < 1e-6 * max(grad.abs().max().item() for grad in wanted) + 1e-5


@pytest.mark.parametrize("used", ["logprob", "entropy"])
def test_gradient_of_one_output_alone(used):
    hidden, head = _operands()
    index = ("logprob", "entropy").index(used)
    leaves, exact = _exact(hidden, head, ROWS, TARGETS)
    ours = token_logprob(hidden, head, ROWS, TARGETS, backend="triton")
    wanted = torch.autograd.grad(exact[index].sum(), leaves)  # the gradient of a sum is no column
    assert _error(torch.autograd.grad(ours[index].sum(), (hidden, head)), wanted) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_no_scores(dtype):
    hidden, head = _operands(dtype=dtype)
    rows, targets = ROWS[:0], TARGETS[:0]
    loss = token_loss(hidden, head, rows, targets, _weights(0), backend="triton").loss
    scores = token_logprob(hidden, head, rows, targets, backend="triton")
    for value in (loss, sum(score.sum() for score in scores)):
        assert value.item() == 0
        assert not any(grad.any() for grad in torch.autograd.grad(value, (hidden, head)))


def test_strided_operands_and_columns():
    hidden, head = _operands()
    columns = torch.stack([ROWS, TARGETS], 1)
    weights = torch.stack([_weights(7), _weights(7)], 1)
    wanted = token_loss(hidden, head, ROWS, TARGETS, _weights(7), backend="triton")
    wide = torch.cat([hidden, hidden], 1).detach()
    ours = token_loss(
        wide[:, :24], head.detach().T.contiguous().T, columns[:, 0], columns[:, 1], weights[:, 0],
        backend="triton",
    )  # fmt: skip
    torch.testing.assert_close(ours.logprob, wanted.logprob, rtol=0, atol=1e-5)
    assert ours.loss.item() == pytest.approx(wanted.loss.item(), abs=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_runs_are_equal(dtype):
    hidden, head = _operands(dtype=dtype)

    def run():
        output = token_loss(hidden, head, ROWS, TARGETS, _weights(7), backend="triton")
        return *output[1:], *torch.autograd.grad(output.loss, (hidden, head))

    assert all(torch.equal(first, second) for first, second in zip(run(), run(), strict=True))


@pytest.mark.parametrize("size", [1e-9, 1e5])
def test_float16_gradients_neither_underflow_nor_overflow(size):
    hidden, head = _operands(dtype=torch.float16)
    leaves, (exact, _) = _exact(hidden, head, ROWS, TARGETS)
    loss = token_loss(hidden, head, ROWS, TARGETS, size * _weights(7), backend="triton").loss
    wanted = torch.autograd.grad(-(_weights(7) * exact).sum(), leaves)
    got = torch.autograd.grad(loss, (hidden, head), torch.tensor(1 / size, device=DEVICE))
    assert _error(got, wanted) < 3e-3


def test_master_weights_get_unrounded_gradients():
    """float32 parameters, bfloat16 products: operands are rounded, what comes back is not."""
    hidden, head = _operands()
    rounded = [x.detach().bfloat16() for x in (hidden, head)]
    leaves, (exact, _) = _exact(*rounded, ROWS, TARGETS)
    wanted = torch.autograd.grad(-(_weights(7) * exact).sum(), leaves)
    for backend in ("triton", "reference"):
        output = token_loss(
            hidden, head, ROWS, TARGETS, _weights(7), dtype=torch.bfloat16, backend=backend
        )
        assert _error([output.logprob], [exact]) < 1e-5
        grads = torch.autograd.grad(output.loss, (hidden, head))
        assert _error(grads, wanted) < 3e-2
        assert not any(torch.equal(grad, grad.bfloat16().float()) for grad in grads)


def test_autocast_changes_nothing():
    hidden, head = _operands()

    def run():
        loss = token_loss(hidden, head, ROWS, TARGETS, _weights(7), backend="triton").loss
        logprob, _ = token_logprob(hidden, head, ROWS, TARGETS, backend="triton")
        return loss, logprob, *torch.autograd.grad(loss + logprob.sum(), (hidden, head))

    wanted = run()
    with torch.autocast(DEVICE, torch.bfloat16):
        got = run()
    assert all(torch.equal(*pair) for pair in zip(got, wanted, strict=True))


def test_tied_embeddings_get_both_gradients():
    _, table = _operands(64)
    leaf = table.detach().double().requires_grad_()
    ids = torch.arange(8, device=DEVICE)
    loss = token_loss(table[ids] * 2, table, ROWS, TARGETS, _weights(7), backend="triton").loss
    exact = -(_weights(7) * _plain(leaf[ids] * 2, leaf, ROWS, TARGETS)[0]).sum()
    assert _error(torch.autograd.grad(loss, table), torch.autograd.grad(exact, leaf)) < 1e-5


def test_custom_ops():
    operands = (*_operands(40), ROWS, TARGETS)
    torch.library.opcheck(ops._token_logprob, (*operands, 0.9, 3.0, 2, None))
    torch.library.opcheck(ops._token_loss, (*operands, _weights(7), 1.0, None, 2, None, True, True))
    columns = [_weights(7)] * 4
    torch.library.opcheck(
        ops._token_logprob_backward,
        (*(x.detach() for x in operands), *columns, 1.0, None, None, None, True, False),
    )


def test_compiles_into_one_graph():
    hidden, head = _operands(40)

    def run():
        loss = token_loss(hidden, head, ROWS, TARGETS, _weights(7), backend="triton").loss
        logprob, entropy = token_logprob(hidden, head, ROWS, TARGETS, backend="triton")
        return loss + (logprob * entropy).sum()

    wanted = torch.autograd.grad(run(), (hidden, head))
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(), (hidden, head)), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": ROWS + 5}, r"rows must lie in \[0, 8\), got values from 5 to 11"),
        ({"targets": TARGETS - 1}, r"targets must lie in \[0, 700\)"),
        ({"rows": ROWS.float()}, "rows must be int32 or int64"),
        ({"weights": _weights(6)}, r"weights must have shape \(7\)"),
        ({"weights": _weights(7) / 0}, r"weights\[0\] is -inf"),
        ({"chunk_rows": 0}, "chunk_rows must be an integer"),
        ({"chunk_rows": 2.5}, "chunk_rows must be an integer of at least 1 or None, got 2.5"),
        ({"dtype": torch.int32}, "dtype must be a float type"),
        ({"dtype": torch.float64}, "dtype must be a float type"),
        ({"backend": "cuda"}, "unknown backend 'cuda'"),
    ],
)
def test_wrong_arguments(change, message):
    hidden, head = _operands()
    arguments = {
        "hidden": hidden, "head": head, "rows": ROWS, "targets": TARGETS, "weights": _weights(7),
        "backend": "triton", **change,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        token_loss(**arguments)
