"""A tiny random model, a tiny data set, and an engine that says what it is told."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastmpi.evaluation.evaluation import Evaluation
from fastmpi.evaluation.result import EvalInputs
from fastmpi.models.forest_model import ForestModel
from fastmpi.rollout.engine import Response
from fastmpi.rollout.native import NativeEngine

sys.path.insert(0, str(Path(__file__).parent))
from evaluation_folders import make_data  # noqa: E402


@pytest.fixture(scope="session")
def model(tiny_folder: Callable[[str], Path]) -> ForestModel:
    return ForestModel.from_pretrained(tiny_folder("qwen2_5_vl"), probe=False)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("evaluation") / "data")


class Told:
    """An engine that answers each prompt by `say(its text)`, and keeps the texts."""

    def __init__(self, processor: Any, say: Callable[[str], str]) -> None:
        self.processor, self.say, self.asked = processor, say, []

    def generate(self, prompts: Any, num_responses: Any, params: Any, *, streams: Any) -> Any:
        texts = [self.processor.decode(prompt.ids) for prompt in prompts]
        self.asked += texts
        ids = [self.processor.encode_response(self.say(text)) for text in texts]
        return [[Response(i, np.zeros(len(i), np.float32), True)] for i in ids]


@pytest.fixture
def ask(model: ForestModel, data: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`ask(say=None, overwrite="never", on_batch=None, **settings)`: an evaluation of the data in
    `tmp_path`/eval, by the model itself or by what `say` makes of a prompt."""

    def make(
        say: Callable[[str], str] | None = None,
        folder: str = "eval",
        model_to_ask: ForestModel = model,
        **settings: Any,
    ) -> SimpleNamespace:
        options = {k: settings.pop(k) for k in ("overwrite", "on_batch") if k in settings}
        values = {"model": "m", "data_dir": str(data), "max_completion_length": 6,
                  "num_timed_prompts": 1, **settings}  # fmt: skip
        engine = Told(model.processor, say) if say else NativeEngine(model)
        inputs = EvalInputs.from_dict(values)
        evaluation = Evaluation(model_to_ask, engine, inputs, tmp_path / folder, **options)
        return SimpleNamespace(evaluation=evaluation, engine=engine, path=tmp_path / folder)

    yield make
