"""LLaVA: pictures of one size through CLIP or SigLIP and a projector, 1-D positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastmpi.models.features import ImageFeatures

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fastmpi.data.images import Image


class Llava:
    """See `Family`. Which layer is read and whether the class token stays is the config's."""

    vision_prefix = "model.vision_tower."
    merger_prefixes: tuple[str, ...] = ("model.multi_modal_projector.",)

    def encode(self, model: PreTrainedModel, images: Sequence[Image]) -> ImageFeatures:
        out = model.model.get_image_features(**self.image_inputs(model, images), return_dict=True)
        return ImageFeatures(
            tuple(image.key for image in images),
            tuple(len(rows) for rows in out.pooler_output),
            torch.cat(list(out.pooler_output)),
        )

    def image_inputs(self, model: PreTrainedModel, images: Sequence[Image]) -> dict[str, Tensor]:
        pixels = torch.stack([image.pixels for image in images])
        return {"pixel_values": pixels.to(model.device, model.dtype)}

    def token_inputs(self, is_image: Tensor) -> dict[str, Tensor]:
        return {}

    def position_ids(self, positions: Tensor) -> Tensor:
        return positions[0]

    def text_inputs(
        self, features: ImageFeatures, image_rows: Tensor, feature_rows: Tensor, num_tokens: int
    ) -> dict[str, Any]:
        return {}
