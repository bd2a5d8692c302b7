"""At load: does the forest say what the model itself says?

Two branches of one prompt with a picture go through the forest, and each alone through the stock
forward with its own attention and its own positions. What the refusals do not know of (another
rotary embedding, another place for features, a newer transformers) shows up here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from fastmpi.data.batch import ForestBatch
from fastmpi.data.samples import Prompt
from fastmpi.models.attention import stock_attention

if TYPE_CHECKING:
    from fastmpi.models.forest_model import ForestModel

# Relative error of the logits. A wrong mask or position is off by far more; below, rounding is.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
LOW_PRECISION_TOLERANCE = 0.1


@torch.no_grad()
def probe(forest: ForestModel) -> float:
    """The largest relative error of the forest's logits against the stock forward's.

    `ValueError` where it is above the tolerance of the model's dtype.
    """
    training = forest.training
    forest.eval()
    prompts = probe_prompts(forest)
    batch = ForestBatch.from_prompts(prompts, forest.processor).to(forest.device)
    assert batch.num_tokens < batch.num_unshared_tokens, "the probe must share something"
    with _without_tf32():
        rows = forest.hidden(batch)[batch.flat_index]
        ends = batch.offsets.tolist()[1:-1]
        errors = [
            _relative_error(hidden @ forest.head.T, stock_logits(forest, prompt))
            for hidden, prompt in zip(rows.tensor_split(ends), prompts, strict=True)
        ]
    forest.train(training)
    tolerance = TOLERANCE.get(forest.dtype, LOW_PRECISION_TOLERANCE)
    if not max(errors) <= tolerance:
        raise ValueError(
            f"{forest.base.config.model_type!r} cannot be trained here: as a forest its logits "
            f"differ from its own forward by {max(errors):.2g}, more than {tolerance:.2g}"
        )
    return max(errors)


@contextmanager
def _without_tf32() -> Iterator[None]:
    """fp32 products in fp32. cuDNN's convolutions, which only the stock forward has, keep ten bits
    by default; that alone would come near the tolerance."""
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


def probe_prompts(forest: ForestModel) -> list[Prompt]:
    """Two prompts that agree up to and beyond a picture of noise, and then do not."""
    processor = forest.processor
    noise = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    image = processor.image(PIL.Image.fromarray(noise))
    shown = np.full(image.num_tokens, processor.image_token_id)
    first, then = processor.encode("A picture:"), processor.encode("It shows")
    ends = (processor.encode(" one thing."), processor.encode(" Case another, and another."))
    return [Prompt(np.concatenate([first, shown, then, end]), (image,)) for end in ends]


def stock_logits(forest: ForestModel, prompt: Prompt) -> Tensor:
    """(L, V) logits of `prompt` alone, by the model's own forward and attention."""
    model, family = forest.base, forest.family
    ids = torch.from_numpy(prompt.ids)[None].to(forest.device)
    inputs = family.image_inputs(model, prompt.images) if prompt.images else {}
    tokens = family.token_inputs(ids == forest.processor.image_token_id)
    with stock_attention(model):
        return model(input_ids=ids, use_cache=False, **inputs, **tokens).logits[0]


def _relative_error(logits: Tensor, expected: Tensor) -> float:
    """Of log-probs, which a constant added to all logits leaves alone."""
    logits, expected = (x.double().log_softmax(-1) for x in (logits, expected))
    spread = expected - expected.mean(-1, keepdim=True)
    return float((logits - expected).norm() / spread.norm())
