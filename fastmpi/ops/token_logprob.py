"""The op ``token_logprob``: argument checks, then the reference on every device."""

from __future__ import annotations

from torch import Tensor

from fastmpi.ops.tensor_checks import check_index, check_shape
from fastmpi.reference import token_logprob as reference


def check_head_arguments(
    hidden: Tensor,
    head: Tensor,
    rows: Tensor,
    targets: Tensor,
    temperature: float,
    softcap: float | None,
) -> None:
    """Raise ``ValueError`` unless the arguments describe M scores of a (V, H) head."""
    check_shape("hidden", hidden, (None, None))
    check_shape("head", head, (None, hidden.shape[1]))
    check_shape("rows", rows, (None,))
    check_shape("targets", targets, (len(rows),))
    check_index("rows", rows, hidden.shape[0])
    check_index("targets", targets, head.shape[0])
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be above 0 or None, got {softcap}")


def token_logprob(
    hidden: Tensor,  # (T, H)
    head: Tensor,  # (V, H)
    rows: Tensor,  # (M,) int64
    targets: Tensor,  # (M,) int64
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """``log_softmax(hidden[rows] @ head.T / temperature, -1)[arange(M), targets]``, and entropies.

    Returns (logprob, entropy), (M,) each, in nats; float64 for float64 ``hidden``, else float32.
    Both are differentiable in ``hidden`` and ``head``. Never holds (T, V) logits: distinct rows are
    computed once, in chunks. ``softcap`` is the model's own ``softcap * tanh(logits / softcap)``,
    before the temperature. Raises ``ValueError`` for shapes that disagree and for rows or targets
    out of range.
    """
    check_head_arguments(hidden, head, rows, targets, temperature, softcap)
    return reference.token_logprob(
        hidden, head, rows, targets, temperature=temperature, softcap=softcap
    )
