"""Stage 1: every token counts but pictures', and a merged policy equals repeated rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastmpi.models.attention import stock_attention


def test_every_token_counts_but_pictures(world) -> None:
    trainer = world.trainer("cpt")
    sample = trainer.sample(trainer.rows[0])
    is_picture = sample.ids == trainer.processor.image_token_id
    assert is_picture.sum() == sample.images[0].num_tokens
    expected = np.where(is_picture, 0, 1)
    expected[0] = 0
    assert sample.weights.tolist() == expected.tolist()
    text = trainer.processor.decode(sample.ids)
    assert world.policies["kavo"].text in text
    assert "question kavo" in text and text.endswith("\\boxed{Case 1}")
    assert sample.ids[-1] == trainer.processor.eos_token_ids[0]


def test_merged_equals_repeated_rows(world, without_fp32_casts: None) -> None:
    """The step's gradient against transformers' own forward of every row alone."""
    trainer = world.trainer(
        "cpt", model=world.load("float64"), max_grad_norm=0, per_device_train_batch_size=6
    )
    trainer.begin()
    trainer.model.train()
    step = trainer.next_step()
    counts = trainer.accumulate_gradients(step)
    assert counts["perf/merged_tokens"] < 0.8 * counts["perf/tokens"]
    found = {name: p.grad.clone() for name, p in trainer.parameters.items()}
    trainer.optimizer.zero_grad()

    total = sum(float(sample.weights.sum()) for sample in step.samples)
    base = trainer.model.base
    loss = torch.zeros((), dtype=torch.float64)
    with stock_attention(base):
        for sample in step.samples:
            ids = torch.from_numpy(sample.ids)[None]
            logits = base(
                input_ids=ids,
                pixel_values=torch.cat([image.pixels for image in sample.images]).double(),
                image_grid_thw=torch.tensor([image.grid for image in sample.images]),
                mm_token_type_ids=(ids == trainer.processor.image_token_id).int(),
                use_cache=False,
            ).logits[0]
            logprob = logits.log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None])[:, 0]
            loss = loss - (torch.from_numpy(sample.weights)[1:] * logprob).sum() / total
    loss.backward()
    assert step.objective.sums["loss"] == pytest.approx(loss.item(), rel=1e-9)
    expected = {name: p.grad for name, p in trainer.parameters.items()}
    error = sum(float((found[n] - expected[n]).norm() ** 2) for n in found) ** 0.5
    size = sum(float(g.norm() ** 2) for g in expected.values()) ** 0.5
    assert error < 1e-7 * size  # the vision tower's own fp32 casts stay


def test_loss_is_the_mean_of_the_step(world) -> None:
    """Rows of unequal length: the mean over tokens, not the mean of means."""
    trainer = world.trainer("cpt", max_steps=1, per_device_train_batch_size=10)
    step = trainer.next_step()
    assert step.objective.total_weight == sum(float(s.weights.sum()) for s in step.samples)


def test_epochs_are_shuffled_and_whole(world) -> None:
    trainer = world.trainer("cpt", per_device_train_batch_size=4)
    assert trainer.steps_per_epoch == 3 and trainer.total_steps == 9
    epochs = [
        np.concatenate([trainer.rows_of_step(3 * epoch + i) for i in range(3)]).tolist()
        for epoch in range(2)
    ]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    assert len(trainer.rows_of_step(2)) == 2


def test_pictures_are_encoded_once(world, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmpi.models.forest_model import ForestModel

    calls: list[int] = []
    plain = ForestModel.encode_images

    def spy(self, images):
        calls.append(len(images))
        return plain(self, images)

    monkeypatch.setattr(ForestModel, "encode_images", spy)
    world.trainer("cpt", num_train_epochs=3).train()
    assert calls == [1] * 4  # one pass for each of the four pictures of the data set
    calls.clear()
    world.trainer("cpt", max_steps=2, freeze_merger=False).train()
    assert len(calls) >= 2  # a new pass for every micro-batch


def test_another_processor_is_the_one_that_is_saved(world) -> None:
    from fastmpi.config import CPTConfig
    from fastmpi.data.processor import Processor
    from fastmpi.stages.cpt import CPTTrainer

    other = Processor.from_pretrained(world.model)
    args = CPTConfig(output_dir=str(world.output / "cpt"), max_steps=1, disable_tqdm=True)
    trainer = CPTTrainer(
        world.load(), args, world.rows, policies=world.policies, processing_class=other
    )
    assert trainer.processor is other and trainer.model.processor is other
