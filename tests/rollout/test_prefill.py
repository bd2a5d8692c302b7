"""Prompts are read once, and what they give does not depend on what was held before."""

from __future__ import annotations

import pytest
import torch

from fastmpi.data.batch import ForestBatch
from fastmpi.rollout.prefill import prefill
from fastmpi.rollout.segments import lay_out, make_requests


class _Held:
    """Keeps segments' keys and values as they come."""

    def __init__(self) -> None:
        self.kept = {}

    def write(self, layer, segment, keys, values):
        assert keys.shape[1] == segment.length and (layer, segment) not in self.kept
        self.kept[layer, segment] = (keys.clone(), values.clone())

    def read(self, layer, segment):
        return self.kept[layer, segment]


def _hidden(model, prompt):
    batch = ForestBatch.from_prompts([prompt], model.processor)
    with torch.no_grad():
        return model.hidden(batch)[-1], int(batch.position_ids.max()) + 1


@pytest.mark.parametrize("groups", [[[0, 1, 2, 3, 4, 5]], [[2, 4], [3, 0], [5, 1]]])
def test_parts_equal_the_whole(model, example_prompts, lift_casts, groups):
    """Also where what was read before begins with a picture."""
    lift_casts(model.base)
    requests = make_requests(example_prompts(model), [1] * 6)
    lay_out(requests, model.processor, 4)
    held, known, asked = _Held(), set(), []
    for group in groups:
        some = [requests[index] for index in group]
        prefill(
            model,
            some,
            lambda images: asked.append(images) or model.encode_images(images),
            held,
            known,
        )
        known |= {segment for request in some for segment in request.segments}
    assert {segment for _, segment in held.kept} == known
    for request in requests:
        hidden, position = _hidden(model, request.prompt)
        torch.testing.assert_close(request.hidden, hidden, rtol=0, atol=1e-12)
        assert request.position == position
    assert len(asked) == len(groups)


def test_only_pictures_that_are_read_are_encoded(qwen, example_prompts):
    """Two prompts end differently behind one picture: the second needs it no more."""
    one = example_prompts(qwen)[0]
    other = type(one)(one.ids.copy(), one.images)
    other.ids[-4] = other.ids[-5]
    requests = make_requests([one, other], [1, 1])
    lay_out(requests, qwen.processor, 4)
    held, asked = _Held(), []
    encode = lambda images: asked.append(len(images)) or qwen.encode_images(images)  # noqa: E731
    prefill(qwen, requests[:1], encode, held, set())
    prefill(qwen, requests[1:], encode, held, requests[0].segments)
    assert asked == [1, 0]
    hidden, _ = _hidden(qwen, other)
    torch.testing.assert_close(requests[1].hidden, hidden, rtol=0, atol=1e-6)
