"""`rollout`: G responses to each of some prompts, with a long policy before them and without.

All arms have the same weights and prompts, take the likeliest token, and stop at no token, so that
every response has the same length. What an arm does with equal prompts is its own affair:
`generate` is transformers', which repeats them; `continuous` its continuous batching, which knows
no pictures; `fastmpi, prompts apart` holds a copy of the policy for each prompt; `fastmpi, a
quarter` has memory for all prompts and a quarter of the responses, so that slots are filled anew.
`error` is the share of tokens that are not those of the float64 model; the weights are random, so
that ties are near and bfloat16 differs.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from fastmpi.benchmarks.harness import Case, Outputs, Run, Unavailable
from fastmpi.benchmarks.update_rollouts import (
    QWEN_3B_TEXT,
    QWEN_3B_VISION,
    SMALL_TEXT,
    SMALL_VISION,
    random_model,
    random_prompt,
    random_text,
)
from fastmpi.data.samples import Prompt
from fastmpi.models.attention import stock_attention
from fastmpi.models.forest_model import ForestModel
from fastmpi.models.sizes import TextShape
from fastmpi.rollout.native import NativeEngine
from fastmpi.rollout.pool import token_bytes
from fastmpi.rollout.sampling import SamplingParams

G = 16
RUNS = {"cuda": 3, "cpu": 5}  # of up to a minute


@dataclass(frozen=True)
class Shape:
    """policy, image, question: tokens of each part of a prompt; image 0: a prompt of text."""

    name: str
    text: dict[str, Any]
    vision: dict[str, Any]
    dtype: torch.dtype
    prompts: int
    policy: int
    image: int
    question: int
    new_tokens: int
    exact: bool


def cases(device: torch.device, small: bool) -> list[Case]:
    """Small models of a few million parameters; on CUDA Qwen2.5-VL-3B's shapes."""
    shapes = small_shapes() if small else _large()
    return [case_of(shape, device) for shape in shapes]


def small_shapes() -> list[Shape]:
    """With a policy and without, with a picture and without, and a policy of full length."""
    return [_small(0, 64), _small(512, 64), _small(512, 0), _small(4096, 64, prompts=2)]


def _small(policy: int, image: int, prompts: int = 3) -> Shape:
    kind = "" if image else " text"
    name = f"small policy={policy} prompt={image + 36} x{prompts} G={G} R=16{kind}"
    sizes = (SMALL_TEXT, SMALL_VISION, torch.float32, prompts, policy, image, 36, 16, True)
    return Shape(name, *sizes)


def _large() -> list[Shape]:
    found = []
    for policy, image in ((0, 1024), (4096, 1024), (4096, 0)):
        name = f"3B policy={policy} prompt={image + 128} x8 G={G} R=256{'' if image else ' text'}"
        sizes = (QWEN_3B_TEXT, QWEN_3B_VISION, torch.bfloat16, 8, policy, image, 128, 256, False)
        found.append(Shape(name, *sizes))
    return found


@dataclass(frozen=True, eq=False)
class Inputs:
    shape: Shape
    model: ForestModel
    prompts: list[Prompt]

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(self.shape.new_tokens, temperature=0.0, stop_token_ids=())

    @property
    def quarter_gib(self) -> float:
        """For the keys and values of all prompts and a quarter of the responses."""
        responses = len(self.prompts) * G * (self.shape.new_tokens - 1)
        prompts = self.shape.policy + sum(len(p.ids) - self.shape.policy for p in self.prompts)
        size = token_bytes(TextShape.of(self.model.base.config), self.model.dtype)
        return (prompts + responses // 4) * size / 2**30

    def outputs(self, tokens: Sequence[Sequence[int]]) -> Outputs:
        """tokens: of all responses, those of one prompt side by side."""
        assert len(tokens) == len(self.prompts) * G
        return {"tokens": torch.tensor(np.array(tokens))}


def make_inputs(shape: Shape, device: torch.device) -> Inputs:
    """A random model, and prompts that begin with the same random policy."""
    model = random_model(shape.text, shape.vision, device, shape.dtype).eval()
    rng = np.random.default_rng(0)
    policy = random_text(model.processor, rng, shape.policy)
    prompts = []
    for _ in range(shape.prompts):
        if shape.image:
            asked = random_prompt(model.processor, rng, shape.image, shape.question)
        else:
            asked = Prompt(random_text(model.processor, rng, shape.question), ())
        prompts.append(Prompt(np.concatenate([policy, asked.ids]), asked.images))
    return Inputs(shape, model, prompts)


def case_of(shape: Shape, device: torch.device) -> Case:
    """All arms of one shape. counts: tokens that are sampled, and those of all prompts."""
    inputs = cache(partial(make_inputs, shape, device))
    arms: dict[str, Callable[[], Run]] = {
        "fastmpi": lambda: native(inputs()),
        "fastmpi, prompts apart": lambda: native(inputs(), min_shared_tokens=10**9),
        "fastmpi, a quarter": lambda: native(inputs(), memory_gib=inputs().quarter_gib),
        "generate": lambda: generate(inputs()),
        "continuous": lambda: continuous(inputs()),
        "vllm": lambda: vllm(inputs()),
    }
    read = shape.policy + shape.image + shape.question
    counts = {"new_tokens": shape.prompts * G * shape.new_tokens, "prompt_tokens": read}
    wanted = (lambda: exact(inputs())) if shape.exact else None
    return Case(name=shape.name, arms=arms, exact=wanted, error=differing, counts=counts)


def differing(outputs: Outputs, wanted: Outputs) -> float:
    """The share of tokens that differ."""
    return float((outputs["tokens"] != wanted["tokens"]).double().mean())


def native(inputs: Inputs, **options: Any) -> Run:
    """Our engine, as the rl stage calls it."""
    engine = NativeEngine(inputs.model, **options)

    def run() -> Outputs:
        groups = engine.generate(inputs.prompts, G, inputs.params)
        return inputs.outputs([response.ids.tolist() for group in groups for response in group])

    return run


def generate(inputs: Inputs) -> Run:
    """transformers' generate: left-padded rows, every prompt G times."""
    model, count = inputs.model, inputs.shape.new_tokens
    repeated = [prompt for prompt in inputs.prompts for _ in range(G)]
    length = max(len(prompt.ids) for prompt in repeated)
    ids = torch.zeros(len(repeated), length, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(repeated):
        ids[row, length - len(prompt.ids) :] = torch.from_numpy(prompt.ids)
        mask[row, length - len(prompt.ids) :] = 1
    images = [image for prompt in repeated for image in prompt.images]
    ids, mask = ids.to(model.device), mask.to(model.device)

    def run() -> Outputs:
        pictures = model.family.image_inputs(model.base, images) if images else {}
        pictures |= model.family.token_inputs(ids == model.processor.image_token_id)
        with stock_attention(model.base), torch.no_grad():
            out = model.base.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                suppress_tokens=list(model.processor.forbidden_token_ids),
                eos_token_id=[],
                pad_token_id=0,
                **pictures,
            )
        return inputs.outputs(out[:, length:].tolist())

    return run


def continuous(inputs: Inputs) -> Run:
    """transformers' continuous batching with its paged cache."""
    if inputs.shape.image:
        raise Unavailable("transformers' continuous batching takes no pictures")
    if inputs.model.device.type != "cuda":
        raise Unavailable("needs a CUDA device")
    from transformers import GenerationConfig

    logging.getLogger("transformers").setLevel(logging.ERROR)
    count = inputs.shape.new_tokens
    config = GenerationConfig(
        max_new_tokens=count, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    rows = [prompt.ids.tolist() for prompt in inputs.prompts for _ in range(G)]

    def run() -> Outputs:
        with stock_attention(inputs.model.base):
            out = inputs.model.base.generate_batch(rows, generation_config=config)
        answers = sorted(out.values(), key=lambda answer: int(answer.request_id.split("_")[-1]))
        return inputs.outputs([answer.generated_tokens[:count] for answer in answers])

    return run


def vllm(inputs: Inputs) -> Run:
    """vLLM with prefix caching, in this process; it loads a copy of the weights."""
    try:
        from vllm import LLM
        from vllm import SamplingParams as Params
    except ImportError:
        raise Unavailable("not installed") from None
    if inputs.shape.image:
        raise Unavailable("takes pictures, and these prompts have only patches of noise")
    if inputs.model.device.type != "cuda":
        raise Unavailable("needs a CUDA device")
    import tempfile

    folder = tempfile.mkdtemp()
    inputs.model.save_pretrained(folder)
    engine = LLM(folder, enable_prefix_caching=True, gpu_memory_utilization=0.4, seed=0)
    count = inputs.shape.new_tokens
    params = Params(n=G, temperature=0.0, max_tokens=count, min_tokens=count, ignore_eos=True)
    prompts = [{"prompt_token_ids": prompt.ids.tolist()} for prompt in inputs.prompts]

    def run() -> Outputs:
        engine.reset_prefix_cache()  # each step has new weights
        out = engine.generate(prompts, params, use_tqdm=False)
        return inputs.outputs([list(one.token_ids) for answer in out for one in answer.outputs])

    return run


def exact(inputs: Inputs) -> Outputs:
    """The tokens of the float64 model, one prompt alone."""
    model = ForestModel(copy.deepcopy(inputs.model.base).double(), inputs.model.processor).eval()
    engine = NativeEngine(model)
    alone = [engine.generate([prompt], 1, inputs.params)[0][0] for prompt in inputs.prompts]
    return inputs.outputs([response.ids.tolist() for response in alone for _ in range(G)])
