"""`patch_embed` from bytes against the convolution of normalised, duplicated frames in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastmpi.ops.patch_embed import _patch_embed, fold_patch_weight, patch_embed

pytestmark = pytest.mark.usefixtures("poisoned")

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float64)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64)
# A dot in bfloat16 is wrong in Triton's interpreter.
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * torch.cuda.is_available()


def _inputs(
    num_patches: int, side: int, embedding: int, device: torch.device, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Patches, weight in fp64, mean and std."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randint(0, 256, (num_patches, 3 * side * side), generator=generator)
    weight = torch.randn(embedding, 3, 2, side, side, dtype=torch.float64, generator=generator) / 24
    return patches.to(torch.uint8).to(device), weight.to(device), MEAN.to(device), STD.to(device)


def _convolved(patches: Tensor, weight: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The tower's own way, in fp64."""
    side = weight.shape[-1]
    pixels = patches.view(-1, 3, 1, side, side).double() / 255
    pixels = (pixels - mean.view(3, 1, 1, 1)) / std.view(3, 1, 1, 1)
    return torch.nn.functional.conv3d(pixels.expand(-1, -1, 2, -1, -1), weight).flatten(1)


def _error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm().clamp(min=1e-30)).item()


def _check(
    num_patches: int, side: int, embedding: int, dtype: torch.dtype, device: torch.device,
    seed: int = 0,
) -> None:  # fmt: skip
    """Output and gradient: their errors are at most a tenth above plain torch's."""
    patches, weight, mean, std = _inputs(num_patches, side, embedding, device, seed)
    upstream = torch.randn(num_patches, embedding, device=device).to(dtype)
    weight = weight.to(dtype).requires_grad_()
    wide = weight.detach().double().requires_grad_()
    exact = _convolved(patches, wide, mean, std)
    (exact_gradient,) = torch.autograd.grad(exact, wide, upstream.double())
    errors = {}
    for backend in ("triton", "reference"):
        out = patch_embed(patches, weight, mean, std, backend=backend)
        (gradient,) = torch.autograd.grad(out, weight, upstream)
        assert out.dtype == gradient.dtype == dtype and out.shape == exact.shape
        errors[backend] = (_error(out, exact), _error(gradient, exact_gradient))
    for ours, torchs in zip(errors["triton"], errors["reference"], strict=True):
        assert ours <= 1.1 * torchs + 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", [3, 14, 16])
def test_patches_of_any_size(dtype, side, device):
    _check(num_patches=70, side=side, embedding=72, dtype=dtype, device=device)


@pytest.mark.parametrize(("num_patches", "embedding"), [(1, 1), (0, 8), (64, 64), (129, 200)])
def test_partial_blocks(num_patches, embedding, device):
    _check(num_patches, side=5, embedding=embedding, dtype=torch.float32, device=device)


def test_more_blocks_than_a_group_of_them(device, monkeypatch):
    from fastmpi.kernels import patch_embed as kernels

    monkeypatch.setattr(kernels, "GROUP_BLOCKS", 2)
    monkeypatch.setattr(kernels, "tiles_for", lambda dtype: kernels.Tiles(16, 16, 16, 4, 1))
    _check(num_patches=75, side=3, embedding=50, dtype=torch.float32, device=device)


def test_reference_equals_the_convolution():
    inputs = _inputs(9, 14, 16, torch.device("cpu"))
    assert _error(patch_embed(*inputs), _convolved(*inputs)) < 1e-14


def test_folded_weight_takes_pixels_less_128():
    patches, weight, mean, std = _inputs(9, 14, 16, torch.device("cpu"))
    folded, bias = fold_patch_weight(weight, mean, std)
    out = (patches.double() - 128) @ folded.T + bias
    assert _error(out, _convolved(patches, weight, mean, std)) < 1e-14


def test_rows_with_strides(device):
    patches, weight, mean, std = _inputs(20, 4, 8, device)
    out = patch_embed(patches[::2], weight.float(), mean, std, backend="triton")
    assert _error(out, _convolved(patches[::2], weight, mean, std)) < 1e-6


def test_one_launch(device, launches):
    patches, weight, mean, std = _inputs(70, 4, 8, device)
    patch_embed(patches, weight.float(), mean, std, backend="triton")
    assert launches == ["_patch_embed"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_operator(dtype, device):
    patches, weight, mean, std = _inputs(5, 4, 8, device)
    folded, bias = (x.float().requires_grad_() for x in fold_patch_weight(weight, mean, std))
    torch.library.opcheck(_patch_embed, (patches, folded, bias, dtype))


def test_float64_runs_in_the_reference(device):
    inputs = _inputs(5, 4, 8, device)
    assert patch_embed(*inputs).dtype == torch.float64
    with pytest.raises(ValueError, match="backend 'triton' takes float32"):
        patch_embed(*inputs, backend="triton")


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(5, 48), "patches must be uint8"),
        (0, torch.zeros(5, 47, dtype=torch.uint8), r"patches must have shape \(\*, 48\)"),
        (0, torch.zeros(5, 48, device="meta"), "patches must be on cpu"),
        (1, torch.zeros(8, 3, 1, 4, 4), r"weight must have shape \(\*, \*, 2, \*, \*\)"),
        (1, torch.zeros(8, 3, 2, 4, 12), "weight must be floats of square patches"),
        (1, torch.zeros(8, 3, 2, 4, 4, dtype=torch.int8), "weight must be floats"),
        (2, torch.zeros(1), r"mean must have shape \(3\)"),
        (3, torch.zeros(1), r"std must have shape \(3\)"),
    ],
)
def test_wrong_arguments(index, value, message):
    arguments = list(_inputs(5, 4, 8, torch.device("cpu")))
    arguments[index] = value
    with pytest.raises(ValueError, match=message):
        patch_embed(*arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("side", [14, 16])
def test_a_page_of_patches(dtype, side):
    seed = torch.randint(2**31, ()).item()
    print("seed", seed)
    _check(4004, side, 1280, dtype, torch.device("cuda"), seed)


@pytest.mark.gpu
def test_compiled():
    patches, weight, mean, std = _inputs(500, 14, 1280, torch.device("cuda"))
    weight = weight.bfloat16()
    compiled = torch.compile(patch_embed, fullgraph=True)
    exact = _convolved(patches, weight.double(), mean, std)
    assert _error(compiled(patches, weight, mean, std), exact) < 1e-2
