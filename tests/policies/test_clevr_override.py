"""Trees of the override suite differ from those whose names they take."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastmpi.policies import clevr_override
from fastmpi.policies.clevr_override import override_trees
from fastmpi.policies.clevr_tree import ClevrTree
from fastmpi.policies.clevr_world import WORLDS

SMALLEST = replace(WORLDS["clevr"], asked={"size": ("small",)}, outcomes=("Case 1", "Case 2"))


def tree(seed: int) -> ClevrTree:
    cases = ("Case 1", "Case 2")
    return ClevrTree.sample(np.random.default_rng(seed), 1, "kavo", SMALLEST.asked, cases)


def test_never_the_same_tree_where_there_are_only_two() -> None:
    for seed in range(12):
        old = tree(seed)
        (new,) = override_trees(np.random.default_rng(seed), [old], SMALLEST)
        assert (new.name, new.depth) == (old.name, old.depth)
        assert new.root != old.root


def test_where_there_is_no_other_tree_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    old = tree(0)
    monkeypatch.setattr(clevr_override, "sample_tree", lambda *_: old)
    monkeypatch.setattr(clevr_override, "MAX_TREES", 5)
    with pytest.raises(ValueError, match="policy kavo: no other tree in 5 draws"):
        override_trees(np.random.default_rng(0), [old], SMALLEST)
