"""The model card of the tiny base: how it was made, and how good it is."""

from __future__ import annotations

from pathlib import Path

from fastmpi.assets import ATTRIBUTES

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# fastmpi tiny base

A Qwen2.5-VL of {parameters:,} parameters, trained from nothing by `scripts/train_tiny_base.py` of
fastmpi, so that tests, examples and the demonstration run offline on a CPU. It reads one kind of
picture and follows short policies that are given in its context. It knows nothing else.

## What it reads
- Pictures of 64x64 pixels with two to four objects, one per quadrant
  (`sample_scene(layout="quadrants")`), all of rubber:
  {attributes}. Larger pictures are scaled down.
- Compact policies (`policy_text(style="compact")`) of two or three layers over these values, with
  outcomes Case 1 to Case 8, as a system turn; then picture and `question <name>` as a user turn.
- It answers `<think>C1 red yes C1.1 cube no</think>\\boxed{{Case 5}}`. Without a policy it answers
  in the same form, at chance.

The tokenizer is a byte-level BPE with a token for each word of this language and each syllable of a
policy's name; any other text is encoded in bytes. The chat template is ChatML, without a default
system turn.

## How good it is
Greedy answers, exact match, on pictures that training never showed and on trees whose conditions
never occurred together in training (`fastmpi.assets.held_out`, a tenth of all trees):

| policy in context | rows | accuracy |
|---|---|---|
| two layers (N=2) | {rows} | {accuracy_n2:.3f} |
| three layers (N=3) | {rows} | {accuracy_n3:.3f} |
| none (chance is .125) | {rows_policy_free} | {accuracy_policy_free:.3f} |

## How it was made
{steps} steps of {batch_size} rows in {cpu_seconds} CPU-seconds on one core, seed {seed}, fp32
weights and bf16 products, Muon (matrices) and AdamW (the rest) at {learning_rate}; {scenes}
rendered scenes; trees are drawn as needed. Three kinds of rows: descriptions of pictures with
chains of yes/no questions, policies unrolled into some of their paths, and the task itself.

    OMP_NUM_THREADS=1 python scripts/train_tiny_base.py --output fastmpi/assets/tiny_base

Another machine or another version of torch rounds differently and gives another base of about the
same accuracy.
"""


def write_card(folder: Path, facts: dict) -> None:
    """Write `README.md` into `folder`, from what the training script measured."""
    attributes = "; ".join(" ".join(values) for values in ATTRIBUTES.values())
    text = CARD.format(**facts, attributes=attributes)
    (folder / "README.md").write_text(text, encoding="utf-8")
