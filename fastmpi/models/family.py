"""What differs between model families, behind one small interface.

A family knows how pictures become features, which shape positions have, and which parameters
belong to which part of the model. Everything else is the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from fastmpi.models.features import ImageFeatures
from fastmpi.models.llava import Llava
from fastmpi.models.qwen_vl import QwenVL

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fastmpi.data.images import Image


class Family(Protocol):
    """One model family. `vision_prefix`, `merger_prefixes`: how its parameters' names begin."""

    vision_prefix: str
    merger_prefixes: tuple[str, ...]

    def encode(self, model: PreTrainedModel, images: Sequence[Image]) -> ImageFeatures:
        """One pass of the vision tower over `images`, at least one."""

    def image_inputs(self, model: PreTrainedModel, images: Sequence[Image]) -> dict[str, Tensor]:
        """The arguments by which the stock forward takes `images`."""

    def token_inputs(self, is_image: Tensor) -> dict[str, Tensor]:
        """What the stock forward wants to know of the tokens beside their ids. (B, L) bool."""

    def position_ids(self, positions: Tensor) -> Tensor:
        """(3, B, L) positions as the text tower takes them."""

    def text_inputs(
        self, features: ImageFeatures, image_rows: Tensor, feature_rows: Tensor, num_tokens: int
    ) -> dict[str, Any]:
        """Arguments of the text tower beside embeddings and positions; rows ascend."""


FAMILIES: Mapping[str, Family] = {
    "qwen2_vl": QwenVL(),
    "qwen2_5_vl": QwenVL(),
    "qwen3_vl": QwenVL(),
    "llava": Llava(),
}
