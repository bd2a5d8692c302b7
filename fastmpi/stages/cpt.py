"""Stage 1, visually-masked continual pretraining (VM-CPT).

A sample is the whole of (policy, image, question, reasoning, answer). Every token counts, those of
policy and question too; only the placeholders of pictures do not (and the first token, which
nothing predicts). The loss is the mean over the counted tokens of an optimiser step. All weights
train by default, save the vision tower's.

With the policy first, the rows of one policy begin alike: the forest computes the policy once for
all of them, and its tokens weigh as many times as rows stand behind them.

    fastmpi cpt --config cpt.yaml
"""

from __future__ import annotations

import sys

from fastmpi.config import CPTConfig
from fastmpi.data.prompts import render, response_text
from fastmpi.data.samples import Sample
from fastmpi.stages.rows import Row, policy_of
from fastmpi.stages.supervised import SupervisedTrainer


class CPTTrainer(SupervisedTrainer):
    """Stage 1. Rows need prompt, reasoning, answer and policy_id."""

    stage = "cpt"
    config_class = CPTConfig
    columns = ("prompt", "reasoning", "answer", "policy_id")

    def sample(self, row: Row) -> Sample:
        policy = policy_of(row, self.policies)
        prompt = render(row, self.processor, policy, folder=self.image_folder)
        response = self.processor.encode_response(response_text(row))
        return Sample.all_text(prompt, response, self.processor.image_token_id)


if __name__ == "__main__":
    from fastmpi.cli import main

    raise SystemExit(main(["cpt", *sys.argv[1:]]))
