"""How alike two texts are, from 0 to 1: BERTScore where it is installed with its weights, else F1.

BERTScore (Zhang et al., 2020; the paper names no model) is the F1 of the `bert-score` package with
its own default for English, not rescaled. It is used only if that package and the weights are on
this machine: nothing is downloaded. Otherwise it is the F1 of the two texts' words, with counts,
case folded. `similarity_name()` says which; it belongs beside every figure that rests on it.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Pairs = Sequence[tuple[str, str]]
Similarity = Callable[[Pairs], np.ndarray]

BERT_MODEL, BERT_LAYER, BERT_TOKENS = "roberta-large", 17, 512  # bert-score's choice for English
_REPOSITORIES = ("FacebookAI/roberta-large", "roberta-large")
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class _Measure:
    name: str
    of: Similarity


def text_similarity(pairs: Pairs) -> np.ndarray:
    """Similarity of P pairs (predicted, gold), (P,) float64 in [0, 1].

    White space around a text does not count: two equal texts have 1, a blank one has 0 with any
    other. One call scores all pairs in batches, so gather them first.
    """
    stripped = [(first.strip(), second.strip()) for first, second in pairs]
    scores = np.array([first == second for first, second in stripped], dtype=np.float64)
    rest = [i for i, (first, second) in enumerate(stripped) if first and second and first != second]
    if rest:
        scores[rest] = np.clip(_measure().of([stripped[i] for i in rest]), 0.0, 1.0)
    return scores


def similarity_name() -> str:
    """The measure that `text_similarity` uses on this machine."""
    return _measure().name


@functools.cache
def _measure() -> _Measure:
    weights = _bert_weights()
    if weights is None:
        return _Measure("token-F1", token_f1)
    return _Measure(f"BERTScore F1 ({BERT_MODEL})", _bert_score(weights))


def token_f1(pairs: Pairs) -> np.ndarray:
    """F1 of the words and marks that both texts have, with counts, (P,) float64."""
    return np.array([_token_f1(*pair) for pair in pairs], dtype=np.float64)


def _token_f1(first: str, second: str) -> float:
    left, right = (Counter(_WORD.findall(text.casefold())) for text in (first, second))
    size = left.total() + right.total()
    return 2 * (left & right).total() / size if size else 1.0


def _bert_weights() -> Path | None:
    """The folder of BERTScore's model in the local cache; None without it or the package."""
    try:
        import bert_score  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "bert_score":
            raise  # installed, but broken: no reason to score by another measure
        return None
    from huggingface_hub import try_to_load_from_cache

    for repository in _REPOSITORIES:
        config = try_to_load_from_cache(repository, "config.json")
        if isinstance(config, str) and _is_complete(Path(config).parent):
            return Path(config).parent
    return None


def _is_complete(folder: Path) -> bool:
    weights = ("model.safetensors", "pytorch_model.bin")
    tokenizer = ("tokenizer.json", "vocab.json")
    return all(any((folder / name).exists() for name in names) for names in (weights, tokenizer))


def _bert_score(weights: Path) -> Similarity:
    import bert_score

    # a folder instead of the model's name: a name would ask the hub for news; with a folder the
    # package cannot find a baseline by itself, which nothing here needs
    scorer: Any = bert_score.BERTScorer(
        model_type=str(weights), num_layers=BERT_LAYER, baseline_path=""
    )
    scorer._tokenizer.model_max_length = BERT_TOKENS  # not every cached tokenizer says where to cut

    def measure(pairs: Pairs) -> np.ndarray:
        predicted, gold = (list(texts) for texts in zip(*pairs, strict=True))
        _, _, f1 = scorer.score(predicted, gold)
        return np.asarray(f1, dtype=np.float64)

    return measure
