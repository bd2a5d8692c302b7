"""Processed pictures as Pillow pictures again, for engines that process pictures themselves.

What is rebuilt is the resized (LLaVA: cropped) picture, not the file's. Resizing it again changes
nothing, so an engine's image processor sees the bytes that training saw, whichever library it
resizes with; and nothing but the bytes that training keeps anyway needs to be kept.
"""

from __future__ import annotations

import PIL.Image

from fastmpi.data.images import Image


def picture(image: Image, merge_size: int) -> PIL.Image.Image:
    """The RGB picture whose patches or crop `image` stores; processing it gives `image` again.

    merge_size: patches merged per side, in whose blocks the patches lie. `ValueError` where
    transformers made the pixels: those are floats, not the picture's bytes.
    """
    if image.values is None:
        raise ValueError("the picture is kept as the image processor's floats, not as bytes")
    stored = image.stored.numpy()
    if stored.ndim == 3:
        return PIL.Image.fromarray(stored.transpose(1, 2, 0).copy())
    _, rows, columns = image.grid
    m, p = merge_size, int((stored.shape[1] // 3) ** 0.5)
    blocks = stored.reshape(rows // m, columns // m, m, m, 3, p, p)
    whole = blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * p, columns * p, 3)
    return PIL.Image.fromarray(whole.copy())
