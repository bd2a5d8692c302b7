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


def test_find_keeps_what_it_finds() -> None:
    cache: BoundedCache[str] = BoundedCache(2)
    for key in "ab":
        cache.put(key, key, 1)
    assert cache.find("a") == "a" and cache.find("c") is None
    cache.put("c", "c", 1)
    assert cache.find("b") is None and cache.find("a") == "a", "b was used least"
