"""The memory of keys and values: one allocation, and which part of it is free."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastmpi.models.sizes import TextShape


class KeyValuePool:
    """Room for the keys and values of N tokens, allocated once.

    storage: (layers, 2, Hkv, N, D), keys first. Heads come before tokens, so that a head's tokens
    are one block of memory (see `ops.decode_attention`).
    """

    def __init__(
        self, text: TextShape, num_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_tokens, self.dtype, self.device = num_tokens, dtype, device
        self.heads, self.dim = text.key_heads, text.key // text.key_heads
        shape = (text.layers, 2, self.heads, num_tokens, self.dim)
        # zeros, since what is masked is still multiplied by 0
        try:
            self.storage = torch.zeros(shape, dtype=dtype, device=device)
        except (RuntimeError, TypeError) as error:  # no memory, or more than a number can say
            need = num_tokens * token_bytes(text, dtype) / 2**30
            raise torch.OutOfMemoryError(
                f"keys and values of {num_tokens} tokens need {need:.3g} GiB, which are not there: "
                "lower rollout_memory_gib or max_completion_length"
            ) from error

    @property
    def nbytes(self) -> int:
        return self.storage.numel() * self.storage.element_size()


def token_bytes(text: TextShape, dtype: torch.dtype) -> int:
    """What one token takes in a pool."""
    return 2 * text.key * text.layers * dtype.itemsize


@dataclass
class _Gap:
    start: int
    size: int


class Room:
    """Which of `size` tokens are free: the first gap that is long enough is taken."""

    def __init__(self, size: int) -> None:
        self._gaps = [_Gap(0, size)] if size else []

    @property
    def free(self) -> int:
        return sum(gap.size for gap in self._gaps)

    def take(self, size: int) -> int | None:
        """The first of `size` adjacent tokens; None where no gap is that long."""
        for gap in self._gaps:
            if gap.size >= size:
                start = gap.start
                gap.start, gap.size = start + size, gap.size - size
                self._gaps = [gap for gap in self._gaps if gap.size]
                return start
        return None

    def give(self, start: int, size: int) -> None:
        """`size` tokens from `start` on are free again."""
        gaps = sorted([*self._gaps, _Gap(start, size)], key=lambda gap: gap.start)
        self._gaps = gaps[:1]
        for gap in gaps[1:]:
            last = self._gaps[-1]
            assert gap.start >= last.start + last.size, "given twice"
            if gap.start == last.start + last.size:
                last.size += gap.size
            else:
                self._gaps.append(gap)
