"""Stage 2, fine-tuning on responses without the policy.

A sample is (image, question) and the gold response; only the response counts. The policy is in none
of it: what the response cites of the policy, the model must know by itself. `reasoning=True` is the
chain-of-thought stage of TriMPI, `reasoning=False` the direct baseline, trained on answers alone.
A LoRA adapter trains by default and is merged into the saved model.

    fastmpi sft --config sft.yaml
"""

from __future__ import annotations

import sys

from fastmpi.config import SFTConfig
from fastmpi.data.prompts import render, response_text
from fastmpi.data.samples import Sample
from fastmpi.stages.rows import Row
from fastmpi.stages.supervised import SupervisedTrainer


class SFTTrainer(SupervisedTrainer):
    """Stage 2. Rows need prompt and answer, and reasoning unless args.reasoning is False."""

    stage = "sft"
    config_class = SFTConfig
    columns = ("prompt", "answer")
    args: SFTConfig

    def sample(self, row: Row) -> Sample:
        if self.args.reasoning and not row.get("reasoning"):
            raise ValueError(f"row {row['id']!r} has no 'reasoning'; reasoning=False needs none")
        prompt = render(row, self.processor, folder=self.image_folder)
        text = response_text(row, reasoning=self.args.reasoning)
        return Sample.from_prompt(prompt, self.processor.encode_response(text))


if __name__ == "__main__":
    from fastmpi.cli import main

    raise SystemExit(main(["sft", *sys.argv[1:]]))
