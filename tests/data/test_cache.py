from __future__ import annotations

from fastmpi.data.cache import BoundedCache


def test_cache_forgets_the_least_used() -> None:
    made: list[str] = []
    cache: BoundedCache[str] = BoundedCache(2)

    def get(key: str) -> str:
        return cache.get(key, lambda: made.append(key) or key, lambda value: 1)

    for key in "abacab":
        assert get(key) == key
    assert made == ["a", "b", "c", "b"] and len(cache) == 2
    assert BoundedCache(1).get("big", lambda: "big", lambda value: 5) == "big"
