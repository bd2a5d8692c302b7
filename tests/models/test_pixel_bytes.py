"""Pictures as bytes give the features that normalised pixels give, in value and gradient."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from time import sleep

import numpy as np
import PIL.Image
import pytest
import torch

from fastmpi.models import pixel_bytes, qwen_vl
from fastmpi.models.pixel_bytes import takes_bytes

QWEN = ("qwen2_5_vl", "qwen3_vl")


def pictures(forest):
    rng = np.random.default_rng(3)
    sizes = ((60, 90), (100, 50), (64, 64))
    arrays = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    return [forest.processor.image(PIL.Image.fromarray(array)) for array in arrays]


@pytest.mark.parametrize("family", QWEN)
def test_features_and_gradients(family, load, monkeypatch):
    forest = load(family, dtype=torch.float64)
    forest.set_trainable(freeze_vision=False)
    weight = forest.base.model.visual.patch_embed.proj.weight
    images = pictures(forest)
    assert all(image.patches is not None for image in images)
    found = {}
    for as_bytes in (False, True):
        monkeypatch.setattr(qwen_vl, "takes_bytes", lambda *_, on=as_bytes: on)
        rows = forest.encode_images(images).rows
        gradient = torch.autograd.grad(rows.square().sum(), weight)[0]
        found[as_bytes] = rows.detach(), gradient
    for values, wanted in zip(found[True], found[False], strict=True):
        assert (values - wanted).norm() <= 1e-6 * wanted.norm()  # stock pixels are float32
        assert not values.equal(wanted)


@pytest.mark.parametrize("family", QWEN)
def test_the_layer_is_itself_again(family, load, monkeypatch):
    forest = load(family)
    layer = forest.base.model.visual.patch_embed
    monkeypatch.setattr(qwen_vl, "takes_bytes", lambda *_: True)
    forest.encode_images(pictures(forest))
    assert "forward" not in vars(layer)
    monkeypatch.setattr(pixel_bytes, "patch_embed", _broken)
    with pytest.raises(ZeroDivisionError):
        forest.encode_images(pictures(forest))
    assert "forward" not in vars(layer)


def _broken(*_):
    raise ZeroDivisionError


def test_two_threads_encode_in_turn(load, monkeypatch):
    """One trains while the other samples ahead, both with the tower that does not train."""
    forest = load("qwen2_5_vl")
    images = pictures(forest)
    monkeypatch.setattr(qwen_vl, "takes_bytes", lambda *_: True)
    wanted = forest.encode_images(images).rows
    embed, begun, inside, most = pixel_bytes.patch_embed, Barrier(2), [], []

    def slow(*args):
        inside.append(None)
        most.append(len(inside))
        sleep(0.1)
        inside.pop()
        return embed(*args)

    def encode(_):
        begun.wait(timeout=60)
        return forest.encode_images(images).rows

    monkeypatch.setattr(pixel_bytes, "patch_embed", slow)
    with ThreadPoolExecutor(2) as threads:
        assert all(rows.equal(wanted) for rows in threads.map(encode, range(2)))
    assert most == [1, 1]


def test_the_cpu_takes_pixels(load):
    forest = load("qwen2_5_vl")
    weight = forest.base.model.visual.patch_embed.proj.weight
    assert not takes_bytes(weight, pictures(forest))


@pytest.mark.gpu
@pytest.mark.parametrize("family", QWEN)
def test_on_cuda(family, load, monkeypatch):
    forest = load(family, dtype=torch.bfloat16)
    forest.to("cuda")
    images = pictures(forest)
    assert takes_bytes(forest.base.model.visual.patch_embed.proj.weight, images)
    found = forest.encode_images(images).rows.float()
    monkeypatch.setattr(qwen_vl, "takes_bytes", lambda *_: False)
    wanted = forest.encode_images(images).rows.float()
    assert (found - wanted).norm() <= 0.02 * wanted.norm()
