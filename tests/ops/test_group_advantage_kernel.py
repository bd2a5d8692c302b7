"""The kernel of `group_advantage` against the reference in fp64, on any order of any groups."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastmpi.ops.group_advantage import GroupAdvantage, _group_advantage, group_advantage

pytestmark = pytest.mark.usefixtures("poisoned")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (1, 8, 9, 300)  # around a block of samples, and several of others


def _samples(
    size: int, device: torch.device, seed: int, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Ragged groups in any order, among them groups of one and groups of equal rewards."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> Tensor:
        return torch.randint(high, (size,), generator=generator)

    groups = draw(1 + size // 5)
    rewards = torch.where(groups % 4 == 0, 0.7, torch.rand(size, generator=generator) + 3)
    columns = {
        "rewards": rewards.to(dtype),
        "groups": groups * (1 << 33) - 5,  # ids beyond int32
        "arms": draw(2),
        "accuracy": draw(2).float(),
    }
    return {name: column.to(device) for name, column in columns.items()}


def _exact(samples: dict[str, Tensor], **options) -> GroupAdvantage:
    double = {**samples, "rewards": samples["rewards"].double()}
    return group_advantage(**double, **options, backend="reference")


def _check(samples: dict[str, Tensor], **options) -> None:
    found = group_advantage(**samples, **options, backend="triton")
    plain = group_advantage(**samples, **options, backend="reference")
    exact = _exact(samples, **options)
    for name in ("advantages", "mean", "std"):
        wanted = getattr(exact, name)
        error = (getattr(found, name) - wanted).abs().max()
        assert error <= (getattr(plain, name) - wanted).abs().max() + 1e-5, name
        assert getattr(found, name).dtype == torch.float32
    assert torch.equal(found.zero_variance, exact.zero_variance)
    assert torch.equal(found.kept, exact.kept)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("pool", ["group", "arm"])
def test_ragged_groups_in_any_order(size, scale, pool, device):
    _check(_samples(size, device, seed=size), scale=scale, pool=pool)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rewards_of_16_bits_are_summed_in_32(dtype, device):
    _check(_samples(60, device, seed=1, dtype=dtype))


def test_ids_of_32_bits(device):
    samples = _samples(40, device, seed=2)
    samples["groups"] = (samples["groups"] >> 33).int()
    _check({**samples, "arms": samples["arms"].int()}, pool="arm")


def test_columns_with_strides(device):
    samples = _samples(40, device, seed=8)
    _check({name: torch.stack([column, column], 1)[:, 0] for name, column in samples.items()})


def test_a_mean_far_from_zero_does_not_cancel(device):
    samples = _samples(64, device, seed=3)
    samples["rewards"] += 4096
    found, exact = group_advantage(**samples, backend="triton"), _exact(samples)
    assert (found.advantages - exact.advantages).abs().max() < 1e-6  # plain torch: 1e-3


def test_equal_rewards_give_exactly_zero(device):
    rewards = torch.full((12,), 0.7, device=device)
    groups = torch.zeros(12, dtype=torch.int64, device=device)
    for eps in (1e-4, 0.0):
        result = group_advantage(rewards, groups, eps=eps, backend="triton")
        assert result.advantages.tolist() == [0.0] * 12 and result.zero_variance.all()
        assert result.mean.tolist() == rewards.tolist()


def test_mean_accuracy_on_the_bound_is_outside(device):
    groups = torch.arange(2, device=device).repeat_interleave(100)
    accuracy = torch.ones(200, device=device)
    accuracy[1:100] = 0.0  # 1 of 100, and 99 of 100
    accuracy[100] = 0.0
    samples = {"rewards": torch.rand(200, device=device), "groups": groups, "accuracy": accuracy}
    assert not group_advantage(**samples, backend="triton").kept.any()
    assert group_advantage(**samples, keep_between=(0.0, 1.0), backend="triton").kept.all()


def test_accuracies_that_do_not_apply(device):
    groups = torch.tensor([4, 9, 4, 9, 5, 5, 6], device=device)
    accuracy = torch.tensor([0.0, 1.0, 1.0, 1.0, math.nan, 0.5, math.nan], device=device)
    options = {"accuracy": accuracy, "keep_between": (-1.0, 0.99), "backend": "triton"}
    kept = group_advantage(torch.rand(7, device=device), groups, **options).kept
    assert kept.tolist() == [True, False, True, False, True, True, False]


def test_no_samples(device, launches):
    none = torch.zeros(0, dtype=torch.int64, device=device)
    result = group_advantage(none.float(), none, backend="triton")
    assert [column.shape for column in result] == [(0,)] * 5 and not launches


def test_one_launch(device, launches):
    group_advantage(**_samples(100, device, seed=4), scale="batch", pool="arm", backend="triton")
    assert launches == ["_group_advantage"]


def test_rewards_without_validation(device):
    rewards = torch.tensor([1.0, math.nan, 2.0, 3.0], device=device)
    groups = torch.tensor([0, 0, 1, 1], device=device)
    with pytest.raises(ValueError, match=r"rewards\[1\] is nan"):
        group_advantage(rewards, groups, backend="triton")
    result = group_advantage(rewards, groups, backend="triton", validate=False)
    assert result.advantages[:2].isnan().all() and result.advantages[2:].isfinite().all()
    assert not result.zero_variance.any()


def test_float64_needs_the_reference(device):
    samples = _samples(8, device, seed=5)
    samples["rewards"] = samples["rewards"].double()
    assert group_advantage(**samples).advantages.dtype == torch.float64
    with pytest.raises(ValueError, match="backend 'triton' takes float32"):
        group_advantage(**samples, backend="triton")


@pytest.mark.parametrize("optional", [True, False])
def test_operator(device, optional):
    samples = _samples(20, device, seed=6)
    arms, accuracy = (samples[name] if optional else None for name in ("arms", "accuracy"))
    arguments = (
        samples["rewards"],
        samples["groups"],
        arms,
        accuracy,
        "batch",
        1e-4,
        0.01,
        0.99,
        True,
    )
    torch.library.opcheck(_group_advantage, arguments)


@pytest.mark.gpu
def test_captured_in_a_graph_and_compiled():
    device = torch.device("cuda")
    samples = _samples(1024, device, seed=7)

    def run() -> GroupAdvantage:
        return group_advantage(**samples, pool="arm", validate=False)

    run()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    fresh = torch.randint(2**31, ()).item()
    print("seed", fresh)
    samples["rewards"].copy_(_samples(1024, device, seed=fresh)["rewards"])
    for column in captured[:3]:
        column.fill_(math.nan)
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(captured, run(), rtol=0, atol=0)
    torch.testing.assert_close(torch.compile(run, fullgraph=True)(), run(), rtol=0, atol=0)


@pytest.mark.gpu
def test_one_variant_for_all_sizes():
    from fastmpi.kernels.group_advantage import _group_advantage as kernel

    compiled = set()
    for size in (1, 16, 17, 1024, 20_000):
        _check(_samples(size, torch.device("cuda"), seed=size))
        compiled.add(len(kernel.device_caches[torch.cuda.current_device()][0]))
    assert len(compiled) == 1
