"""A cache that counts bytes, for several threads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import RLock
from typing import Generic, TypeVar

ValueT = TypeVar("ValueT")


class BoundedCache(Generic[ValueT]):
    """Keeps the most recently used values while they fit into `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[Hashable, tuple[ValueT, int]] = OrderedDict()
        self._lock = RLock()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def get(
        self, key: Hashable, make: Callable[[], ValueT], size: Callable[[ValueT], int]
    ) -> ValueT:
        """The value of `key`, made if it is not here. Two threads may both make it."""
        if (value := self.find(key)) is None:
            self.put(key, (value := make()), size(value))
        return value

    def find(self, key: Hashable) -> ValueT | None:
        """The value of `key`, if it is here."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def put(self, key: Hashable, value: ValueT, num_bytes: int) -> None:
        """Keep a value, and let the oldest go."""
        with self._lock:
            self._bytes += num_bytes - self._kept.pop(key, (value, 0))[1]
            self._kept[key] = (value, num_bytes)
            while self._bytes > self.max_bytes and self._kept:
                self._bytes -= self._kept.popitem(last=False)[1][1]
