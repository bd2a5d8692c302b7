"""`policy_loss`: its kernel against the reference in fp64, in every combination of its options."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastmpi.ops.policy_loss import PolicyLoss, _policy_loss, policy_loss

pytestmark = pytest.mark.usefixtures("poisoned")

NUM_SEQUENCES = 21
# Ratios on both sides of every bound, in order: clipped low, free, clipped high, beyond delta.
LOG_RATIOS = torch.tensor([0.5, 0.9, 1.0, 1.1, 1.25, 1.4, 4.0]).log()


def _scores(num_tokens: int, device: torch.device, seed: int = 0) -> dict[str, Tensor]:
    """Sequences in any order, some without tokens, some tokens without weight."""
    generator = torch.Generator().manual_seed(seed)

    def index(size: int, high: int) -> Tensor:
        return torch.randint(high, (size,), generator=generator)

    logprob = -3 * torch.rand(num_tokens, generator=generator)
    columns = {
        "logprob": logprob,
        "sequences": index(num_tokens, NUM_SEQUENCES - 2),
        "weights": torch.rand(num_tokens, generator=generator).double() / max(num_tokens, 1),
        "old_logprob": logprob - LOG_RATIOS[index(num_tokens, len(LOG_RATIOS))],
        "ref_logprob": logprob + torch.randn(num_tokens, generator=generator) / 4,
        "rewards": torch.rand(NUM_SEQUENCES, generator=generator),
        "groups": index(NUM_SEQUENCES, 4),
        "arms": index(NUM_SEQUENCES, 2),
    }
    columns["weights"][index(num_tokens // 8, max(num_tokens, 1))] = 0.0
    return {name: column.to(device) for name, column in columns.items()}


def _run(columns: dict[str, Tensor], *, dtype=torch.float32, **options) -> tuple[Tensor, ...]:
    """The loss's fields and its gradient, times 3."""
    columns = {
        name: x.to(dtype) if x.is_floating_point() else x
        for name, x in columns.items()
        if x is not None
    }
    columns["logprob"].requires_grad_()
    output = policy_loss(**columns, **options)
    (gradient,) = torch.autograd.grad(3 * output.loss, columns["logprob"])
    return (*output, gradient)


def _check(columns: dict[str, Tensor], **options) -> None:
    found = _run(columns, backend="triton", **options)
    plain = _run(columns, backend="reference", **options)
    exact = _run(columns, backend="reference", dtype=torch.float64, **options)
    fields = (*PolicyLoss._fields, "gradient")
    for name, ours, torchs, wanted in zip(fields, found, plain, exact, strict=True):
        assert ours.shape == wanted.shape
        if ours.dtype == torch.bool:
            assert torch.equal(ours, wanted), name
            continue
        assert ours.dtype == torch.float32
        bound = _largest(torchs - wanted) + 1e-5 * _largest(wanted)
        assert _largest(ours - wanted) <= bound, name


def _largest(values: Tensor) -> float:
    return values.abs().max().item() if values.numel() else 0.0


@pytest.mark.parametrize("num_tokens", [1, 300, 1024, 2100])
def test_any_number_of_tokens(num_tokens, device):
    _check(_scores(num_tokens, device, seed=num_tokens), beta=0.1, delta=2.0)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("reference", [True, False])
def test_terms(level, old, reference, device):
    columns = _scores(200, device)
    columns["old_logprob"] = columns["old_logprob"] if old else None
    columns["ref_logprob"] = columns["ref_logprob"] if reference else None
    options = {"epsilon": 0.2, "epsilon_high": 0.3, "beta": 0.05 if reference else 0.0}
    _check(columns, **options, importance_sampling_level=level)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("pool", ["group", "arm"])
def test_advantages_of_the_mixed_group(scale, pool, device):
    _check(_scores(120, device), scale=scale, pool=pool)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_given_advantages(level, device, launches):
    columns = _scores(120, device)
    for name in ("rewards", "groups", "arms"):
        del columns[name]
    columns["advantages"] = torch.randn(NUM_SEQUENCES, device=device)
    _check(columns, importance_sampling_level=level)
    assert launches == ["_sequence_sums"] * (level == "sequence") + ["_policy_loss"]


def test_one_launch_from_rewards_to_gradient(device, launches):
    _run(_scores(1500, device), backend="triton", beta=0.1)
    assert launches == ["_policy_loss"]


def test_tickets_return_to_zero(device, monkeypatch):
    from fastmpi.kernels import policy_loss as kernels

    tickets = torch.zeros(1, dtype=torch.int32, device=device)
    monkeypatch.setattr(kernels, "ticket_counter", lambda _: tickets)
    columns = _scores(2100, device)
    losses = [policy_loss(**columns, backend="triton").loss.item() for _ in range(2)]
    assert losses[0] == losses[1] and tickets.item() == 0


COMPILED = """
import runpy, sys
import torch
from fastmpi.kernels import policy_loss as kernels

gate = runpy.run_path(sys.argv[1])
tickets = iter(torch.zeros(4, 1, dtype=torch.int32).unbind())
kernels.ticket_counter = lambda _: next(tickets)
column, ids = torch.zeros(16), torch.zeros(16, dtype=torch.int64)
with gate["compile_only"](90) as compiled:
    for _ in range(4):
        kernels.policy_loss(
            column, ids, column, None, column, ids, None, None, None, scale="group", eps=1e-4,
            epsilon=0.2, epsilon_high=0.2, delta=None, beta=0.0, by_sequence=False,
        )
print(len(compiled), len({id(kernel) for _, kernel in compiled}))
"""


def test_every_counter_of_tickets_has_the_same_kernel(tmp_path):
    """Graphs and streams have counters of their own, and capture must not compile."""
    script = Path(__file__).parents[2] / "scripts" / "compile_kernels.py"
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, str(script)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4", "1"]


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_no_tokens_and_no_sequences(device, scale):
    _check(_scores(0, device), scale=scale)
    none = torch.zeros(0, device=device)
    ids = none.long()
    options = {"weights": none, "rewards": none, "groups": ids, "backend": "triton"}
    assert policy_loss(none, ids, **options, scale=scale).loss.item() == 0


def test_small_divergences_keep_their_digits(device):
    columns = _scores(200, device)
    columns["ref_logprob"] = columns["logprob"] + 1e-3 * torch.randn(200, device=device)
    exact = _run(columns, dtype=torch.float64, backend="reference")[1]
    found = _run(columns, backend="triton")[1]
    assert ((found - exact).abs() <= 1e-3 * exact + 1e-12).all()  # plain torch loses all of them


def test_log_probs_of_16_bits(device):
    columns = _scores(100, device)
    columns = {n: x.half() if x.is_floating_point() else x for n, x in columns.items()}
    columns["logprob"].requires_grad_()
    output = policy_loss(**columns, backend="triton")
    (gradient,) = torch.autograd.grad(output.loss, columns["logprob"])
    assert output.loss.dtype == torch.float32 and gradient.dtype == torch.float16
    assert not output.kl.requires_grad and not output.ratio.requires_grad


def test_operator(device):
    columns = _scores(50, device)
    columns["logprob"].requires_grad_()
    order = ("logprob", "sequences", "weights", None, "rewards", "groups", "arms", None, None)
    arguments = [columns[name] if name else None for name in order]
    for by_sequence in (False, True):
        options = ("batch", 1e-4, 0.2, 0.3, None, 0.0, by_sequence, True)
        torch.library.opcheck(_policy_loss, (*arguments, *options))


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": None}, "give either advantages or rewards"),
        ({"groups": None}, "rewards need groups"),
        ({"groups": torch.zeros(2)}, r"groups must have shape \(21\)"),
        ({"weights": torch.zeros(3)}, r"weights must have shape \(9\)"),
        ({"sequences": torch.full((9,), 21)}, r"sequences must lie in \[0, 21\)"),
        ({"old_logprob": torch.full((9,), math.nan)}, r"old_logprob\[0\] is nan"),
        ({"rewards": torch.full((21,), math.inf)}, r"rewards\[0\] is inf"),
        ({"ref_logprob": None, "beta": 0.1}, "beta = 0.1 needs ref_logprob"),
        ({"beta": -0.1}, "beta must not be negative"),
        ({"delta": 1.1}, "delta must be above"),
        ({"delta": math.nan}, "delta must be above"),
        ({"epsilon_high": math.nan}, "epsilon_high must not be negative"),
        ({"importance_sampling_level": "word"}, "importance_sampling_level must be one of"),
        ({"weights": torch.zeros(9, device="meta")}, "weights must be on cpu, got meta"),
    ],
)
def test_wrong_arguments(change, message, backend):
    device = torch.device("cpu")
    if backend == "triton" and torch.cuda.is_available():
        pytest.skip("kernels run on the GPU")
    with pytest.raises(ValueError, match=message):
        policy_loss(**{**_scores(9, device), **change}, backend=backend)


@pytest.mark.gpu
def test_same_bits_in_a_graph_on_any_stream_and_compiled():
    device = torch.device("cuda")
    columns = _scores(100_000, device, seed=1)

    def run() -> tuple[Tensor, ...]:
        return policy_loss(**columns, beta=0.1, validate=False)

    want = run()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        other = run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for _ in range(3):  # the tickets return to zero
        captured.loss.fill_(math.nan)
        graph.replay()
        torch.cuda.synchronize()
        torch.testing.assert_close(captured, want, rtol=0, atol=0)
    torch.testing.assert_close(other, want, rtol=0, atol=0)
    torch.testing.assert_close(torch.compile(run, fullgraph=True)(), want, rtol=0, atol=0)


@pytest.mark.gpu
def test_large_and_drawn_anew():
    seed = torch.randint(2**31, ()).item()
    print("seed", seed)
    _check(_scores(300_000, torch.device("cuda"), seed=seed), beta=0.1, delta=2.0)
