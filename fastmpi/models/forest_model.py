"""A transformers vision-language model seen as: forest batch -> hidden states -> loss.

Legend: T rows of a forest, N rows of picture features, B decoding sequences, H hidden size,
V vocabulary. Unusual: the model's own `forward` is never called. Pictures are encoded once each,
their features placed into the rows that show them, and the text tower runs over the flat forest
with explicit positions; the head is applied by the caller's function, which may never build the
(T, V) logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fastmpi.data.processor import Processor
from fastmpi.models.attention import AttentionPattern, ForestPattern, use_forest_attention
from fastmpi.models.family import FAMILIES
from fastmpi.models.features import ImageFeatures
from fastmpi.models.lora import add_lora, merged_state_dict
from fastmpi.models.probe import probe as probe_model
from fastmpi.models.refuse import check_supported, supported_config
from fastmpi.models.trainable import Part, parts, set_trainable
from fastmpi.ops.forest_attention import BACKENDS

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from fastmpi.data.batch import ForestBatch
    from fastmpi.data.images import Image

Out = TypeVar("Out")
_MAX_ROWS_PER_PASS = 65_536


class ForestModel(nn.Module):
    """`model` run over prefix forests.

    model: a `PreTrainedModel`, or the `PeftModel` around it. processor: of the same folder.
    attention_backend: "auto" or a backend of `ops.forest_attention`. `ValueError` for a model
    that cannot run as a forest (see `models/refuse.py`).
    """

    def __init__(
        self, model: PreTrainedModel, processor: Processor, *, attention_backend: str = "auto"
    ) -> None:
        super().__init__()
        check_supported(model.config)
        if attention_backend not in ("auto", *BACKENDS):
            known = ", ".join(("auto", *BACKENDS))
            raise ValueError(f"attention_backend {attention_backend!r} is not one of {known}")
        use_forest_attention(model)
        self.model: PreTrainedModel | PeftModel = model
        self.processor = processor
        self.family = FAMILIES[model.config.model_type]
        self.attention_backend = None if attention_backend == "auto" else attention_backend
        self.has_lora = False
        # Every training pass runs through every layer, backward too, and gives every parameter a
        # gradient, be it of zeros: for processes that add gradients up during the pass.
        self.all_gradients = False

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype | Literal["auto"] = torch.float32,
        device: str | torch.device | None = None,
        attention_backend: str = "auto",
        trust_remote_code: bool = False,
        probe: bool = True,
    ) -> ForestModel:
        """Loads a model folder or hub name, in evaluation mode, the vision tower frozen.

        dtype: "auto" is the one that the weights are saved in. device: None is the accelerator, if
        there is one, else the CPU.
        The architecture is checked before the weights are read. `probe` compares the forest with
        the stock forward on two branches and a picture; `ValueError` where they disagree.
        """
        from transformers import AutoModelForImageTextToText

        supported_config(path, trust_remote_code=trust_remote_code)
        processor = Processor.from_pretrained(path, trust_remote_code=trust_remote_code)
        try:
            model = AutoModelForImageTextToText.from_pretrained(
                path, dtype=dtype, trust_remote_code=trust_remote_code
            )
        except SafetensorError as error:
            raise ValueError(f"{path}: its weights are damaged: {error}") from error
        device = device or torch.accelerator.current_accelerator() or "cpu"
        forest = cls(model.to(device), processor, attention_backend=attention_backend)
        if probe:
            probe_model(forest)
        forest.set_trainable()
        return forest.eval()

    @property
    def base(self) -> PreTrainedModel:
        """The transformers model itself, inside a PeftModel or not."""
        return self.model.get_base_model() if self.has_lora else self.model

    @property
    def text_tower(self) -> nn.Module:
        return self.base.model.language_model

    @property
    def head(self) -> Tensor:
        """(V, H) output embedding; the input embedding itself where they are tied."""
        return self.base.get_output_embeddings().weight

    @property
    def softcap(self) -> float | None:
        """c where the model's logits are `c * tanh(logits / c)`, None for most."""
        return getattr(self.base.config.get_text_config(), "final_logit_softcapping", None)

    @property
    def device(self) -> torch.device:
        return self.head.device

    @property
    def dtype(self) -> torch.dtype:
        return self.head.dtype

    def forward(
        self,
        batch: ForestBatch,
        head_fn: Callable[[Tensor, Tensor], Out],
        features: ImageFeatures | None = None,
    ) -> Out:
        """`head_fn(hidden (T, H), head (V, H))` over `batch`; see `hidden`.

        Training calls this and nothing else, so that hooks (FSDP, DDP) see one root, and the
        head's weight only while it is gathered.
        """
        return head_fn(self.hidden(batch, features), self.head)

    def hidden(
        self,
        batch: ForestBatch,
        features: ImageFeatures | None = None,
        pattern: AttentionPattern | None = None,
    ) -> Tensor:
        """Final hidden states (T, H), after the last norm, of every row of `batch`.

        features: of at least the pictures of `batch`; encoded here if None. pattern: what each
        row sees, the forest rule if None; it also hears of every layer's keys and values.
        """
        embeddings = self.base.get_input_embeddings()(batch.tokens)
        extra: dict[str, Any] = {}
        if batch.images:
            features = features or self.encode_images(batch.images)
            shown = features.select([image.key for image in batch.images])
            rows = shown.rows[batch.feature_rows].to(embeddings.dtype)
            embeddings = embeddings.index_copy(0, batch.image_rows, rows)
            extra = self.family.text_inputs(
                shown, batch.image_rows, batch.feature_rows, batch.num_tokens
            )
        elif self.all_gradients and torch.is_grad_enabled():
            embeddings = embeddings + self._nothing_seen().to(embeddings.dtype)
        pattern = pattern or ForestPattern(batch.subtree_end, self.attention_backend)
        return self._text(embeddings[None], batch.position_ids[:, None], pattern, **extra)[0]

    def _nothing_seen(self) -> Tensor:
        """0, with a gradient of zeros for what a picture's features come from."""
        text = {id(p) for p in self.text_tower.parameters()} | {id(self.head)}
        tower = [p for p in self.parameters() if p.requires_grad and id(p) not in text]
        zeros = [p.flatten()[:0].sum(dtype=torch.float32) for p in tower]
        return torch.stack([torch.zeros((), device=self.device), *zeros]).sum()

    def decode(self, tokens: Tensor, positions: Tensor, pattern: AttentionPattern) -> Tensor:
        """Hidden states (B, H) of one more token for each of B sequences.

        tokens: (B,) int64, text only. positions: (3, B). pattern: gets q (B, Hq, 1, D) and the
        new k, v (B, Hkv, 1, D) of each layer, and must remember what came before.
        """
        embeddings = self.base.get_input_embeddings()(tokens)
        return self._text(embeddings[:, None], positions[:, :, None], pattern)[:, 0]

    def _text(
        self, embeddings: Tensor, positions: Tensor, pattern: AttentionPattern, **extra: Any
    ) -> Tensor:
        """(B, L, H) embeddings and (3, B, L) positions -> (B, L, H) final hidden states."""
        out = self.text_tower(
            inputs_embeds=embeddings,
            position_ids=self.family.position_ids(positions),
            attention_mask=None,
            use_cache=False,
            fastmpi_pattern=pattern,
            **extra,
        )
        return out.last_hidden_state

    def encode_images(self, images: Sequence[Image]) -> ImageFeatures:
        """Features of the distinct pictures among `images`, in the order of their first showing.

        With gradient only if the vision tower or its merger trains; else in several passes where
        there are many. `ValueError` where the tower gives other than `num_tokens` rows.
        """
        distinct = list({image.key: image for image in images}.values())
        if not distinct:
            return ImageFeatures((), (), self.head.new_zeros(0, self.head.shape[1]))
        if torch.is_grad_enabled() and self.trains_vision:
            return self._encode(distinct)
        with torch.no_grad():
            return ImageFeatures.concatenate([self._encode(group) for group in _passes(distinct)])

    def _encode(self, images: list[Image]) -> ImageFeatures:
        features = self.family.encode(self.base, images)
        expected = [image.num_tokens for image in images]
        if list(features.counts) != expected:
            raise ValueError(
                f"the vision tower gives {list(features.counts)} rows for images that the "
                f"processor expands to {expected} placeholders"
            )
        return features

    @property
    def trains_vision(self) -> bool:
        """Whether features carry gradient: cached ones are stale after an update then."""
        return any(part.trainable for part in self.parts() if part.name in ("vision", "merger"))

    def parts(self) -> list[Part]:
        """What the model is made of and how much of each part trains."""
        return parts(self.base, self.family)

    def set_trainable(
        self,
        freeze_vision: bool = True,
        freeze_merger: bool = True,
        freeze_llm: bool = False,
    ) -> list[Part]:
        """Says which parts train, and returns the table of it.

        Under LoRA the adapter stands for the language model, whose own weights stay frozen.
        """
        frozen = {"vision": freeze_vision, "merger": freeze_merger, "llm": freeze_llm}
        if self.has_lora:
            frozen |= {"llm": True, "lora": freeze_llm}
        set_trainable(self.base, self.family, frozen)
        return self.parts()

    def gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recomputes each layer in the backward pass of training mode instead of storing it."""
        if enabled:
            # There is no dropout; and setting random generators back would undo a thread's draws.
            how = {"use_reentrant": False, "preserve_rng_state": False}
            self.base.gradient_checkpointing_enable(how)
        else:
            self.base.gradient_checkpointing_disable()

    def add_lora(self, r: int, alpha: float, target_modules: Sequence[str] | None = None) -> None:
        """A fresh adapter on the text tower, which alone trains from here on; see `lora.py`."""
        if self.has_lora:
            raise ValueError("the model has an adapter already: merge_lora() first")
        self.model = add_lora(self.base, r, alpha, target_modules)
        self.has_lora = True

    def merge_lora(self) -> None:
        """Adds the adapter into the weights; the language model then trains as a whole."""
        if not self.has_lora:
            raise ValueError("the model has no adapter to merge")
        self.model = self.model.merge_and_unload()
        self.has_lora = False
        self.set_trainable()

    @contextmanager
    def adapter_disabled(self) -> Iterator[None]:
        """Inside, the model is the one that `add_lora` was called on."""
        if not self.has_lora:
            raise ValueError("the model has no adapter to disable")
        with self.model.disable_adapter():
            yield

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a plain model folder, adapters merged, with tokenizer and image processor."""
        state = merged_state_dict(self.base) if self.has_lora else None
        self.base.save_pretrained(folder, state_dict=state)
        self.processor.save_pretrained(folder)


def _passes(images: list[Image]) -> Iterator[list[Image]]:
    """Cuts `images` so that no pass of the vision tower holds too many patches."""
    group: list[Image] = []
    rows = 0
    for image in images:
        patches = image.grid[0] * image.grid[1] * image.grid[2]
        if group and rows + patches > _MAX_ROWS_PER_PASS:
            yield group
            group, rows = [], 0
        group.append(image)
        rows += patches
    yield group
