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
  Half of the values may be pictures of one object that has them ("if color <picture> then").
- It answers `<think>C1 red yes C1.1 cube no</think>\\boxed{{Case 5}}`. Without a policy it answers
  in the same form, at chance.
- Compact tool policies (`fastmpi.policies.gta.tiny`): rules over account, credits and age for four
  to six of seven tools; then picture and `account B credits 400 age 20 ; search cube 4`. It answers
  with reasoning as above and a call in JSON, `{{"name": "GoogleSearch_v2", "arguments": ...}}`.

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
| two layers, half of the values in pictures | {rows} | {accuracy_m2:.3f} |
| none (chance is .125) | {rows_policy_free} | {accuracy_policy_free:.3f} |

| tool policy in context | rows | tool and version | whole call |
|---|---|---|---|
| four to six tools | {rows} | {calls_tool:.3f} | {calls_call:.3f} |
| none | {rows_policy_free} | {calls_free_tool:.3f} | {calls_free_call:.3f} |

Tool policies are held out in the same way, by the tests of their rules.

## How it was made
{steps} steps of {batch_size} rows ({batch_size_calls} of tool policies) in {cpu_seconds}
CPU-seconds on one core, seed {seed}, fp32 weights and bf16 products, Muon (matrices) and AdamW
(the rest) at {learning_rate}, falling to nothing; {scenes} rendered scenes; policies are drawn as
needed. Kinds of rows: descriptions of pictures with chains of yes/no questions, policies unrolled
into some of their paths, profiles with tests of them, and the two tasks themselves.

    OMP_NUM_THREADS=1 python scripts/train_tiny_base.py --output fastmpi/assets/tiny_base

Another machine or another version of torch rounds differently and gives another base of about the
same accuracy.
"""


def write_card(folder: Path, facts: dict) -> None:
    """Write `README.md` into `folder`, from what the training script measured."""
    attributes = "; ".join(" ".join(values) for values in ATTRIBUTES.values())
    text = CARD.format(**facts, attributes=attributes)
    (folder / "README.md").write_text(text, encoding="utf-8")
