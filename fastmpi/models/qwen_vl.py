"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: patches of all pictures in one row, 3-D positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastmpi.models.features import ImageFeatures
from fastmpi.models.pixel_bytes import embeds_bytes, takes_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fastmpi.data.images import Image


class QwenVL:
    """See `Family`. Qwen3-VL's DeepStack features go into the first layers of the text tower."""

    vision_prefix = "model.visual."
    merger_prefixes: tuple[str, ...] = (
        "model.visual.merger.",
        "model.visual.deepstack_merger_list.",
    )

    def encode(self, model: PreTrainedModel, images: Sequence[Image]) -> ImageFeatures:
        layer = model.model.visual.patch_embed
        if takes_bytes(layer.proj.weight, images):
            out = self._encode_bytes(model, layer, images)
        else:
            inputs = self.image_inputs(model, images)
            out = model.model.get_image_features(**inputs, return_dict=True)
        return ImageFeatures(
            tuple(image.key for image in images),
            tuple(len(rows) for rows in out.pooler_output),
            _joined(out.pooler_output),
            tuple(_joined(level) for level in getattr(out, "deepstack_features", None) or ()),
        )

    def _encode_bytes(self, model: PreTrainedModel, layer: Any, images: Sequence[Image]) -> Any:
        values = images[0].values
        assert values is not None
        grids = torch.tensor([image.grid for image in images], device=model.device)
        pixels = torch.cat([image.stored for image in images]).to(model.device)
        with embeds_bytes(layer, values.mean, values.std):
            return model.model.get_image_features(pixels, grids, return_dict=True)

    def image_inputs(self, model: PreTrainedModel, images: Sequence[Image]) -> dict[str, Tensor]:
        grids = torch.tensor([image.grid for image in images], device=model.device)
        pixels = torch.cat([image.pixels for image in images])
        return {"pixel_values": pixels.to(model.device), "image_grid_thw": grids}

    def token_inputs(self, is_image: Tensor) -> dict[str, Tensor]:
        # without these the stock forward falls back to 1-D positions
        return {"mm_token_type_ids": is_image.int()}

    def position_ids(self, positions: Tensor) -> Tensor:
        # three rows exactly: a fourth would make transformers infer packing from it
        return positions

    def text_inputs(
        self, features: ImageFeatures, image_rows: Tensor, feature_rows: Tensor, num_tokens: int
    ) -> dict[str, Any]:
        if not features.deepstack:
            return {}
        shown = torch.zeros(1, num_tokens, dtype=torch.bool, device=image_rows.device)
        shown[0, image_rows] = True
        levels = [level[feature_rows] for level in features.deepstack]
        return {"visual_pos_masks": shown, "deepstack_visual_embeds": levels}


def _joined(rows: Tensor | Sequence[Tensor]) -> Tensor:
    """(N, H) from what some versions of transformers cut by picture and others do not."""
    return rows if isinstance(rows, Tensor) else torch.cat(list(rows))
