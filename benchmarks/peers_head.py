"""What peers make of the head: log-probs, and two losses that take the head themselves.

Legend as in `head_inputs`. Each function of the first part imports its peer and returns
`(hidden, head) -> logprob (T,)`; the benches put the same loss in plain torch on it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastmpi.benchmarks.harness import Run, Unavailable
from fastmpi.benchmarks.head_inputs import EPSILON, HeadInputs
from fastmpi.benchmarks.peers import load, load_cuda, need_cuda

LogProb = Callable[[Tensor, Tensor], Tensor]


def eager(inputs: HeadInputs) -> LogProb:
    """All logits in the model's precision, log-softmax in float32."""

    def logprob(hidden: Tensor, head: Tensor) -> Tensor:
        logits = (hidden @ head.T).float()
        return torch.log_softmax(logits, -1).gather(1, inputs.targets[:, None])[:, 0]

    return logprob


def trl(inputs: HeadInputs) -> LogProb:
    """TRL's chunked op with the entropy, as its GRPO trainer asks for it."""
    function = load("trl.kernels").ChunkedLogProbFunction
    width = load("trl.trainer.utils")._CHUNKED_LOGPROB_CHUNK_SIZE
    wanted = ("entropy",)

    def logprob(hidden: Tensor, head: Tensor) -> Tensor:
        out = function.apply(hidden, head, None, inputs.targets, 1.0, width, None, 1.0, wanted)
        return out[0]

    return logprob


def cce(inputs: HeadInputs, filter_eps: str | None = "auto") -> LogProb:
    """Cut cross-entropy; `filter_eps` None switches off what it leaves out of its gradients."""
    module = load_cuda("cut_cross_entropy", inputs.hidden.device)
    options = {"reduction": "none", "filter_eps": filter_eps}

    def logprob(hidden: Tensor, head: Tensor) -> Tensor:
        return -module.linear_cross_entropy(hidden, head, inputs.targets, **options)

    return logprob


def cce_unfiltered(inputs: HeadInputs) -> LogProb:
    return cce(inputs, filter_eps=None)


def torch_linear(inputs: HeadInputs) -> LogProb:
    """torch's own, which materialises the logits where it must return one number a token."""
    if not hasattr(torch.nn.functional, "linear_cross_entropy"):
        raise Unavailable(f"not in torch {torch.__version__}")
    function = torch.nn.functional.linear_cross_entropy

    def logprob(hidden: Tensor, head: Tensor) -> Tensor:
        return -function(hidden, head, inputs.targets, reduction="none")

    return logprob


def liger(inputs: HeadInputs) -> LogProb:
    """The log-probs inside Liger's chunked GRPO loss."""
    base = load("liger_kernel.chunked_loss.fused_linear_ppo").LigerFusedLinearPPOBase

    def logprob(hidden: Tensor, head: Tensor) -> Tensor:
        shaped, targets = inputs.by_response(hidden), inputs.by_response(inputs.targets)
        return base.chunk_forward(shaped, head, targets, temperature=1.0).flatten()

    return logprob


def liger_triton(inputs: HeadInputs) -> LogProb:
    """All logits, then Liger's Triton kernel for the chosen ones; without gradients."""
    module = load_cuda("liger_kernel.transformers.grpo_loss", inputs.hidden.device)
    ids = inputs.by_response(inputs.targets)

    def logprob(hidden: Tensor, head: Tensor) -> Tensor:
        logits = _with_one_more(inputs.by_response(hidden)) @ head.T
        return module.fused_selective_log_softmax(logits, ids, 1.0).flatten()

    return logprob


def liger_policy(inputs: HeadInputs) -> Run:
    """Liger's chunked GRPO loss. It returns no log-probs: they are taken once, untimed."""
    module = load("liger_kernel.chunked_loss")
    cuda = inputs.hidden.device.type == "cuda"
    loss_of = module.LigerFusedLinearGRPOLoss(
        beta=0.0, compiled=cuda, use_ref_model=False, epsilon_low=EPSILON, epsilon_high=EPSILON,
        loss_type="bnpo",
    )  # fmt: skip
    ids, old = inputs.by_response(inputs.targets), inputs.by_response(inputs.old_logprob)
    mask = torch.ones_like(old)
    with torch.no_grad():
        logprob = liger(inputs)(inputs.hidden, inputs.head)

    def run() -> dict[str, Tensor]:
        hidden = inputs.by_response(inputs.hidden)
        loss, _ = loss_of(
            hidden, inputs.head, ids, mask, inputs.advantages, old_per_token_logps=old
        )
        return {"logprob": logprob, **inputs.gradients(loss)}

    return run


def liger_triton_policy(inputs: HeadInputs) -> Run:
    """All logits, then Liger's Triton GRPO loss. Its log-probs are taken once, untimed."""
    loss_of = load_cuda(
        "liger_kernel.transformers.grpo_loss", inputs.hidden.device
    ).triton_grpo_loss
    ids, old = inputs.by_response(inputs.targets), inputs.by_response(inputs.old_logprob)
    options = {
        "temperature": 1.0, "beta": 0.0, "eps_low": EPSILON, "eps_high": EPSILON,
        "loss_type": "bnpo", "reduce": True,
    }  # fmt: skip
    with torch.no_grad():
        logprob = liger_triton(inputs)(inputs.hidden, inputs.head)

    def run() -> dict[str, Tensor]:
        logits = _with_one_more(inputs.by_response(inputs.hidden)) @ inputs.head.T
        loss, _ = loss_of(logits, old, None, ids, inputs.advantages, **options)
        return {"logprob": logprob, **inputs.gradients(loss)}

    return run


def liger_supervised(inputs: HeadInputs) -> Run:
    """Liger's fused linear cross-entropy."""
    module = load("liger_kernel.transformers")
    need_cuda(inputs.hidden.device)
    loss_of = module.LigerFusedLinearCrossEntropyLoss()
    return lambda: inputs.gradients(loss_of(inputs.head, inputs.hidden, inputs.targets))


def torch_supervised(inputs: HeadInputs) -> Run:
    """torch's chunked linear cross-entropy."""
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise Unavailable(f"not in torch {torch.__version__}")
    function, options = (
        torch.nn.functional.linear_cross_entropy,
        torch.nn.LinearCrossEntropyOptions(),
    )
    return lambda: inputs.gradients(
        function(inputs.hidden, inputs.head, inputs.targets, options=options)
    )


def _with_one_more(hidden: Tensor) -> Tensor:
    """(S, L, H) -> (S, L + 1, H): Liger's kernels skip the logits after the last token."""
    return torch.nn.functional.pad(hidden, (0, 0, 0, 1))
