"""`ops.images`: decoded pictures to the patches that a vision tower takes.

Arms named uint8 give bytes of one frame (as ours does, into memory that is kept, for `patch_embed`
to normalise on the device), the others normalised float32 with the frame repeated. `pil` is
transformers' own processor. `torch` is its torch path, which needs torchvision, written in torch
alone, and without the copy that transformers makes of the picture first. `numpy` is Pillow's resize
and one transposition, the least that Python can do. Pictures are smooth noise; time does not depend
on what they show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fastmpi.benchmarks.harness import Case, Outputs, Run
from fastmpi.ops.images import PatchRule, image_patches, patch_grids, value_table
from fastmpi.ops.threads import thread_count
from fastmpi.reference import images as reference

Picture = NDArray[np.uint8]

RULE = PatchRule(14, 2, 56 * 56, 28 * 28 * 1280)  # as Qwen2.5-VL's processor has it
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FRAMES = 2
SIZES = {  # height, width
    "1024x768": ((768, 1024),),
    "8 sizes": (
        (768, 1024), (1024, 768), (480, 640), (1080, 1920),
        (336, 336), (320, 480), (2000, 1500), (224, 896),
    ),
}  # fmt: skip


def cases(device: torch.device, small: bool) -> list[Case]:
    """One picture and eight, on one thread and on all; on any device, since the CPU does it."""
    threads = dict.fromkeys((1, thread_count()))
    return [_case(name, n) for name in SIZES for n in threads]


def _case(name: str, threads: int) -> Case:
    pictures = cache(partial(draw, SIZES[name]))
    arms: dict[str, Callable[[], Run]] = {
        "fastmpi": lambda: _ours(pictures(), threads, None, 1),
        "fastmpi float32": lambda: _ours(pictures(), threads, value_table(MEAN, STD), FRAMES),
        "pil": lambda: _pil(pictures()),
        "torch": lambda: _torch(pictures(), threads, True),
        "torch uint8": lambda: _torch(pictures(), threads, False),
        "numpy": lambda: partial(_numpy, pictures()),
    }
    if threads > 1:
        arms["fastmpi 1 thread"] = lambda: _ours(pictures(), 1, None, 1)
    return Case(
        name=f"{name}, {threads} thread{'s' * (threads > 1)}",
        arms=arms,
        exact=lambda: _exact(pictures()),
    )


def draw(sizes: Sequence[tuple[int, int]]) -> list[Picture]:
    """A picture (height, width, 3) of each size."""
    rng = np.random.default_rng(0)
    small = [rng.integers(0, 256, (h // 8, w // 8, 3), dtype=np.uint8) for h, w in sizes]
    return [
        np.array(PIL.Image.fromarray(seed).resize((w, h)))  # writeable, as torch wants it
        for seed, (h, w) in zip(small, sizes, strict=True)
    ]


def _ours(
    pictures: list[Picture], threads: int, table: NDArray[np.float32] | None, frames: int
) -> Run:
    sizes = np.array([picture.shape[:2] for picture in pictures])
    rows = int(patch_grids(sizes, RULE).prod(axis=1).sum())
    dtype = np.uint8 if table is None else np.float32
    memory = np.zeros((rows, 3 * frames * RULE.patch_size**2), dtype)
    options: dict[str, Any] = {"table": table, "frames": frames, "num_threads": threads}
    name = "uint8" if table is None else "float32"

    def run() -> Outputs:
        return {name: torch.from_numpy(image_patches(pictures, RULE, out=memory, **options)[0])}

    return run


def _pil(pictures: list[Picture]) -> Run:
    from transformers import Qwen2VLImageProcessorPil

    size = {"shortest_edge": RULE.min_pixels, "longest_edge": RULE.max_pixels}
    processor = Qwen2VLImageProcessorPil(size=size, image_mean=MEAN, image_std=STD)
    decoded = [PIL.Image.fromarray(picture) for picture in pictures]
    return lambda: {"float32": processor(images=decoded, return_tensors="pt")["pixel_values"]}


def _torch(pictures: list[Picture], threads: int, normalise: bool) -> Run:
    mean, std = (255 * torch.tensor(values)[None, :, None, None] for values in (MEAN, STD))

    def patches(picture: Picture) -> Tensor:
        image = torch.from_numpy(picture).permute(2, 0, 1)[None]  # channels last
        size = reference.smart_resize(picture.shape[0], picture.shape[1], RULE)
        image = F.interpolate(image, size, mode="bicubic", antialias=True)
        if not normalise:
            return _patchify(image, 1)
        return _patchify((image.float() - mean) / std, FRAMES)

    def run() -> Outputs:
        with _torch_threads(threads):
            found = torch.cat([patches(picture) for picture in pictures])
        return {"float32" if normalise else "uint8": found}

    return run


def _patchify(image: Tensor, frames: int) -> Tensor:
    """Patches (N, 3 * frames * p * p) of an image (1, 3, H, W)."""
    p, m = RULE.patch_size, RULE.merge_size
    rows, columns = image.shape[2] // p, image.shape[3] // p
    blocks = image.reshape(3, rows // m, m, p, columns // m, m, p)
    ordered = blocks.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5)
    repeated = ordered.expand(-1, -1, -1, -1, -1, frames, -1, -1)
    return repeated.reshape(rows * columns, 3 * frames * p * p)


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _numpy(pictures: list[Picture]) -> Outputs:
    p, m = RULE.patch_size, RULE.merge_size
    patches = []
    for picture in pictures:
        height, width = reference.smart_resize(picture.shape[0], picture.shape[1], RULE)
        resized = PIL.Image.fromarray(picture).resize((width, height), PIL.Image.Resampling.BICUBIC)
        blocks = np.asarray(resized).reshape(height // p // m, m, p, width // p // m, m, p, 3)
        patches.append(blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3 * p * p))
    return {"uint8": torch.from_numpy(np.concatenate(patches))}


def _exact(pictures: list[Picture]) -> Outputs:
    """Bytes as Pillow resizes, and their normalised values in float64."""
    patches = reference.image_patches(pictures, RULE)[0]
    mean, std = (np.array(values).repeat(RULE.patch_size**2) for values in (MEAN, STD))
    values = ((patches / 255 - mean) / std).reshape(len(patches), 3, 1, -1)
    repeated = np.broadcast_to(values, (len(patches), 3, FRAMES, values.shape[-1]))
    return {
        "uint8": torch.from_numpy(patches).double(),
        "float32": torch.from_numpy(repeated.reshape(len(patches), -1)),
    }
