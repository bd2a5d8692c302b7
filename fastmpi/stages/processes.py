"""What the processes of a run tell one another; one process has nobody to ask."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator


class Processes:
    """Of a Trainer, which inherits this. All processes call each of these together."""

    accelerator: Accelerator

    def reduce(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Each value added over all processes."""
        if self.accelerator.num_processes == 1:
            return dict(sums)
        values = torch.tensor(list(sums.values()), dtype=torch.float64)
        total = self.accelerator.reduce(values.to(self.accelerator.device), "sum")
        return dict(zip(sums, total.tolist(), strict=True))

    def gather(self, values: Tensor) -> Tensor:
        """(n, ...) values of all processes, in the order of their ranks; n may differ."""
        if self.accelerator.num_processes == 1:
            return values
        from torch.distributed import all_gather

        device, size = self.accelerator.device, self.accelerator.num_processes
        lengths = torch.zeros(size, dtype=torch.int64, device=device)
        lengths[self.accelerator.process_index] = len(values)
        counts = self.accelerator.reduce(lengths, "sum").tolist()
        if not max(counts):
            return values.cpu()
        padded = values.new_zeros(max(counts), *values.shape[1:], device=device)
        padded[: len(values)] = values.to(device)
        flags = padded.dtype == torch.bool
        padded = padded.byte() if flags else padded
        found = [torch.empty_like(padded) for _ in counts]
        all_gather(found, padded)
        whole = torch.cat([part[:n] for part, n in zip(found, counts, strict=True)]).cpu()
        return whole.bool() if flags else whole

    def gather_json(self, value: Any) -> list[Any]:
        """JSON values of all processes; what is not JSON becomes text."""
        if self.accelerator.num_processes == 1:
            return [value]
        text = json.dumps(value, default=str).encode()
        whole = self.gather(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        sizes = self.gather(torch.tensor([len(text)])).tolist()
        parts = whole.split(sizes)
        return [json.loads(bytes(part.tolist())) for part in parts]
