"""forest_attention beside its peers, on forests of the paper: a prompt, and branches below it.

All arms but `causal` compute the same from the same numbers. `packed` and `prefix_grouper` repeat
what they must: the first whole samples, prepared before the clock starts, since every other layer
of a model that packs repeats them too; the second keys and values, inside its time, as it does.
`causal` is torch's fastest causal attention on one row with as many visible pairs: it shows the
rate that the device gives to equal work, and has no error, having another answer. `fastmpi` is our
default backend, other arms our backends by name: the default twice shows what a difference means.

counts, beside FLOPs and bytes: what candidates of `packed` and `causal` took, of which the fastest
runs; the first call on a forest of a new length, with all that is compiled for it.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from fastmpi.benchmarks.forest_problem import Heads, Judged, Problem, Tree, Turn, worst_error
from fastmpi.benchmarks.harness import Case, Outputs, Run, Unavailable
from fastmpi.benchmarks.peers import compiled, load, load_cuda, need_cuda
from fastmpi.benchmarks.timing import clock_of, spread
from fastmpi.ops import attention_flex
from fastmpi.ops.forest_attention import default_backend, forest_attention, plan_forest

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Counts = dict[str, float]
Arm = Callable[[Problem, Counts], Run]

MODELS = (Heads("7B", 28, 4, 128), Heads("3B", 16, 2, 128))
TREES = {
    "1k + 16 x 256": Tree(1024, 16, 256),
    "1k + 16 x 512": Tree(1024, 16, 512),
    "4k + 16 x 1280": Tree(4096, 16, 1280),
    "16k + 16 x 1280": Tree(16384, 16, 1280),
}
TINY = Heads("tiny", 4, 2, 32)
TINY_TREE = Tree(256, 8, 64)


def cases(device: torch.device, small: bool) -> list[Case]:
    """Forward alone and with the backward, on every forest with the heads of every model."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    models, trees = ((TINY,), {"256 + 8 x 64": TINY_TREE}) if small else (MODELS, TREES)
    return [
        _case(f"{heads.model} {direction} {name}", problem, new_length=name == next(iter(trees)))
        for heads in models
        for name, tree in trees.items()
        for direction, backward in (("forward", False), ("forward+backward", True))
        for problem in [Problem(tree, heads, backward, device, dtype)]
    ]


def _case(name: str, problem: Problem, *, new_length: bool) -> Case:
    counts = _counts(problem)
    arms = dict(ARMS if problem.device.type == "cuda" else CPU_ARMS)
    if new_length and problem.backward:
        arms |= {arm: _after_new_length(arm, arms[arm]) for arm in ("fastmpi", "flex")}
    prepared = {arm: partial(prepare, problem, counts) for arm, prepare in arms.items()}
    return Case(name, prepared, problem.exact, worst_error, counts)


def _counts(problem: Problem) -> Counts:
    tree, heads = problem.tree, problem.heads
    row = 2 * (heads.query + heads.key) * heads.dim * problem.dtype.itemsize  # q, out; k, v
    return {
        "flops": problem.flops(tree.visible_pairs),
        "bytes": float(tree.rows * row * (2 if problem.backward else 1)),  # gradients of all four
        "rows": tree.rows,
        "packed_flops": problem.flops(tree.repeated_pairs),
        "packed_rows": tree.branches * tree.sample,
        "causal_flops": problem.flops(tree.causal_rows * (tree.causal_rows + 1) // 2),
        "causal_rows": tree.causal_rows,
    }


def _timed(
    problem: Problem,
    attend: Attend,
    inputs: tuple[Tensor, Tensor, Tensor],
    grad: Tensor,
    turn: Turn | None = lambda name, x: x,
) -> Run:
    """One run: `attend`, and its backward if the problem has one, in the layout of `inputs`.

    turn: from that layout to the forest's; None for results that are no answer to the problem.
    """
    leaves = [x.detach().requires_grad_(problem.backward) for x in inputs]

    def run() -> Outputs:
        out = attend(*leaves)
        gradients = torch.autograd.grad(out, leaves, grad) if problem.backward else ()
        return {} if turn is None else Judged(problem, (out, *gradients), turn)

    return run


def _fastmpi(problem: Problem, counts: Counts, backend: str | None = None) -> Run:
    q, k, v, grad = problem.tensors
    end = problem.tree.subtree_end(problem.device)
    plan = plan_forest(end, backend or default_backend(q))
    attend = partial(forest_attention, subtree_end=end, scale=problem.scale, plan=plan)
    return _timed(problem, attend, (q, k, v), grad)


def _backend(problem: Problem, counts: Counts, backend: str) -> Run:
    """Another backend of ours than the default; its own words where it refuses."""
    try:
        run = _fastmpi(problem, counts, backend)
        run()
    except ValueError as error:
        raise Unavailable(str(error)) from error
    return run


def _flex(problem: Problem, counts: Counts, **kernel_options: Any) -> Run:
    """FlexAttention compiled for these shapes; on the CPU it is not fused and has no backward."""
    from torch.nn.attention.flex_attention import flex_attention

    if problem.backward:
        need_cuda(problem.device)
    if problem.device.type == "cuda":
        flex = partial(compiled(flex_attention), kernel_options=kernel_options or None)
    else:
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        flex = flex_attention
    q, k, v, grad = problem.tensors
    mask = attention_flex.prepare(problem.tree.subtree_end(problem.device))
    attend = partial(attention_flex.attend, mask=mask, scale=problem.scale, flex_attention=flex)
    return _timed(problem, attend, (q, k, v), grad)


def _fa4(problem: Problem, counts: Counts) -> Run:
    """FlashAttention-4 under the forest's mask, which torch's FlexAttention writes for it."""
    load_cuda("flash_attn.cute", problem.device)
    return _flex(problem, counts, BACKEND="FLASH")


def _packed(problem: Problem, counts: Counts) -> Run:
    """Whole samples, prompt repeated. The prompt's gradient is shared out among its copies."""
    tree = problem.tree
    paths = tree.paths(problem.device)
    *inputs, grad = (x[paths] for x in problem.tensors)  # (G, L, H, D)
    grad[:, : tree.prompt] /= tree.branches
    rows = paths.flatten()

    def turn(name: str, x: Tensor) -> Tensor:
        x = x.transpose(1, 2).flatten(0, 1).float()
        forest = x.new_zeros(tree.rows, *x.shape[1:])
        return forest.index_copy_(0, rows, x) if name == "out" else forest.index_add_(0, rows, x)

    return _fastest("packed", problem, counts, (*inputs, grad), turn)


def _causal(problem: Problem, counts: Counts) -> Run:
    """One causal row of equal work."""
    query, key = problem.heads.query, problem.heads.key
    tensors = (problem.draw(h, problem.tree.causal_rows)[None] for h in (query, key, key, query))
    return _fastest("causal", problem, counts, tuple(tensors), None)


def _fastest(
    arm: str,
    problem: Problem,
    counts: Counts,
    tensors: tuple[Tensor, ...],  # q, k, v and the gradient, each (B, L, H, D)
    turn: Turn | None,
) -> Run:
    """Causal attention by the fastest that torch has for these shapes; `counts` tells all times."""
    q, k, v, grad = (x.transpose(1, 2) for x in tensors)
    runs, times = {}, {}
    for name, backend in _causal_backends(problem.device).items():
        attend = partial(_causal_attention, scale=problem.scale, backend=backend)
        runs[name] = _timed(problem, attend, (q, k, v), grad, turn)
        try:
            times[name] = _median_ms(runs[name], problem.device)
        except RuntimeError as error:  # it has no kernel for them
            reason = error
    if not times:
        raise Unavailable(f"no kernel of torch takes these shapes: {reason}")
    counts.update({f"{arm}_{name}_ms": ms for name, ms in times.items()})
    return runs[min(times, key=times.__getitem__)]


def _causal_backends(device: torch.device) -> Mapping[str, SDPBackend | None]:
    return CUDA_BACKENDS if device.type == "cuda" else {"sdpa": None}


def _causal_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, backend: SDPBackend | None
) -> Tensor:
    with sdpa_kernel(backend) if backend else contextlib.nullcontext():
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)


def _median_ms(run: Run, device: torch.device, runs: int = 5) -> float:
    clock = clock_of(device)
    return spread([clock.time(run)["ms"] for _ in range(runs + 3)][3:])["median"]


def _prefix_grouper(problem: Problem, counts: Counts) -> Run:
    """The package's own two calls, with torch's flash attention: prompt, then branches, whose keys
    and values it repeats the prompt's for."""
    package = load("prefix_grouper")
    tree = problem.tree
    q, k, v, grad = problem.tensors
    lengths = [tree.prompt, *[tree.length] * tree.branches]
    grouper = package.PrefixGrouper(group_info=[lengths], device=problem.device)
    attention = partial(_lower_right_attention, scale=problem.scale)
    inputs = tuple(x.transpose(0, 1)[None] for x in (q, k, v))  # (1, H, T, D)

    def turn(name: str, x: Tensor) -> Tensor:
        return x[0] if name == "out" else x[0].transpose(0, 1)

    return _timed(problem, partial(grouper.forward, attention), inputs, grad[None], turn)


def _lower_right_attention(
    q: Tensor, k: Tensor, v: Tensor, padding: Tensor, scale: float
) -> Tensor:
    """Causal, the last query reading all keys. (B, H, L, D) -> (B, L, H, D). No row is padded."""
    from torch.nn.attention.bias import causal_lower_right

    queries, keys = q.shape[2], k.shape[2]
    mask: Any = causal_lower_right(queries, keys)
    if q.device.type == "cpu":
        mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


def _after_new_length(name: str, prepare: Arm) -> Arm:
    """`prepare`, noting what the first call costs where only another length was seen before."""

    def prepared(problem: Problem, counts: Counts) -> Run:
        tree = problem.tree
        shorter = Tree(tree.prompt, tree.branches, tree.length - 8)
        prepare(Problem(shorter, problem.heads, True, problem.device, problem.dtype), {})()
        _ = problem.tensors
        began = _now(problem.device)
        run = prepare(problem, counts)
        run()
        counts[f"{name}_new_length_ms"] = 1e3 * (_now(problem.device) - began)
        return run

    return prepared


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


CUDA_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
PEERS: Mapping[str, Arm] = {
    "flex": _flex,
    "packed": _packed,
    "prefix_grouper": _prefix_grouper,
    "cascade": partial(_backend, backend="flash"),
    "fa4": _fa4,
    "causal": _causal,
}
ARMS: Mapping[str, Arm] = {
    "fastmpi": _fastmpi,
    "triton": partial(_backend, backend="triton"),
    "sdpa": partial(_backend, backend="sdpa"),
    **PEERS,
}
CPU_ARMS: Mapping[str, Arm] = {
    "fastmpi": _fastmpi,
    "reference": partial(_backend, backend="reference"),
    **PEERS,
}
