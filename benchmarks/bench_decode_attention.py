"""decode_attention beside its peers: a step of many responses below shared prompts and a policy.

All arms compute the same. `torch` reads a copy of its whole row for each response, made before the
clock starts. `cascade` calls torch's flash attention (flash-attn's, where installed) once for each
of the policy, the prompts and the own tokens, and merges by log-sum-exp. `flash_attn` decodes from
pages that responses share, each of which it reads for every response, perhaps from the cache.
`flashinfer` has the same levels as `cascade` in its own multi-level cascade. What peers plan once
a step or less often is done before the clock starts, and ours too.

The bytes counted are those of each distinct key and value once, so that `of limit` is the rate at
which they go by, over what the device copies; `repeated_bytes` are those of whole rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fastmpi.benchmarks.decode_problem import DecodeProblem, Wave
from fastmpi.benchmarks.forest_problem import Heads
from fastmpi.benchmarks.harness import Case, Outputs, Run, Unavailable
from fastmpi.benchmarks.peers import load_cuda
from fastmpi.ops.attention_segments import Segments, attend_segments
from fastmpi.ops.decode_attention import DecodePlan, decode_attention
from fastmpi.ops.decode_triton import count_parts

Arm = Callable[[DecodeProblem], Run]

MODELS = (Heads("7B", 28, 4, 128), Heads("3B", 16, 2, 128))
WAVES = {
    "8 x 16 below 4k": Wave(4096, 8, 1024, 16, 256),
    "8 x 16": Wave(0, 8, 1024, 16, 256),
    "1 x 16": Wave(0, 1, 1024, 16, 256),
}
TINY = Heads("tiny", 4, 2, 64)
TINY_WAVES = {"2 x 4 below 256": Wave(256, 2, 256, 4, 256)}
FLASH_PAGE, FLASHINFER_PAGE = 256, 16
GRAPHED = frozenset({"fastmpi", "torch", "cascade"})


def cases(device: torch.device, small: bool) -> list[Case]:
    """Every wave with the heads of every model."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    models, waves = ((TINY,), TINY_WAVES) if small else (MODELS, WAVES)
    return [
        _case(f"{heads.model} {name}", DecodeProblem(wave, heads, device, dtype))
        for heads in models
        for name, wave in waves.items()
    ]


def _case(name: str, problem: DecodeProblem) -> Case:
    wave = problem.wave
    counts = {
        "flops": problem.flops,
        "bytes": problem.bytes(wave.tokens),
        "repeated_bytes": problem.bytes(wave.slots * wave.seen),
    }
    arms = {arm: partial(prepare, problem) for arm, prepare in ARMS.items()}
    return Case(name, arms, problem.exact, counts=counts, graphed=GRAPHED)


def _fastmpi(problem: DecodeProblem) -> Run:
    segments = problem.wave.segments
    plan = DecodePlan(problem.shape, max_parts=count_parts(segments))
    plan.update(segments)
    q, (keys, values, own_keys, own_values, lengths) = problem.q, problem.parts()

    def run() -> Outputs:
        out = decode_attention(q, keys, values, own_keys, own_values, lengths, plan)
        return {"out": out}

    return run


def _torch(problem: DecodeProblem) -> Run:
    """Whole rows."""
    paths = problem.wave.paths(problem.device)
    keys, values = (pool[:, paths].transpose(0, 1).contiguous() for pool in problem.pools)
    q = problem.q[:, :, None]

    def run() -> Outputs:
        out = scaled_dot_product_attention(q, keys, values, enable_gqa=True)
        return {"out": out[:, :, 0]}

    return run


def _cascade(problem: DecodeProblem) -> Run:
    """The heads of a group are queries of their key head; rows are slots times those."""
    heads = problem.heads
    group = heads.query // heads.key
    levels = [
        (
            _segments(problem, count, length),
            *(pool[:, at].transpose(0, 1) for pool in problem.pools),
        )
        for at, count, length in _levels(problem.wave)
    ]
    scale = heads.dim**-0.5

    def run() -> Outputs:
        q = problem.q.unflatten(1, (-1, group)).transpose(1, 2).flatten(0, 1)  # (B r, Hkv, D)
        parts = [attend_segments(q, k, v, segments, scale) for segments, k, v in levels]
        out, lse = (torch.stack(column) for column in zip(*parts, strict=True))
        weights = lse.softmax(0).mT[..., None]  # (levels, B r, Hkv, 1)
        merged = (weights * out).sum(0).to(q.dtype)
        return {"out": merged.unflatten(0, (-1, group)).transpose(1, 2).flatten(1, 2)}

    return run


def _levels(wave: Wave) -> list[tuple[slice, int, int]]:
    """Tokens of the pool, into how many equal segments they are cut, and the length of each."""
    policy = (slice(0, wave.policy), 1, wave.policy)
    prompts = (slice(wave.policy, wave.shared), wave.prompts, wave.prompt)
    own = (slice(wave.shared, wave.tokens), wave.slots, wave.own)
    return [policy, prompts, own] if wave.policy else [prompts, own]


def _segments(problem: DecodeProblem, count: int, length: int) -> Segments:
    """`count` segments of `length` tokens, which share the rows of all slots equally."""
    rows = problem.wave.slots * problem.heads.query // problem.heads.key // count
    numbers = torch.arange(count + 1, dtype=torch.int32, device=problem.device)
    return Segments(numbers * rows, numbers * length, rows, length, False)


def _pages(problem: DecodeProblem, size: int) -> tuple[Tensor, Tensor]:
    """Keys and values as (pages, size, Hkv, D). Nothing shared may end inside a page."""
    wave = problem.wave
    if any(length % size for length in (wave.policy, wave.prompt, wave.own)):
        raise Unavailable(f"lengths are no multiples of its page of {size} tokens")
    keys, values = (
        pool.transpose(0, 1).contiguous().unflatten(0, (-1, size)) for pool in problem.pools
    )
    return keys, values


def _flash_attn(problem: DecodeProblem) -> Run:
    attend = load_cuda("flash_attn", problem.device).flash_attn_with_kvcache
    keys, values = _pages(problem, FLASH_PAGE)
    wave = problem.wave
    pages = (wave.paths(problem.device)[:, ::FLASH_PAGE] // FLASH_PAGE).to(torch.int32)
    lengths = torch.full((wave.slots,), wave.seen, dtype=torch.int32, device=problem.device)
    q = problem.q[:, None]

    def run() -> Outputs:
        out = attend(q, keys, values, cache_seqlens=lengths, block_table=pages)
        return {"out": out[:, 0]}

    return run


def _flashinfer(problem: DecodeProblem) -> Run:
    flashinfer = load_cuda("flashinfer", problem.device)
    pages = _pages(problem, FLASHINFER_PAGE)
    levels = _levels(problem.wave)
    workspace = torch.empty(2**28, dtype=torch.uint8, device=problem.device)
    wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(len(levels), workspace, "NHD")
    tables = [_flashinfer_tables(problem, *level) for level in levels]
    heads = problem.heads
    wrapper.plan(
        *(list(column) for column in zip(*tables, strict=True)),
        *(heads.query, heads.key, heads.dim, FLASHINFER_PAGE),
        q_data_type=problem.dtype,
    )
    return lambda: {"out": wrapper.run(problem.q, pages)}


def _flashinfer_tables(
    problem: DecodeProblem, tokens: slice, count: int, length: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where each segment's slots begin, where its pages, which they are, and how full its last."""
    make = partial(torch.arange, dtype=torch.int32, device=problem.device)
    numbers = make(count + 1)
    pages = make(tokens.start // FLASHINFER_PAGE, tokens.stop // FLASHINFER_PAGE)
    slots = numbers * (problem.wave.slots // count)
    last = torch.full_like(numbers[1:], FLASHINFER_PAGE)
    return slots, numbers * (length // FLASHINFER_PAGE), pages, last


ARMS: Mapping[str, Arm] = {
    "fastmpi": _fastmpi,
    "torch": _torch,
    "cascade": _cascade,
    "flash_attn": _flash_attn,
    "flashinfer": _flashinfer,
}
