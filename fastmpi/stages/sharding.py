"""Matrices, their gradients and AdamW's state cut into one part for each process (FSDP2).

`torch.distributed.fsdp.fully_shard` of every layer of the text tower and of the `ForestModel`
itself, whose forward is the only one that trains. Unusual: what runs without gradient (rollouts,
old and reference log-probs, evaluation) runs on a copy of the model whose weights are gathered for
as long as it takes, so nothing there has to be in step with the other processes. Vectors (norms,
biases), a thousandth of the weights, stay whole: a layer can then be gathered in the type that
autocast multiplies in, and each number is the one that an unsharded run computes with.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from fastmpi.models.forest_model import ForestModel

Weights = Mapping[str, Tensor]


class Shards:
    """`model`, sharded in place over all processes, and a copy of it without weights of its own.

    device: of the parts; the weights may come from another. dtype: that matrices of layers are
    gathered in, None for their own; gradients are added in their own. `ValueError` where the
    trained parameters are of several types.
    """

    def __init__(
        self, model: ForestModel, device: torch.device, dtype: torch.dtype | None = None
    ) -> None:
        types = sorted({str(p.dtype) for p in model.parameters() if p.requires_grad})
        if len(types) > 1:
            raise ValueError(f"fsdp: the trained parameters are of several types: {types}")
        whole = _whole_parameters(model)
        _move(model, whole, device)
        self.dtype = dtype
        self.replica = _without_weights(model, whole)
        _shard(model, whole, device, dtype)
        # What is whole has the same name in both, and is the same tensor.
        self.parameters = {n: p for n, p in model.named_parameters() if is_sharded(p)}
        self._whole = {n: p for n, p in model.named_parameters() if not is_sharded(p)}
        layers = {id(p) for p in model.text_tower.layers.parameters()}  # type: ignore[union-attr]
        self._in_layers = {n for n, p in self.parameters.items() if id(p) in layers}
        self._gathered = False

    def copies(self) -> dict[str, Tensor]:
        """The trained weights of now, each process its part."""
        trained = {**self.parameters, **self._whole}
        return {name: p.detach().clone() for name, p in trained.items() if p.requires_grad}

    @contextmanager
    def gathered(self, weights: Weights | None = None) -> Iterator[ForestModel]:
        """The copy, on the device, with the weights of now, those in `weights` instead of now's.
        All processes enter together; inside they are free."""
        assert not self._gathered, "the copy holds one set of weights at a time"
        full = {
            name: _full(p.to(self.dtype) if name in self._in_layers and self.dtype else p)
            for name, p in {**self.parameters, **(weights or {})}.items()
        }
        with self._with_weights(full) as model:
            yield model

    @contextmanager
    def exported(self, is_main: bool) -> Iterator[ForestModel]:
        """The copy, in host memory and the weights' own types, to be saved. All processes enter
        together, and only the first one's copy has weights."""
        full = {}
        for name, p in self.parameters.items():
            whole = _full(p)  # one tensor at a time on the device
            if is_main:
                full[name] = whole.cpu()
        with self._with_weights(full) as model:
            yield model

    @contextmanager
    def _with_weights(self, full: Weights) -> Iterator[ForestModel]:
        slots = _slots(self.replica, full)
        empty = [module._parameters[key] for module, key, _ in slots]
        made = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in full.items()}
        for module, key, name in slots:
            module._parameters[key] = made[name]
        self._gathered = True
        try:
            yield self.replica
        finally:
            self._gathered = False
            for (module, key, _), parameter in zip(slots, empty, strict=True):
                module._parameters[key] = parameter


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of it."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This process's part, or the tensor itself where it is whole."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def like(parameter: Tensor, whole: Tensor) -> Tensor:
    """`whole` on the parameter's device; this process's part of it where that is sharded."""
    if not is_sharded(parameter):
        return whole.to(parameter.device)
    part = torch.zeros_like(parameter, dtype=whole.dtype, requires_grad=False)
    mesh = part.device_mesh  # type: ignore[attr-defined]
    chunks = whole.chunk(mesh.size())
    if mesh.get_local_rank() < len(chunks):
        local(part).copy_(chunks[mesh.get_local_rank()])
    return part


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> float:
    """`torch.nn.utils.clip_grad_norm_` over parameters of which some are sharded; all processes get
    the same norm, that of the whole gradient."""
    from torch.distributed import all_reduce

    grads = [p.grad for p in parameters if p.grad is not None]
    device = grads[0].device
    squares = torch.zeros(2, dtype=torch.float64, device=device)  # of what is whole, of our parts
    for grad in grads:
        squares[int(is_sharded(grad))] += local(grad).norm().double() ** 2
    all_reduce(squares[1:])
    norm = float(squares.sum().sqrt())
    scale = max_norm / (norm + 1e-6)
    if scale < 1:
        torch._foreach_mul_([local(grad) for grad in grads], scale)
    return norm


def _full(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if is_sharded(tensor) else tensor).detach()  # type: ignore


def _whole_parameters(model: ForestModel) -> set[int]:
    """Ids of the parameters that stay whole: vectors, and a vision tower while it is frozen, whose
    features are then made once."""
    whole = {id(p) for p in model.parameters() if p.ndim < 2}
    if not model.trains_vision:
        text = {id(p) for p in model.text_tower.parameters()} | {id(model.head)}
        whole |= {id(p) for p in model.parameters() if id(p) not in text}
    return whole


def _move(model: nn.Module, whole: set[int], device: torch.device) -> None:
    """What `fully_shard` leaves where it is."""
    for p in model.parameters():
        if id(p) in whole:
            p.data = p.data.to(device)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)


def _without_weights(model: ForestModel, whole: set[int]) -> ForestModel:
    """A copy in evaluation mode whose parameters are on the meta device, but for whole ones."""
    memo: dict[int, object] = {id(model.processor): model.processor}
    for p in model.parameters():
        empty = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
        memo[id(p)] = p if id(p) in whole else empty
    replica = copy.deepcopy(model, memo)
    replica.gradient_checkpointing(False)
    return replica.eval()


def _shard(
    model: ForestModel, whole: set[int], device: torch.device, dtype: torch.dtype | None
) -> None:
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (get_world_size(),))
    ignored = {p for p in model.parameters() if id(p) in whole}
    own = next(p.dtype for p in model.parameters() if p.requires_grad)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=own, cast_forward_inputs=False)
    for layer in model.text_tower.layers:  # type: ignore[union-attr]
        fully_shard(layer, mesh=mesh, mp_policy=policy, ignored_params=ignored)
    # Outside of the layers nothing is cast: embeddings are added up in their own type.
    fully_shard(model, mesh=mesh, ignored_params=ignored)
    model.all_gradients = True
    for module in model.modules():
        if isinstance(module, FSDPModule):  # shares of a gradient add up; gloo knows no mean
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _slots(model: nn.Module, weights: Weights) -> list[tuple[nn.Module, str, str]]:
    """(module, key, name) of every place of these parameters; tied ones have several."""
    names = {id(p): name for name, p in model.named_parameters() if name in weights}
    return [
        (module, key, names[id(p)])
        for module in model.modules()
        for key, p in module._parameters.items()
        if p is not None and id(p) in names
    ]
