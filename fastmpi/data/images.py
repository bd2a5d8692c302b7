"""Pictures: found, decoded, processed once, known by their content.

Placeholder ids of different pictures are equal, so everything that shares work (the forest,
the feature cache) compares pictures by `Image.key`, a hash of what the vision tower will see.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import PIL.ImageOps

from fastmpi.ops.content_hash import content_hash

if TYPE_CHECKING:
    from torch import Tensor

    from fastmpi.data.pixels import PixelValues

ImageSource = Any
"""A path, a `PIL.Image.Image`, or a Hugging Face image dict with `bytes` and/or `path`."""


@dataclass(frozen=True, eq=False)
class Image:
    """One processed picture.

    key: content hash of what is stored and the grid; equal keys mean equal features.
    stored: the pixels, or the bytes they are made of, where `values` says how.
    grid: (t, h, w) in patches.
    num_tokens: placeholder tokens the picture expands to.
    """

    key: str
    stored: Tensor
    grid: tuple[int, int, int]
    num_tokens: int
    values: PixelValues | None = None

    @property
    def pixels(self) -> Tensor:
        """As the model's image processor gives it, in float32: (patches, channels * frames *
        patch * patch) for the Qwen families, (3, height, width) for LLaVA."""
        return self.stored if self.values is None else self.values.of(self.stored)

    @property
    def patches(self) -> Tensor | None:
        """Bytes of patches of one frame, (patches, channels * patch * patch), for `patch_embed`;
        None where there are none."""
        return self.stored if self.values is not None and self.stored.ndim == 2 else None

    @property
    def num_bytes(self) -> int:
        """Size of what is stored."""
        return self.stored.numel() * self.stored.element_size()


def pixel_digest(picture: PIL.Image.Image) -> bytes:
    """128-bit hash of a decoded picture."""
    mode = int.from_bytes(picture.mode.encode(), "little")
    return content_hash(np.asarray(picture), (mode, *picture.size))


def content_key(pixels: Tensor, grid: tuple[int, int, int]) -> str:
    """128-bit hash, in hex, of a processed picture and its grid."""
    array = pixels.contiguous().numpy()
    return content_hash(array, (*grid, array.itemsize, *array.shape)).hex()


def resolve_path(source: str | Path, folder: Path | None) -> Path:
    """`source` under `folder`; `ValueError` where it points outside of it."""
    if folder is None:
        return Path(source)
    root = Path(folder).resolve()
    path = (root / source).resolve()
    if not path.is_relative_to(root):
        raise ValueError(
            f"image path {str(source)!r} points outside the data folder {str(folder)!r}"
        )
    return path


def load_image(source: ImageSource, folder: Path | None = None) -> PIL.Image.Image:
    """Decodes one picture to upright RGB.

    Paths are taken relative to `folder` where one is given, and must stay inside it.
    `ValueError` names a picture that is missing or cannot be read.
    """
    if isinstance(source, PIL.Image.Image):
        return PIL.ImageOps.exif_transpose(source).convert("RGB")
    if isinstance(source, Mapping):
        return _load_mapping(source, folder)
    if isinstance(source, (str, Path)):
        return _open(resolve_path(source, folder), str(source))
    raise ValueError(f"an image is a path, a PIL image or a dict, not {type(source).__name__}")


def _load_mapping(source: Mapping[str, Any], folder: Path | None) -> PIL.Image.Image:
    if source.get("bytes") is not None:
        return _open(io.BytesIO(source["bytes"]), str(source.get("path") or "<bytes>"))
    if source.get("path") is not None:
        return load_image(source["path"], folder)
    raise ValueError("an image dict needs 'bytes' or 'path'")


def _open(file: Path | io.BytesIO, name: str) -> PIL.Image.Image:
    try:
        with PIL.Image.open(file) as picture:
            return PIL.ImageOps.exif_transpose(picture).convert("RGB")
    except FileNotFoundError:
        raise ValueError(f"image {name!r} does not exist") from None
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"image {name!r} cannot be read: {error}") from error
