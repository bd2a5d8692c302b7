"""Byte-level BPE tokenizers for the tiny models, trained in milliseconds from a list of words.

Unusual: the pre-tokenizer keeps whole words of the compact policy language together ("C1.1",
" Case", "</think>", "user\n"), and the merges are trained until every given word is one token.
The byte alphabet underneath still encodes any other text, and decodes it back unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

_NAMED = ("<|im_end|>", "<|endoftext|>")  # end of turn and padding

# A piece is a tag, an opening box, a role header, a brace, a word with the blank before it, or
# a run of white space. BPE never merges across pieces.
PIECES = r"</?think>|\\boxed\{|(?:system|user|assistant)\n|[{}]| ?[^\s<>{}\\]+|[<>\\]|\s"

# ChatML without a default system turn: a prompt without a policy has only the user's turn.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}
{{- '@IMAGE@' -}}
{%- elif part.type == 'text' -%}
{{- part.text -}}
{%- else -%}
{{- raise_exception('a message part is of type text or image, not ' + part.type) -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

# Words of the compact style (fastmpi.policies.clevr_text), chat headers and response tags.
CONDITIONS = ("C1", "C1.1", "C1.2", "C1.1.1", "C1.1.2", "C1.2.1", "C1.2.2")
ATTRIBUTE_VALUES = (
    *("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow"),
    *("cube", "sphere", "cylinder", "small", "large", "rubber", "metal"),
)
PLAIN_WORDS = (":", ";", "if", "then", "else", "end", "yes", "no")
FIRST_WORDS = ("policy", "question", "C1", "Case")  # also without a blank before them
HEADERS = ("system\n", "user\n", "assistant\n", "<think>", "</think>", "\\boxed{", "}")
# Policy names are made of these; a name is one token a syllable.
SYLLABLES = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou")


def compact_words(more: Iterable[str] = ()) -> list[str]:
    """Every piece of the compact policy language; all words but the first have a blank before."""
    inner = [*PLAIN_WORDS, *FIRST_WORDS, *CONDITIONS, *ATTRIBUTE_VALUES, *map(str, range(1, 10))]
    spaced = [" " + word for word in (*inner, *more, *SYLLABLES)]
    return [*HEADERS, *FIRST_WORDS, *more, *SYLLABLES, *spaced]


def build_tokenizer(
    words: Iterable[str], *, max_vocab_size: int = 640, image_token: str = "<|image_pad|>"
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which every one of `words` is one token.

    `image_token` is the placeholder that the chat template writes for an image part;
    `<|image_pad|>` is wrapped in `<|vision_start|>` and `<|vision_end|>` as Qwen does.
    Raises ValueError when `max_vocab_size` is too small for the words.
    """
    from transformers import PreTrainedTokenizerFast

    words = list(words)
    specials = [*SPECIAL_TOKENS, *({image_token} - set(SPECIAL_TOKENS))]
    backend = _train_bpe(words, max_vocab_size, specials)
    for word in words:
        if len(backend.encode(word).ids) != 1:
            raise ValueError(f"max_vocab_size={max_vocab_size} leaves {word!r} in several tokens")
    shown = image_token
    if image_token == "<|image_pad|>":
        shown = f"<|vision_start|>{image_token}<|vision_end|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[token for token in specials if token not in _NAMED],
        chat_template=CHAT_TEMPLATE.replace("@IMAGE@", shown),
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )


def _train_bpe(words: list[str], max_vocab_size: int, specials: list[str]) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max_vocab_size,
        min_frequency=1,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(words, trainer)
    return backend
