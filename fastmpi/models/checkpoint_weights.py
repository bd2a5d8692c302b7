"""A model's weights under the names of its checkpoint, for an engine that holds a copy of them.

Unusual: the names in memory differ from those on disk (transformers renames while it loads), and
an engine such as vLLM loads checkpoints. So it is handed exactly what `save_pretrained` writes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastmpi.models.forest_model import ForestModel
from fastmpi.models.lora import merged_state_dict


@torch.no_grad()
def checkpoint_weights(model: ForestModel) -> dict[str, Tensor]:
    """Name on disk -> weight, adapters merged, of tied weights the one that is saved.

    Weights that no adapter changes are the model's own memory, not copies.
    """
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    base = model.base
    state = merged_state_dict(base) if model.has_lora else dict(base.state_dict())
    return dict(revert_weight_conversion(base, remove_tied_weights_from_state_dict(state, base)))
