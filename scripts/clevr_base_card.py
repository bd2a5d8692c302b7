"""The model card of the CLEVR base: how it was made, and how good it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CARD = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
---
# fastmpi CLEVR base

A Qwen2.5-VL of {parameters:,} parameters, trained from nothing by `scripts/train_clevr_base.py` of
fastmpi. It reads pictures of CLEVR (shape, color, size and material of its objects) and follows
compact policies of one or two layers over these values, with outcomes Case 1 to Case 8. It knows
nothing else.

Pictures become 256x160 pixels and 40 visual tokens. It answers
`<think>C1 red yes C1.1 cube no</think>\\boxed{{Case 5}}`; without a policy in the same form, at
chance.

## How good it is
Greedy answers, exact match, on the scenes of `{final_test}` and on trees whose conditions never
occurred together in training (`fastmpi.assets.held_out`, a tenth of all trees); {rows} rows each:

| policy in context | accuracy |
|---|---|
| one layer (N=1) | {accuracy_n1:.3f} |
| two layers (N=2) | {accuracy_n2:.3f} |
| none (chance is .125) | {accuracy_policy_free:.3f} |

What the vision tower tells of the cells of `{test}`, right values: shape {shape:.3f}, color
{color:.3f}, size {size:.3f}, material {material:.3f}.

## How it was made
In {cpu_seconds} CPU-seconds on one core, seed {seed}, from the scenes of `{train}` and {drawn}
drawn ones. First the vision tower: {window_steps} steps of windows around objects and {whole_steps}
of whole pictures, told by the scene graph what stands in each cell. Then the language model on its
fixed visual tokens, {steps} steps.
"""


def write_card(folder: Path, facts: dict[str, Any]) -> None:
    """Write `README.md` into `folder`, from what the training script measured."""
    (folder / "README.md").write_text(CARD.format(**facts), encoding="utf-8")
