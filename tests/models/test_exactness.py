"""The heart of the product: sharing changes nothing.

Every sample alone through the *stock* forward (transformers' own code, attention and positions)
against one forest, in fp64 with pictures of noise: log-probs and every parameter's gradient. The
loss weighs every text token with a random number, so that no two errors cancel.

The models cast to fp32 inside (norms, the vision tower's rotary embedding), which hides errors
of 1e-16 or blows them up to 1e-8. The exact tests lift these casts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from fastmpi.data.batch import ForestBatch
from fastmpi.data.samples import Sample
from fastmpi.models.attention import stock_attention
from fastmpi.models.forest_model import ForestModel

F64 = torch.float64


def lift_fp32_casts(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms and the vision tower's rotary embedding in the input's own precision."""

    def rms_norm(self, x):
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (x * scale)

    def rotate(x, cos, sin):
        first, second = x.chunk(2, dim=-1)
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    for kind in {type(m) for m in model.modules() if type(m).__name__.endswith("RMSNorm")}:
        monkeypatch.setattr(kind, "forward", rms_norm)
    modeling = __import__(type(model).__module__, fromlist=["_"])
    if hasattr(modeling, "apply_rotary_pos_emb_vision"):
        monkeypatch.setattr(
            modeling,
            "apply_rotary_pos_emb_vision",
            lambda q, k, cos, sin: (rotate(q, cos, sin), rotate(k, cos, sin)),
        )


class Maker:
    """Samples of noise: pictures, policies, questions and responses, by number."""

    def __init__(self, forest: ForestModel, seed: int = 0) -> None:
        self.processor = forest.processor
        self.rng = np.random.default_rng(seed)
        self.words = self.processor.encode(" red cube then else Case 3 small C1.1 yes no metal")

    def image(self):
        size = (int(self.rng.integers(40, 130)), int(self.rng.integers(40, 130)), 3)
        return self.processor.image(
            PIL.Image.fromarray(self.rng.integers(0, 256, size, dtype=np.uint8))
        )

    def text(self, length: int) -> np.ndarray:
        return self.rng.choice(self.words, length)

    def prompt(self, question: str, images, policy: str | None = None, policy_images=()):
        def turn(role, text, shown):
            parts = [{"type": "image"} for _ in shown]
            return {"role": role, "content": [*parts, {"type": "text", "text": text}]}

        system = [] if policy is None else [turn("system", policy, policy_images)]
        messages = [*system, turn("user", question, images)]
        return self.processor.prompt(messages, [*policy_images, *images])

    def sample(self, prompt, response) -> Sample:
        ids = np.concatenate([prompt.ids, np.asarray(response, np.int64)])
        weights = self.rng.uniform(-1, 1, len(ids)).astype(np.float32)
        weights[ids == self.processor.image_token_id] = 0
        weights[0] = 0
        return Sample(ids, prompt.images, weights)


def nested_policies(make: Maker) -> list[Sample]:
    """Two policies that begin alike, with a picture of their own, and no policy; two images."""
    shown, image, other = make.image(), make.image(), make.image()
    long, short = "policy kavo : C1 if red then Case 3 else Case 5", "policy kavo : C1 if red"
    prompts = [
        make.prompt("question kavo", [image], long, [shown]),
        make.prompt("question kavo", [image], short, [shown]),
        make.prompt("question", [image, other], long, [shown]),
        make.prompt("question kavo", [image]),
    ]
    return [make.sample(p, make.text(n)) for p in prompts for n in (5, 9)]


def ragged_responses(make: Maker) -> list[Sample]:
    """One prompt; responses that are unequal, empty, equal, and prefixes of each other."""
    prompt, long = make.prompt("question", [make.image()]), make.text(12)
    responses = [long, long[:7], long, [], make.text(3), [*long[:4], *make.text(6)], long[:1]]
    return [make.sample(prompt, response) for response in responses]


def identical(make: Maker) -> list[Sample]:
    sample = make.sample(make.prompt("question", [make.image()]), make.text(6))
    return [sample] * 3


def alone(make: Maker) -> list[Sample]:
    return [make.sample(make.prompt("question", [make.image()]), make.text(6))]


def other_image(make: Maker) -> list[Sample]:
    """Same ids, same sizes, other pixels, in a policy's picture and in the question's."""
    noise = [make.rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(3)]
    images = [make.processor.image(PIL.Image.fromarray(pixels)) for pixels in noise]
    response, samples = make.text(5), []
    for shown, image in ((0, 1), (0, 2), (1, 1), (2, 0)):
        prompt = make.prompt("question", [images[image]], "policy", [images[shown]])
        samples.append(make.sample(prompt, response))
    return samples


def without_pictures(make: Maker) -> list[Sample]:
    prompt = make.prompt("question kavo", [], "policy kavo : Case 3")
    return [make.sample(prompt, make.text(n)) for n in (4, 0, 7)]


CASES = (nested_policies, ragged_responses, identical, alone, other_image, without_pictures)


def forest_logprobs(forest: ForestModel, samples: list[Sample], *, share: bool = True):
    """Log-prob of each scored token in the samples' order, and its weight."""
    batch = ForestBatch.from_samples(samples, forest.processor, share=share)
    scores = batch.sample_scores()

    def head_fn(hidden: Tensor, head: Tensor) -> Tensor:
        logits = hidden[scores.rows] @ head.T
        return logits.log_softmax(-1).gather(1, scores.targets[:, None])[:, 0]

    return forest(batch, head_fn), scores.weights


def stock_logprobs(forest: ForestModel, sample: Sample) -> Tensor:
    """The same of one sample alone, by the model's own forward."""
    model, processor = forest.base, forest.processor
    ids = torch.from_numpy(sample.ids)[None]
    inputs = {}
    if processor.rope == "mrope":
        inputs["mm_token_type_ids"] = (ids == processor.image_token_id).int()
    if sample.images and processor.rope == "mrope":
        inputs["pixel_values"] = torch.cat([image.pixels for image in sample.images])
        inputs["image_grid_thw"] = torch.tensor([image.grid for image in sample.images])
    elif sample.images:
        pixels = torch.stack([image.pixels for image in sample.images])
        inputs["pixel_values"] = pixels.to(model.dtype)
    with stock_attention(model):
        logits = model(input_ids=ids, **inputs).logits[0]
    where = torch.from_numpy(np.flatnonzero(sample.weights))
    return logits.log_softmax(-1)[where - 1].gather(1, ids[0, where, None])[:, 0]


def gradients(forest: ForestModel, loss: Tensor) -> dict[str, Tensor]:
    forest.zero_grad()
    loss.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in forest.named_parameters()
        if p.requires_grad
    }


def stock(forest: ForestModel, samples: list[Sample]) -> tuple[Tensor, dict[str, Tensor]]:
    weights = [torch.from_numpy(s.weights[s.weights != 0]) for s in samples]
    logprobs = torch.cat([stock_logprobs(forest, sample) for sample in samples])
    return logprobs.detach(), gradients(forest, (logprobs * torch.cat(weights)).sum())


def shared(forest: ForestModel, samples: list[Sample], **options):
    logprobs, weights = forest_logprobs(forest, samples, **options)
    return logprobs.detach(), gradients(forest, (logprobs * weights).sum())


def worst(found: dict[str, Tensor], expected: dict[str, Tensor], error: Callable) -> float:
    assert found.keys() == expected.keys()
    return max(float(error(found[name], expected[name])) for name in expected)


def absolute(found: Tensor, expected: Tensor) -> Tensor:
    return (found - expected).abs().max()


@pytest.mark.parametrize("train_vision", [False, True], ids=["frozen", "vision"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_shared_equals_stock_exactly(family, case, train_vision, load, monkeypatch):
    forest = load(family, dtype=F64)
    forest.set_trainable(freeze_vision=not train_vision, freeze_merger=not train_vision)
    lift_fp32_casts(forest.base, monkeypatch)
    samples = case(Maker(forest))
    expected, expected_gradients = stock(forest, samples)
    found, found_gradients = shared(forest, samples)
    assert absolute(found, expected) <= 1e-12
    assert worst(found_gradients, expected_gradients, absolute) <= 1e-10
    if train_vision and samples[0].images:
        vision = [g for name, g in found_gradients.items() if forest.family.vision_prefix in name]
        assert vision and max(g.abs().max() for g in vision) > 1e-3


@pytest.mark.parametrize("case", (nested_policies, other_image), ids=lambda case: case.__name__)
def test_shared_equals_stock_as_it_stands(family, case, load):
    """With the model's fp32 casts: relative to all gradients together."""
    forest = load(family, dtype=F64)
    forest.set_trainable(freeze_vision=False, freeze_merger=False)
    samples = case(Maker(forest))
    expected, expected_gradients = stock(forest, samples)
    found, found_gradients = shared(forest, samples)
    norm = torch.stack([g.norm() for g in expected_gradients.values()]).norm()
    assert absolute(found, expected) <= 1e-6 * expected.abs().max()
    assert worst(found_gradients, expected_gradients, lambda a, b: (a - b).norm()) <= 1e-6 * norm


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_packed_equals_shared(family, case, load, monkeypatch):
    forest = load(family, dtype=F64)
    lift_fp32_casts(forest.base, monkeypatch)
    samples = case(Maker(forest, seed=1))
    expected, expected_gradients = shared(forest, samples)
    found, found_gradients = shared(forest, samples, share=False)
    assert absolute(found, expected) <= 1e-12
    assert worst(found_gradients, expected_gradients, absolute) <= 1e-10


def test_packed_equals_stock(family, load, monkeypatch):
    forest = load(family, dtype=F64)
    lift_fp32_casts(forest.base, monkeypatch)
    samples = nested_policies(Maker(forest, seed=2))
    expected, expected_gradients = stock(forest, samples)
    found, found_gradients = shared(forest, samples, share=False)
    assert absolute(found, expected) <= 1e-12
    assert worst(found_gradients, expected_gradients, absolute) <= 1e-10


def test_a_changed_suffix_leaves_the_others_bit_identical(family, load):
    forest = load(family)
    make = Maker(forest)
    samples = ragged_responses(make)
    changed = list(samples)
    ids = samples[4].ids.copy()
    ids[-3:] = make.words[[0, 4, 2]]
    assert (ids[-3:] != samples[4].ids[-3:]).all()
    changed[4] = Sample(ids, samples[4].images, samples[4].weights)
    with torch.no_grad():
        rows = [suffix_hidden(forest, s) for s in (samples, changed)]
    for i in range(len(samples)):
        assert torch.equal(rows[0][i], rows[1][i]) == (i != 4)


def suffix_hidden(forest: ForestModel, samples: list[Sample]) -> list[Tensor]:
    batch = ForestBatch.from_samples(samples, forest.processor)
    rows = forest.hidden(batch)[batch.flat_index]
    return list(rows.tensor_split(batch.offsets.tolist()[1:-1]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_positions_are_the_models_own(family, case, load):
    forest = load(family)
    samples = case(Maker(forest))
    batch = ForestBatch.from_samples(samples, forest.processor)
    found = batch.position_ids[:, batch.flat_index].tensor_split(batch.offsets.tolist()[1:-1], 1)
    for sample, positions in zip(samples, found, strict=True):
        assert torch.equal(positions, own_positions(forest, sample))


def own_positions(forest: ForestModel, sample: Sample) -> Tensor:
    ids = torch.from_numpy(sample.ids)[None]
    if forest.processor.rope == "linear" or not sample.images:
        return torch.arange(len(sample.ids)).expand(3, -1)
    grids = torch.tensor([image.grid for image in sample.images])
    kinds = (ids == forest.processor.image_token_id).int()
    return forest.base.model.get_rope_index(ids, kinds, grids)[0][:, 0]


def test_the_cases_share_what_they_say(family, load):
    """A forest of one path would prove nothing, and pictures that differ must not merge."""
    forest = load(family)
    batches = {
        case: ForestBatch.from_samples(case(Maker(forest)), forest.processor) for case in CASES
    }
    saved = {case: 1 - b.num_tokens / b.num_unshared_tokens for case, b in batches.items()}
    assert saved[nested_policies] > 0.3 and saved[ragged_responses] > 0.5
    assert saved[identical] == pytest.approx(2 / 3) and saved[alone] == 0
    assert len(batches[other_image].images) == 3
    shown = [batches[other_image].feature_rows.tolist().count(i) for i in (0,)]
    assert shown == [2]  # as a policy's picture, shared by two samples, and as a question's
