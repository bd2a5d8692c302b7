"""A model on a GPU says what it says on the CPU: in training, in mixed precision, in sampling."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from fastmpi.data.batch import ForestBatch
from fastmpi.data.samples import Prompt
from fastmpi.models.forest_model import ForestModel
from fastmpi.ops.token_logprob import token_loss
from fastmpi.rollout.native import NativeEngine
from fastmpi.rollout.sampling import SamplingParams

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
SIZES = ((60, 90, 3), (100, 50, 3))


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """Convolutions of fp32 are fp32, which cuDNN does not do by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def prompts(forest: ForestModel) -> list[Prompt]:
    """Two questions to one picture, and one to another."""
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 256, size, dtype=np.uint8) for size in SIZES)
    asked = [(first, " red cube"), (first, " red then else"), (second, " Case 3")]
    made = []
    for pixels, text in asked:
        content = [{"type": "image"}, {"type": "text", "text": text}]
        image = forest.processor.image(PIL.Image.fromarray(pixels))
        made.append(forest.processor.prompt([{"role": "user", "content": content}], [image]))
    return made


def trained(forest: ForestModel, dtype: torch.dtype | None = None) -> list[Tensor]:
    """The mean loss of all tokens and its gradients, in float64 on the CPU."""
    batch = ForestBatch.from_prompts(prompts(forest), forest.processor).to(forest.device)
    inner = batch.parent >= 0
    rows, targets = batch.parent[inner], batch.tokens[inner]
    weights = torch.full(rows.shape, 1 / len(rows), device=forest.device)

    def loss(hidden: Tensor, head: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return token_loss(hidden, head, rows, targets, weights, dtype=dtype).loss

    value = forest(batch, loss)
    parameters = [p for p in forest.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    found = (value, *(g for g in gradients if g is not None))
    return [x.detach().double().cpu().flatten() for x in found]


def relative_errors(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
    """Of the loss, and of all gradients together."""
    pairs = (found[0], wanted[0]), (torch.cat(found[1:]), torch.cat(wanted[1:]))
    return [float((a - b).norm() / b.norm()) for a, b in pairs]


def test_training_in_fp32(family, load):
    forest = load(family)
    forest.set_trainable(freeze_vision=False, freeze_merger=False)
    wanted = trained(forest)
    assert max(relative_errors(trained(forest.to(DEVICE)), wanted)) < 1e-3


def test_training_in_mixed_precision(family, load):
    """An adapter over frozen weights in fp32, layers computed again in the backward pass."""
    forest = load(family)
    forest.add_lora(4, 8)
    torch.manual_seed(0)
    for name, parameter in forest.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    wanted = trained(forest)
    forest.gradient_checkpointing()
    forest.to(DEVICE).train()
    with torch.autocast(DEVICE, torch.bfloat16):
        loss, gradients = relative_errors(trained(forest, torch.bfloat16), wanted)
    assert loss < 0.01 and gradients < 0.1


def test_a_model_in_bf16(family, load):
    forest = load(family, dtype=torch.bfloat16)
    wanted = trained(forest)
    loss, gradients = relative_errors(trained(forest.to(DEVICE)), wanted)
    assert loss < 0.01 and gradients < 0.1


def test_sampling(family, load):
    forest = load(family)
    greedy = SamplingParams(max_tokens=8, temperature=0.0)
    wanted = NativeEngine(forest).generate(prompts(forest), 2, greedy)
    found = NativeEngine(forest.to(DEVICE)).generate(prompts(forest), 2, greedy)
    for ours, theirs in zip(sum(found, []), sum(wanted, []), strict=True):
        assert ours.ids.tolist() == theirs.ids.tolist()
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-3)
