"""Features of the pictures while the vision tower is frozen: computed once, kept across steps, on
the host, where they take nothing from the device.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch

from fastmpi.data.cache import BoundedCache
from fastmpi.models.features import ImageFeatures
from fastmpi.stages.profiling import now

if TYPE_CHECKING:
    from fastmpi.data.images import Image
    from fastmpi.models.forest_model import ForestModel

MAX_BYTES = 2**30


class FeatureCache:
    """`of(images)`: their features, or None where the tower trains and must run with gradient.

    Unusual: one picture a pass. A matrix product may round a row differently beside other rows, so
    only then do features not depend on what else was encoded, and a resumed run, which starts with
    an empty cache, gets the same bits.

    patches: of the pictures that the thread of the updates has encoded: another, which samples
    beside it, is left out. times_itself: whether `seconds` adds up what that took; on CUDA the
    device is waited for then.
    """

    def __init__(
        self,
        model: ForestModel,
        precision: Callable[[], AbstractContextManager],
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.model, self.precision = model, precision
        self.times_itself, self.patches, self.seconds = False, 0, 0.0
        self._thread = threading.get_ident()
        self._cache: BoundedCache[ImageFeatures] = BoundedCache(max_bytes)

    def of(self, images: Sequence[Image]) -> ImageFeatures | None:
        if self.model.trains_vision or not images:
            return None
        distinct = {image.key: image for image in images}
        with torch.no_grad(), self.precision():
            kept = ImageFeatures.concatenate([self._one(image) for image in distinct.values()])
        return kept.to(self.model.device)

    def _one(self, image: Image) -> ImageFeatures:
        """On the host."""
        return self._cache.get(
            image.key, lambda: self._encode(image).to("cpu"), lambda features: features.num_bytes
        )

    def _encode(self, image: Image) -> ImageFeatures:
        if threading.get_ident() != self._thread:
            return self.model.encode_images([image])
        self.patches += math.prod(image.grid)
        if not self.times_itself:
            return self.model.encode_images([image])
        began = now(self.model.head.device)
        features = self.model.encode_images([image])
        self.seconds += now(self.model.head.device) - began
        return features
