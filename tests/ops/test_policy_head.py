"""`policy_head`: hand-computed losses with ratios clipped on both sides, and its gradient."""

from __future__ import annotations

import math

import pytest
import torch

from fastmpi.ops.loss_weights import loss_weights
from fastmpi.ops.policy_head import policy_head
from fastmpi.ops.token_logprob import token_logprob

NUM_TOKENS = 6
ROWS = torch.tensor([0, 0, 1, 2, 3, 3])  # rows 0 and 3 predict two targets each
TARGETS = torch.tensor([1, 4, 0, 2, 3, 3])
SEQUENCES = torch.tensor([0, 1, 0, 1, 0, 1])
ADVANTAGES = torch.tensor([2.0, -1.0], dtype=torch.float64)
WEIGHTS = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], dtype=torch.float64)
# With epsilon .2 and epsilon_high .3: 1.5 is clipped for a positive, 0.5 for a negative advantage.
RATIOS = torch.tensor([1.5, 0.5, 0.5, 1.5, 1.1, 0.9], dtype=torch.float64)


def _weights() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    return hidden.requires_grad_(), torch.randn(
        5, 3, dtype=torch.float64, generator=generator
    ).requires_grad_()


def _moved_old(
    hidden: torch.Tensor, head: torch.Tensor, ratios: torch.Tensor = RATIOS
) -> torch.Tensor:
    """Old log-probs that give exactly these ratios."""
    return token_logprob(hidden, head, ROWS, TARGETS)[0].detach() - ratios.log()


def _run(hidden, head, **options):
    options = {"weights": WEIGHTS, "advantages": ADVANTAGES, **options}
    return policy_head(hidden, head, ROWS, TARGETS, SEQUENCES, **options)


def test_first_step_has_ratio_one_and_the_gradient_of_the_policy_gradient():
    hidden, head = _weights()
    output = _run(hidden, head)
    logprob, entropy = token_logprob(hidden, head, ROWS, TARGETS)
    assert output.ratio.tolist() == [1.0] * NUM_TOKENS
    assert output.loss.item() == pytest.approx(-(2.0 * 0.9 - 1.0 * 1.2))
    wanted = torch.autograd.grad(-(WEIGHTS * ADVANTAGES[SEQUENCES] * logprob).sum(), [hidden, head])
    torch.testing.assert_close(torch.autograd.grad(output.loss, [hidden, head]), wanted)
    torch.testing.assert_close(
        (output.logprob, output.entropy), (logprob.detach(), entropy.detach())
    )


def test_clipping_on_both_sides():
    hidden, head = _weights()
    output = _run(hidden, head, old_logprob=_moved_old(hidden, head), epsilon=0.2, epsilon_high=0.3)
    # min(r A, clip(r) A): positive advantages keep at most 1.3, negative ones at least 0.8
    objectives = [1.3 * 2, 0.8 * -1, 0.5 * 2, 1.5 * -1, 1.1 * 2, 0.9 * -1]
    assert output.loss.item() == pytest.approx(
        -sum(w * o for w, o in zip(WEIGHTS.tolist(), objectives, strict=True))
    )
    assert output.clipped_high.tolist() == [True, False, False, False, False, False]
    assert output.clipped_low.tolist() == [False, True, False, False, False, False]
    torch.testing.assert_close(output.ratio, RATIOS)


def test_clipped_tokens_have_no_gradient():
    hidden, head = _weights()
    old = _moved_old(hidden, head)
    clipped = torch.tensor([True, True, False, False, False, False])
    only_clipped = _run(hidden, head, old_logprob=old, epsilon_high=0.3, weights=WEIGHTS * clipped)
    assert not torch.autograd.grad(only_clipped.loss, hidden)[0].any()
    assert only_clipped.loss.item() != 0


def test_delta_bounds_what_the_clip_leaves_open():
    hidden, head = _weights()
    ratios = torch.tensor([9.0, 9.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    old = _moved_old(hidden, head, ratios)
    free = _run(hidden, head, old_logprob=old).loss.item()
    bounded = _run(hidden, head, old_logprob=old, delta=4.0).loss.item()
    assert free - bounded == pytest.approx(
        0.2 * (9 - 4)
    )  # only the negative advantage had ratio 9 unclipped


def test_kl_is_k3():
    hidden, head = _weights()
    logprob = token_logprob(hidden, head, ROWS, TARGETS)[0].detach()
    gap = torch.tensor([0.0, 0.5, -0.5, 1.0, 0.0, 0.0], dtype=torch.float64)
    output = _run(hidden, head, ref_logprob=logprob + gap, beta=0.25)
    wanted = [math.exp(d) - d - 1 for d in gap.tolist()]
    assert output.kl.tolist() == pytest.approx(wanted)
    extra = output.loss.item() - _run(hidden, head).loss.item()
    assert extra == pytest.approx(
        0.25 * sum(w * k for w, k in zip(WEIGHTS.tolist(), wanted, strict=True))
    )


def test_sequence_level_ratio_is_the_geometric_mean_over_tokens_with_weight():
    hidden, head = _weights()
    weights = WEIGHTS * torch.tensor([1, 1, 1, 1, 0, 1])  # token 4 is masked out of sequence 0
    output = _run(
        hidden,
        head,
        weights=weights,
        old_logprob=_moved_old(hidden, head),
        importance_sampling_level="sequence",
    )
    first, second = math.sqrt(1.5 * 0.5), (0.5 * 1.5 * 0.9) ** (1 / 3)
    assert output.ratio.tolist() == pytest.approx([first, second] * 3)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_gradcheck_with_clipping_and_kl(level):
    hidden, head = _weights()
    old, ref = _moved_old(hidden, head), _moved_old(hidden, head, RATIOS.flip(0))

    def loss(hidden, head):
        return _run(
            hidden, head, old_logprob=old, ref_logprob=ref, beta=0.3, epsilon_high=0.3, delta=1.45,
            importance_sampling_level=level, temperature=0.9,
        ).loss  # fmt: skip

    assert torch.autograd.gradcheck(loss, (hidden, head))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_sum_over_micro_batches_equals_one_call(level):
    hidden, head = _weights()
    old = _moved_old(hidden, head)
    options = {"importance_sampling_level": level, "epsilon_high": 0.3}
    whole = _run(hidden, head, old_logprob=old, **options).loss
    parts = []
    for sequence in (0, 1):
        part = SEQUENCES == sequence
        parts.append(
            policy_head(
                hidden, head, ROWS[part], TARGETS[part], SEQUENCES[:3] * 0, weights=WEIGHTS[part],
                advantages=ADVANTAGES[sequence : sequence + 1], old_logprob=old[part], **options,
            ).loss
        )  # fmt: skip
    assert (parts[0] + parts[1]).item() == pytest.approx(whole.item(), rel=1e-13)


def test_rewards_become_advantages_of_the_mixed_group():
    hidden, head = _weights()
    output = policy_head(
        hidden, head, ROWS, TARGETS, SEQUENCES, weights=WEIGHTS, rewards=torch.tensor([1.0, 0.0]),
        groups=torch.tensor([3, 3]), arms=torch.tensor([0, 1]), scale="none",
    )  # fmt: skip
    assert output.advantages.tolist() == [0.5, -0.5]


def test_no_scores_give_a_zero_loss_with_a_gradient():
    hidden, head = _weights()
    none = torch.zeros(0, dtype=torch.int64)
    output = policy_head(
        hidden, head, none, none, none, weights=torch.zeros(0), advantages=ADVANTAGES
    )
    output.loss.backward()
    assert output.loss.item() == 0 and not hidden.grad.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"advantages": None}, "give either advantages or rewards"),
        ({"advantages": None, "rewards": torch.zeros(2)}, "rewards need groups"),
        ({"rewards": torch.zeros(2)}, "give either advantages or rewards"),
        ({"advantages": torch.zeros(1)}, r"sequences must lie in \[0, 1\)"),
        ({"weights": torch.zeros(3)}, r"weights must have shape \(6\)"),
        ({"old_logprob": torch.full((6,), float("nan"))}, r"old_logprob\[0\] is nan"),
        ({"beta": 0.1}, "beta = 0.1 needs ref_logprob"),
        ({"delta": 1.1}, "delta must be above"),
        ({"epsilon": 1.5}, "epsilon must lie in"),
        ({"epsilon_high": -0.5}, "epsilon_high must not be negative"),
        ({"importance_sampling_level": "word"}, "importance_sampling_level must be one of"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        _run(*_weights(), **options)


def test_loss_weights():
    lengths = torch.tensor([4, 0, 1])
    options = {"max_completion_length": 8, "num_sequences": 3, "total_tokens": 5}
    assert loss_weights(lengths, "grpo", **options).tolist() == pytest.approx([1 / 12, 0, 1 / 3])
    assert loss_weights(lengths, "dapo", **options).tolist() == pytest.approx([0.2, 0, 0.2])
    assert loss_weights(lengths, "bnpo", **options).tolist() == pytest.approx([0.2, 0, 0.2])
    assert loss_weights(lengths, "dr_grpo", **options).tolist() == pytest.approx(
        [1 / 24, 0, 1 / 24]
    )


def test_loss_weights_are_those_of_the_whole_step():
    lengths = torch.tensor([4, 2, 1])
    options = {"max_completion_length": 8, "num_sequences": 3, "total_tokens": 7}
    for loss_type in ("grpo", "dapo", "dr_grpo"):
        parts = [loss_weights(part, loss_type, **options) for part in (lengths[:1], lengths[1:])]
        assert torch.equal(torch.cat(parts), loss_weights(lengths, loss_type, **options))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_type": "ppo"}, "loss_type must be one of"),
        ({"num_sequences": 1}, "num_sequences = 1 is less than the 2 lengths"),
        ({"total_tokens": 4}, "total_tokens = 4 is less than the 5 tokens"),
    ],
)
def test_wrong_loss_weights(change, message):
    options = {
        "loss_type": "dapo",
        "max_completion_length": 8,
        "num_sequences": 2,
        "total_tokens": 5,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        loss_weights(torch.tensor([4, 1]), **options)
