"""Tiny models of all families in fp64, prompts with pictures, and transformers' own generate."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch

from fastmpi.data.samples import Prompt
from fastmpi.models.attention import stock_attention
from fastmpi.models.forest_model import ForestModel
from fastmpi.models.tiny import FAMILIES, tiny_model

POLICY = "policy kavo : C1 if red then Case 3 else Case 5 end"


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory):
    folders = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    for seed, (family, folder) in enumerate(folders.items()):
        tiny_model(family, seed=seed, folder=folder)
    return folders


@pytest.fixture(scope="session")
def load_tiny(tiny_folders):
    return lambda family, dtype=torch.float64: ForestModel.from_pretrained(
        tiny_folders[family], dtype=dtype, probe=False, device="cpu"
    )


@pytest.fixture(scope="session", params=FAMILIES)
def model(request, load_tiny) -> ForestModel:
    return load_tiny(request.param)


@pytest.fixture(scope="session")
def qwen(load_tiny) -> ForestModel:
    return load_tiny("qwen2_5_vl")


def _noise_image(model: ForestModel, seed: int, size: tuple[int, int] = (60, 90)):
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return model.processor.image(PIL.Image.fromarray(noise))


def _ask(model: ForestModel, question: str, images=(), policy: str | None = None) -> Prompt:
    parts = [{"type": "image"} for _ in images]
    system = [] if policy is None else [{"role": "system", "content": policy}]
    user = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
    return model.processor.prompt([*system, user], list(images))


def _example_prompts(model: ForestModel) -> list[Prompt]:
    """Unequal lengths; no picture, one, two; two share a policy, two differ by picture alone."""
    one, two = _noise_image(model, 1), _noise_image(model, 2, (120, 60))
    return [
        _ask(model, "question kavo", [one]),
        _ask(model, "question kavo", [two]),
        _ask(model, "question kavo", [one], policy=POLICY),
        _ask(model, "question kavo, please", [two], policy=POLICY),
        _ask(model, "Case 1"),
        _ask(model, "compare", [two, one]),
    ]


def _stock_generate(model: ForestModel, prompt: Prompt, max_tokens: int) -> list[int]:
    """Greedy tokens of transformers' own generate, one prompt alone."""
    ids = torch.from_numpy(prompt.ids)[None]
    inputs = model.family.image_inputs(model.base, prompt.images) if prompt.images else {}
    inputs |= model.family.token_inputs(ids == model.processor.image_token_id)
    with stock_attention(model.base), torch.no_grad():
        out = model.base.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            suppress_tokens=list(model.processor.forbidden_token_ids),
            eos_token_id=list(model.processor.eos_token_ids),
            pad_token_id=model.processor.eos_token_ids[0],
            **inputs,
        )
    return out[0, len(prompt.ids) :].tolist()


@pytest.fixture(scope="session")
def example_prompts():
    return _example_prompts


@pytest.fixture(scope="session")
def stock_generate():
    return _stock_generate


@pytest.fixture
def lift_casts(monkeypatch):
    """Makes the norms of a text tower work in the input's own precision."""

    def rms_norm(self, x):
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (x * scale)

    def lift(model: torch.nn.Module) -> None:
        norms = {type(m) for m in model.modules() if type(m).__name__.endswith("RMSNorm")}
        for kind in norms:
            monkeypatch.setattr(kind, "forward", rms_norm)

    return lift
