"""forest_attention compiles for a head size, not for a forest; torch.compile sees its operator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from fastmpi.ops.forest_attention import forest_attention, plan_forest

pytest.importorskip("triton")


COMPILED = """
import runpy, sys
import torch
from fastmpi.ops.forest_attention import forest_attention

gate = runpy.run_path(sys.argv[1])
with gate["compile_only"](90) as compiled:
    for total in (256, 300, 1001):
        for end in (torch.arange(total) + 1, torch.full((total,), total)):
            q, k, v = (torch.randn(h, total, 64).half().transpose(0, 1) for h in (2, 1, 1))
            out = forest_attention(q.requires_grad_(), k, v, end.int(), backend="triton")
            out.sum().backward()
print(len(compiled), len({id(kernel) for _, kernel in compiled}))
"""


def test_other_forests_compile_nothing(tmp_path):
    """Three lengths and two forests: 18 launches of three kernels, for a GPU that is not here."""
    script = Path(__file__).parents[2] / "scripts" / "compile_kernels.py"
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, str(script)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["18", "3"]


def test_one_graph_for_all_lengths():
    """torch.compile in one piece; lengths after the second recompile nothing."""

    def attend(q, k, v, end, plan):
        return forest_attention(2 * q, k, v, end, backend="triton", plan=plan) + 1

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attend, dynamic=True, backend=counter, fullgraph=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for total in (20, 33, 47):
        end = torch.full((total,), total, dtype=torch.int32, device=device)
        plan = plan_forest(end, "triton")
        tensors = [torch.randn(total, h, 16, device=device).requires_grad_() for h in (2, 1, 1)]
        outs = [function(*tensors, end, plan) for function in (compiled, attend)]
        grads = [torch.autograd.grad(out.sum(), tensors) for out in outs]
        for ours, eager in zip((outs[0], *grads[0]), (outs[1], *grads[1]), strict=True):
            assert torch.allclose(ours, eager, atol=1e-5)
    assert counter.frame_count <= 2
