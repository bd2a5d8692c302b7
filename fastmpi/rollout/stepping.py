"""One decoding step, eagerly or as a CUDA graph.

Unusual: a step waits for nothing on the host and reads and writes at addresses that stay, so that
it can be captured once for each number of rows and replayed: the tens of kernels of each layer are
then launched at once. The weights are the training weights; an optimiser that updates them in place
leaves graphs valid, and weights that lie elsewhere (`weights_key`) make new graphs necessary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fastmpi.models.forest_model import ForestModel
from fastmpi.rollout.cache import DecodeCache
from fastmpi.rollout.decoding import Slots
from fastmpi.rollout.sampling import Sampler

_EAGER_STEPS = 2  # before a capture: kernels are compiled, and libraries set up, by then


class Decoder:
    """Slots, their keys and values, and the step that adds a token to the first of them."""

    def __init__(
        self,
        model: ForestModel,
        cache: DecodeCache,
        slots: Slots,
        sampler: Sampler,
        *,
        cuda_graphs: bool,
    ) -> None:
        """cuda_graphs: on CUDA, with the kernels; elsewhere steps are eager."""
        self.model, self.cache, self.slots, self.sampler = model, cache, slots, sampler
        # Graphs do not hold the step: in a cycle, memory and graphs would wait for the collector.
        captures = cuda_graphs and self.asynchronous and cache.waits_for_nothing
        self._graphs = StepGraphs() if captures else None

    @property
    def asynchronous(self) -> bool:
        """Whether the device works while the host goes on."""
        return self.model.device.type == "cuda"

    def step(self, num_rows: int) -> None:
        """A token more for slots 0 to num_rows."""
        if self._graphs is None:
            self.eager_step(num_rows)
        else:
            self._graphs.run(self.eager_step, num_rows)

    @torch.inference_mode()
    def eager_step(self, num_rows: int) -> None:
        """Nothing here may wait for the device."""
        slots = self.slots
        self.cache.begin(slots.places[:num_rows])
        tokens, positions = slots.tokens[:num_rows], slots.positions(num_rows)
        hidden = self.model.decode(tokens, positions, self.cache)
        slots.add(*self.sampler(hidden, slots.uniform(num_rows)))


class StepGraphs:
    """`step(num_rows)`, captured after some eager calls with the same number."""

    def __init__(self) -> None:
        self._eager: Counter[int] = Counter()
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._memory = torch.cuda.graph_pool_handle()  # one for all: they never run side by side

    def run(self, step: Callable[[int], None], num_rows: int) -> None:
        """step: the same each time."""
        if num_rows not in self._graphs:
            with _no_autocast_cache():
                if self._eager[num_rows] < _EAGER_STEPS:
                    self._eager[num_rows] += 1
                    step(num_rows)
                    return
                self._graphs[num_rows] = self._capture(step, num_rows)
        self._graphs[num_rows].replay()

    def _capture(self, step: Callable[[int], None], num_rows: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread may train meanwhile
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            step(num_rows)
        return graph


@contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """A graph must cast the weights of its replay, not read casts that are gone by then."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def weights_key(model: torch.nn.Module) -> tuple[int, ...]:
    """Where the model's tensors lie: graphs of a model that moved are to be thrown away."""
    return tuple(tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers()))
