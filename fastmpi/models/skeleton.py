"""A model without its weights: all shapes and names, nothing behind them."""

from __future__ import annotations

from pathlib import Path

import torch

from fastmpi.data.processor import Processor
from fastmpi.models.forest_model import ForestModel
from fastmpi.models.refuse import supported_config


def skeleton(
    path: str | Path, *, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False
) -> ForestModel:
    """The model of a folder or hub name on torch's "meta" device. No weight is read: a 7B model is
    there in seconds, and can be counted, cut and given an adapter, but not run."""
    from transformers import AutoModelForImageTextToText

    config = supported_config(path, trust_remote_code=trust_remote_code)
    processor = Processor.from_pretrained(path, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, trust_remote_code=trust_remote_code
        )
    forest = ForestModel(model, processor)
    forest.set_trainable()
    return forest
