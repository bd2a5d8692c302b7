"""A CUDA device that is not there: tensors in the CPU's memory that are marked as lying on it.

Inside `pretended_cuda`, `torch.cuda.is_available()` is true, and what is moved to "cuda" or made
there is marked. A marked tensor says that it is on cuda:0, results of marked tensors are marked,
and what a GPU would refuse raises: one operation on tensors of both devices, `.numpy()` of a marked
one, a kernel on an unmarked one. Kernels are interpreted, so that numbers are real.

Not pretended: waiting, streams, memory figures, and products of 16 bits, which round as the CPU's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction

CUDA = torch.device("cuda", 0)
Storages = dict[int, StorageWeakRef]  # while there is a reference, no other storage lies there
_marked: Storages = {}
_anywhere: Storages = {}  # made by autograd itself: wherever it is needed
# Of a thread: whether it makes a tensor itself, and the graph that it captures.
_called: ContextVar[bool] = ContextVar("_called", default=False)
_capturing: ContextVar[Graph | None] = ContextVar("_capturing", default=None)


@contextmanager
def _set(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def is_marked(tensor: Tensor) -> bool:
    return _is(tensor, _marked)


def _is(tensor: Tensor, storages: Storages) -> bool:
    return tensor.untyped_storage()._cdata in storages


def _mark(value: Any, storages: Storages = _marked) -> Any:
    for tensor in tree_leaves(value):
        if isinstance(tensor, Tensor) and tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            storages[storage._cdata] = StorageWeakRef(storage)
    return value


def _unmark(tensor: Tensor) -> Tensor:
    _marked.pop(tensor.untyped_storage()._cdata, None)
    return tensor


def _forget_freed() -> None:
    for storages in (_marked, _anywhere):
        if len(storages) > 20_000:
            for key in [key for key, storage in storages.items() if storage.expired()]:
                del storages[key]


class _Checks(TorchDispatchMode):
    """Below autograd: what is made of marked tensors is marked, and devices do not mix."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        tensors = [x for x in given if not _is(x, _anywhere)]
        marks = [is_marked(x) for x in tensors]
        if any(marks) and not all(marks):
            _check_mixed(func, args, tensors, marks)
        if (graph := _capturing.get()) is not None:
            graph.see(func, given, any(marks))
        out = _run(func, args, kwargs)
        if graph is not None:
            graph.add(func, args, kwargs, out)
        _forget_freed()
        if any(marks):
            return out if _name(func) == "copy_" else _mark(out)
        return out if tensors or not _of_autograd(given) else _mark(out, _anywhere)


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    if func.namespace != "fastmpi":
        return func(*args, **kwargs)
    with _set(_capturing, None):  # a graph holds the op, not what that calls
        with _Checks(), _Devices():  # written in Python: what it calls is checked as well
            return OPDEFS[func._schema.name]._init_fn(*args, **kwargs)


class Graph:
    """torch.cuda.CUDAGraph: the operations of a capture, run again on the same memory.

    A capture itself changes nothing that was there before, and may not wait for the device.
    """

    def __init__(self) -> None:
        self._calls: list[tuple[Any, Any, Any, Any]] = []
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._made: Storages = {}

    def see(self, func: Any, given: list[Tensor], marked: bool) -> None:
        if marked and (_name(func) in _WAITS or _asks_for_rows(func, given)):
            raise RuntimeError(f"{func} is not permitted when a stream is capturing")
        for tensor in given:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._made and storage._cdata not in self._before:
                self._before[storage._cdata] = (storage, storage.clone())

    def add(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._before:
                _mark(tensor, self._made)
        self._calls.append((func, args, kwargs, out))

    def end(self) -> None:
        for storage, before in self._before.values():
            storage.copy_(before)
        self._before.clear()

    def replay(self) -> None:
        with torch.inference_mode():
            for func, args, kwargs, out in self._calls:
                made = tree_leaves(_run(func, args, kwargs))
                for old, new in zip(tree_leaves(out), made, strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


_WAITS = ("_local_scalar_dense", "nonzero", "unique_consecutive", "_unique2", "masked_select",
          "bincount", "equal", "repeat_interleave")  # fmt: skip


def _asks_for_rows(func: Any, given: list[Tensor]) -> bool:
    """Whether the shape of the result is asked of a mask."""
    return _name(func) == "index" and any(x.dtype == torch.bool for x in given[1:])


@contextmanager
def _capture(graph: Graph, **_: Any) -> Iterator[None]:
    """torch.cuda.graph"""
    try:
        with _set(_capturing, graph):
            yield
    finally:
        graph.end()


def _of_autograd(given: list[Tensor]) -> bool:
    """Whether C++ makes a tensor of none, or of such: zeros of the backward pass, by a real device
    that says nothing here."""
    inside = torch._C._current_graph_task_id() != -1 and not _called.get()
    return bool(given) or inside


def _name(func: Any) -> str:
    return str(func.overloadpacket.__name__)


def _check_mixed(func: Any, args: Any, tensors: list[Tensor], marks: list[bool]) -> None:
    """RuntimeError unless CUDA takes these tensors from the CPU."""
    name = _name(func)
    unmarked = [x for x, mark in zip(tensors, marks, strict=True) if not mark]
    scalars = all(x.ndim == 0 for x in unmarked)
    if name == "copy_" or (scalars and (name == "fill_" or torch.Tag.pointwise in func.tags)):
        return
    if name in ("index", "index_put", "index_put_") and is_marked(args[0]):
        values = args[2] if len(args) > 2 else None
        if values is None or is_marked(values) or values.ndim == 0:
            return
    found = [
        f"{'cuda' if mark else 'cpu'} {tuple(x.shape)}"
        for x, mark in zip(tensors, marks, strict=True)
    ]
    raise RuntimeError(f"Expected all tensors to be on the same device: {func} got {found}")


class _Devices(TorchFunctionMode):
    """Above autograd: says where tensors are, moves them, and makes them there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return _attribute(func, args)
        if args and isinstance(args[0], Tensor):
            if name in _METHODS:
                return _METHODS[name](*args, **kwargs)
            if name in ("numpy", "__array__", "pin_memory") and is_marked(args[0]):
                raise TypeError(f"cannot {name} a tensor on cuda:0")
        if name in ("mm", "addmm") and kwargs.get("out_dtype") is not None:
            return _wide_product(func, args, **kwargs)
        device = _device(kwargs.get("device"))
        if device is None or device.type == "meta":
            with _set(_called, not any(isinstance(x, Tensor) for x in tree_leaves(args))):
                return func(*args, **kwargs)
        out = func(*args, **{**kwargs, "device": "cpu"})
        return _mark(out) if device.type == "cuda" else _unmark(out)


def _attribute(func: Any, args: Any) -> Any:
    values = {"device": CUDA, "is_cuda": True, "is_cpu": False}
    attribute = func.__self__.__name__
    return values[attribute] if attribute in values and is_marked(args[0]) else func(*args)


def _device(value: Any) -> torch.device | None:
    return None if value is None else torch.device(value)


def _to(tensor: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
    if args and isinstance(args[0], Tensor):
        device, dtype = args[0].device if not is_marked(args[0]) else CUDA, args[0].dtype
    else:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    if device is not None and device.type == "meta":
        return torch.empty_like(tensor, dtype=dtype, device="meta")
    if device is not None and (device.type == "cuda") != is_marked(tensor):
        tensor = _Moved.apply(tensor)
    elif copy:
        tensor = tensor.clone()
    return tensor if dtype is None else Tensor.to(tensor, dtype)


class _Moved(torch.autograd.Function):
    """A copy on the other device; its gradient comes back."""

    @staticmethod
    def forward(ctx: Any, source: Tensor) -> Tensor:
        assert _capturing.get() is None, "nothing moves when a stream is capturing"
        to_cuda = not is_marked(source)
        with _disable_current_modes():
            made = source.detach().clone()
        return _mark(made) if to_cuda else made

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Moved.forward(ctx, gradient)


_METHODS: dict[str, Callable[..., Any]] = {
    "to": _to,
    "cuda": lambda tensor, *_, **__: _to(tensor, CUDA),
    "cpu": lambda tensor, *_, **__: _to(tensor, torch.device("cpu")),
    "get_device": lambda tensor: 0 if is_marked(tensor) else -1,
}


def _wide_product(
    func: Any, args: Any, *, out_dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """16-bit operands, wide result: the CPU has no such product."""
    assert all(is_marked(x) for x in args) and args[-1].dtype == args[-2].dtype != out_dtype
    assert all(x.dtype == out_dtype for x in (*args[:-2], *([] if out is None else [out])))
    made = func(*(x.to(out_dtype) for x in args))
    return made if out is None else out.copy_(made)


@contextmanager
def pretended_cuda(*, launch: bool = True) -> Iterator[None]:
    """Inside, there is a CUDA device. launch: whether kernels run, slowly; else they are only held
    to their arguments' devices, and what they would write is 0."""
    from accelerate.state import AcceleratorState

    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        AcceleratorState._reset_state(True)
        stack.callback(AcceleratorState._reset_state, True)
        _patch_torch(patch)
        _patch_launches(patch, launch)
        _patch_threads(patch)
        stack.enter_context(_Devices())
        stack.enter_context(_Checks())
        yield


def _patch_torch(patch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None, wait_stream=lambda _: None)
    random = torch.get_rng_state()
    properties = SimpleNamespace(
        name="pretended", total_memory=2**34, major=9, minor=0, multi_processor_count=4
    )
    answers: dict[str, Any] = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
        "_exchange_device": 0, "_maybe_exchange_device": 0, "is_bf16_supported": True,
        "get_device_properties": properties, "get_device_capability": (9, 0),
        "get_device_name": "pretended", "mem_get_info": (2**33, 2**34),
        "memory_allocated": 2**20, "max_memory_allocated": 2**20, "memory_reserved": 2**20,
        "max_memory_reserved": 2**20, "memory_stats": {}, "current_stream": stream,
        "default_stream": stream, "get_rng_state": random, "get_rng_state_all": [random],
        "graph_pool_handle": (0, 0), "Stream": stream,
    }  # fmt: skip
    nothing = (
        "set_device", "synchronize", "empty_cache", "reset_peak_memory_stats", "ipc_collect",
        "manual_seed", "manual_seed_all", "set_rng_state", "set_rng_state_all", "_lazy_init",
    )  # fmt: skip
    for name, answer in {**answers, **dict.fromkeys(nothing)}.items():
        patch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: _capturing.get() is not None)
    patch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    patch.setattr(torch.cuda, "CUDAGraph", Graph)
    patch.setattr(torch.cuda, "graph", _capture)
    patch.setattr(torch.accelerator, "is_available", lambda: True)
    patch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: torch.device("cuda"))
    group = torch._C._group_tensors_by_device_and_dtype

    def grouped(lists: list[list[Tensor]], *options: Any) -> Any:
        """By the device that they say, as far as all say the same."""
        device = lists[0][0].device
        return {(device, dtype): found for (_, dtype), found in group(lists, *options).items()}

    patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", grouped)
    optimizer = torch.optim.Optimizer
    patch.setattr(optimizer, "_accelerator_graph_capture_health_check", lambda _: None)
    _patch_autocast(patch)


def _patch_autocast(patch: pytest.MonkeyPatch) -> None:
    """Autocast for CUDA is the CPU's: tensors really are there."""

    def here(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(device: Any = "cuda", *args: Any) -> Any:
            return function("cpu" if device == "cuda" else device, *args)

        return call

    begin = torch.autocast.__init__

    def init(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        begin(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    patch.setattr(torch.autocast, "__init__", init)
    for name in ("is_autocast_enabled", "get_autocast_dtype"):
        patch.setattr(torch, name, here(getattr(torch, name)))


def _patch_launches(patch: pytest.MonkeyPatch, launch: bool) -> None:
    run = InterpretedFunction.run

    def checked(self: Any, *args: Any, **options: Any) -> Any:
        for tensor in tree_leaves((args, options)):
            assert not isinstance(tensor, Tensor) or is_marked(tensor), f"{self} of a CPU tensor"
        if launch:
            with _disable_current_modes(), torch._C.DisableTorchFunction():
                run(self, *args, **options)

    patch.setattr(InterpretedFunction, "run", checked)
    if not launch:
        make = torch.Tensor.new_empty
        patch.setattr(torch.Tensor, "new_empty", lambda *args, **kw: make(*args, **kw).zero_())
        make_like = torch.empty_like
        patch.setattr(torch, "empty_like", lambda *args, **kw: make_like(*args, **kw).zero_())


def _patch_threads(patch: pytest.MonkeyPatch) -> None:
    run = threading.Thread.run

    def started(self: threading.Thread) -> None:
        with _Devices(), _Checks():
            run(self)

    patch.setattr(threading.Thread, "run", started)
