"""The bench of sharing compares like with like."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastmpi.benchmarks.bench_sharing import measure
from fastmpi.recipe import find_recipe
from fastmpi.stages.chain import prepare_data


@pytest.mark.parametrize("stage", ["cpt", "rl"])
def test_both_arms_have_the_same_gradient(tmp_path, stage):
    recipe = replace(find_recipe("demo_quick", {}, {}), output_dir=str(tmp_path))
    found = measure(recipe.stage(stage), recipe, prepare_data(recipe), steps=1)
    assert found.merged_tokens < found.tokens
    assert found.gradient_difference < 1e-4
    assert found.shared_s > 0 and found.unshared_s > 0
