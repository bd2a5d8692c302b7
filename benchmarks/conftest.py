"""`pytest benchmarks/`: one thread, as in the tests, so that runs on shared machines compare."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
