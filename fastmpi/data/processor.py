"""A model folder's tokenizer and image processor behind one small interface.

Unusual: there is no `AutoProcessor`. Without torchvision it silently returns a bare tokenizer
for Qwen2.5-VL, and it ties text and pixels together, while fastmpi tokenises a prompt once and
splices pictures in by id. Placeholder expansion at token level equals the processor's own.
Pixels are those of transformers' PIL image processors, so that they do not depend on what is
installed; where `rule_of` knows the processor, `fastmpi.ops.images` makes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Sequence
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmpi.data.cache import BoundedCache
from fastmpi.data.images import Image, ImageSource, content_key, load_image, pixel_digest
from fastmpi.data.pixels import Grid, PixelValues, process, rule_of, values_of
from fastmpi.data.samples import Prompt

if TYPE_CHECKING:
    import PIL.Image
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

MROPE_MODELS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
LINEAR_MODELS = ("llava",)
_PLACEHOLDERS = (
    "image_token_id",
    "image_token_index",
    "video_token_id",
    "video_token_index",
    "vision_start_token_id",
    "vision_end_token_id",
)
_MAX_IMAGE_BYTES = 2**31


class Processor:
    """Text and pictures to token ids with placeholders expanded, and back.

    image_token_id: the placeholder a picture's features replace.
    eos_token_ids: tokens that end a response; the first one is appended to training responses.
    forbidden_token_ids: placeholders of pictures and videos, which must never be sampled.
    pixel_rule: how `fastmpi.ops.images` makes this model's pixels, or why transformers must.
    rope: "mrope" (3-D positions) or "linear"; merge_size: patches merged per side and token.
    """

    def __init__(self, config: PretrainedConfig, tokenizer: Any, image_processor: Any) -> None:
        self.model_type: str = config.model_type
        if self.model_type not in MROPE_MODELS + LINEAR_MODELS:
            known = ", ".join(MROPE_MODELS + LINEAR_MODELS)
            raise ValueError(f"no processor for model type {self.model_type!r}; known: {known}")
        self.rope = "mrope" if self.model_type in MROPE_MODELS else "linear"
        self.tokenizer: PreTrainedTokenizerBase = tokenizer
        self.image_processor = image_processor
        self.config = config
        self.merge_size: int = getattr(config.vision_config, "spatial_merge_size", 1)
        self.image_token_id: int = config.image_token_id
        self.forbidden_token_ids = _placeholder_ids(config)
        self.eos_token_ids = _eos_ids(config, tokenizer)
        self.pixel_rule = rule_of(image_processor)
        self._values = None if isinstance(self.pixel_rule, str) else values_of(image_processor)
        self._images: BoundedCache[Image] = BoundedCache(_MAX_IMAGE_BYTES)
        # Fast tokenizers refuse a second thread ("Already borrowed"), and prompts are made ahead.
        self._tokenizing = RLock()

    @classmethod
    def from_pretrained(cls, path: str | Path, *, trust_remote_code: bool = False) -> Processor:
        """Loads from a model folder or hub name. `ValueError` for an unknown model family."""
        from transformers import AutoConfig, AutoTokenizer

        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        tokenizer.chat_template = tokenizer.chat_template or _processor_template(path)
        if tokenizer.chat_template is None:
            raise ValueError(f"{str(path)!r} has no chat template, which prompts need")
        return cls(config, tokenizer, _image_processor(config, path))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes tokenizer and image processor files beside a model's weights."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    def image(self, source: ImageSource, folder: Path | None = None) -> Image:
        """Decodes and processes one picture: see `images`."""
        return self.images([source], folder)[0]

    def images(self, sources: Sequence[ImageSource], folder: Path | None = None) -> list[Image]:
        """Decodes and processes pictures, all that are new at once.

        Equal paths are read once and equal pictures processed once, while they fit into memory
        set aside for them. `ValueError` where one is missing, unreadable or outside `folder`.
        """
        keys: list[Hashable] = []
        found: dict[Hashable, Image] = {}
        new: dict[Hashable, PIL.Image.Image] = {}
        for source in sources:
            key, picture = _identified(source, folder)
            keys.append(key)
            if key in found or key in new:
                continue
            if (known := self._images.find(key)) is not None:
                found[key] = known
            else:
                new[key] = load_image(source, folder) if picture is None else picture
        for key, image in zip(new, self._process(list(new.values())), strict=True):
            self._images.put(key, image, image.num_bytes)
            found[key] = image
        return [found[key] for key in keys]

    def prompt(self, messages: list[dict[str, Any]], images: Sequence[Image]) -> Prompt:
        """Token ids of a chat up to the assistant's turn, placeholders expanded.

        `ValueError` where the messages show another number of pictures than `images` has.
        """
        ids = self.encode(self._chat(messages))
        if self._begins_with is not None and (len(ids) == 0 or ids[0] != self._begins_with):
            ids = np.insert(ids, 0, self._begins_with)
        return Prompt(self.expand(ids, images), tuple(images))

    @cached_property
    def shows_system_pictures(self) -> bool:
        """Whether the chat template has a placeholder for a picture in a system turn."""
        system = {"role": "system", "content": [{"type": "image"}]}
        user = {"role": "user", "content": [{"type": "text", "text": "?"}]}
        return self.image_token_id in self.encode(self._chat([system, user]))

    def _chat(self, messages: list[dict[str, Any]]) -> str:
        with self._tokenizing:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        return str(text)

    @cached_property
    def _begins_with(self) -> int | None:
        """The token that the tokenizer puts before every text, which not all templates write."""
        first = self.tokenizer("")["input_ids"][:1]
        return first[0] if first == [self.tokenizer.bos_token_id] else None

    def expand(self, ids: np.ndarray, images: Sequence[Image]) -> np.ndarray:
        """Repeats the i-th placeholder `images[i].num_tokens` times."""
        is_image = ids == self.image_token_id
        if int(is_image.sum()) != len(images):
            raise ValueError(
                f"the prompt has {int(is_image.sum())} image placeholders and {len(images)} images"
            )
        repeats = np.ones(len(ids), dtype=np.int64)
        repeats[is_image] = [image.num_tokens for image in images]
        return np.repeat(ids, repeats)

    def encode(self, text: str) -> np.ndarray:
        """Token ids (L,) int64 of `text`, nothing added."""
        with self._tokenizing:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return np.asarray(ids, dtype=np.int64)

    def encode_response(self, text: str) -> np.ndarray:
        """Token ids of a whole assistant turn: `text` and the token that ends it."""
        return np.append(self.encode(text), np.int64(self.eos_token_ids[0]))

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""
        with self._tokenizing:
            return str(self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))

    def _process(self, pictures: Sequence[PIL.Image.Image]) -> list[Image]:
        if isinstance(self.pixel_rule, str):
            return [self._image(*self._by_transformers(picture)) for picture in pictures]
        processed = process(pictures, self.pixel_rule)
        return [self._image(stored, grid, self._values) for stored, grid in processed]

    def _by_transformers(self, picture: PIL.Image.Image) -> tuple[Tensor, Grid | None]:
        out = self.image_processor(images=picture, return_tensors="pt")
        if self.rope != "mrope":
            return out["pixel_values"][0], None
        t, h, w = (int(n) for n in out["image_grid_thw"][0])
        return out["pixel_values"], (t, h, w)

    def _image(self, stored: Tensor, grid: Grid | None, values: PixelValues | None = None) -> Image:
        if grid is None:
            grid, num_tokens = self._clip_grid(stored.shape[-2:])
        else:
            num_tokens = math.prod(grid) // self.merge_size**2
        return Image(content_key(stored, grid), stored, grid, num_tokens, values)

    def _clip_grid(self, size: Sequence[int]) -> tuple[Grid, int]:
        patch = self.config.vision_config.patch_size
        h, w = size[0] // patch, size[1] // patch
        has_cls = self.config.vision_config.model_type == "clip_vision_model"
        # "default" drops the tower's first row, which is the class token where there is one.
        drops_first = self.config.vision_feature_select_strategy == "default"
        return (1, h, w), h * w + int(has_cls) - int(drops_first)


def _identified(
    source: ImageSource, folder: Path | None
) -> tuple[Hashable, PIL.Image.Image | None]:
    """What a source is known by: its path, or else the pixels, which are then returned too."""
    if isinstance(source, (str, Path)):
        return str(source) if folder is None else str(Path(folder) / source), None
    picture = load_image(source, folder)
    return pixel_digest(picture), picture


def _placeholder_ids(config: PretrainedConfig) -> tuple[int, ...]:
    found = (getattr(config, name, None) for name in _PLACEHOLDERS)
    return tuple(sorted({int(token) for token in found if token is not None}))


def _eos_ids(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """End of turn first: the tokenizer's, then whatever the model's configuration adds."""
    ids = [tokenizer.eos_token_id]
    extra = getattr(config.get_text_config(), "eos_token_id", None)
    ids += extra if isinstance(extra, list) else [extra]
    return tuple(dict.fromkeys(int(i) for i in ids if i is not None))


def _image_processor(config: PretrainedConfig, path: str | Path) -> Any:
    if config.model_type in MROPE_MODELS:
        from transformers import Qwen2VLImageProcessorPil as Pil
    elif config.vision_config.model_type == "siglip_vision_model":
        from transformers import SiglipImageProcessorPil as Pil
    else:
        from transformers import CLIPImageProcessorPil as Pil
    return Pil.from_pretrained(path)


def _processor_template(path: str | Path) -> str | None:
    """The template of an older model folder, which kept it with the processor."""
    from transformers.utils.hub import cached_file

    found = cached_file(path, "chat_template.json", _raise_exceptions_for_missing_entries=False)
    if found is None:
        return None
    return str(json.loads(Path(found).read_text(encoding="utf-8"))["chat_template"])
