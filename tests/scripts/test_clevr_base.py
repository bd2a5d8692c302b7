"""What the CLEVR base is trained on is true, and one command trains it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import clevr_base_language as language  # noqa: E402
import train_clevr_base  # noqa: E402
from clevr_base_model import PICTURE, new_base  # noqa: E402
from clevr_base_pictures import (  # noqa: E402
    EMPTY,
    Picture,
    cells,
    cut,
    draw_scenes,
    patches,
    read_picture,
)
from clevr_base_rows import TASK_WORDS, SeenProcessor  # noqa: E402
from clevr_base_tower import attend_apart, attend_together  # noqa: E402
from tiny_base_model import collate  # noqa: E402

from fastmpi.assets import held_out  # noqa: E402
from fastmpi.data.processor import Processor  # noqa: E402
from fastmpi.data.renderer import render_scene  # noqa: E402
from fastmpi.data.scenes import image_filename, load_scenes, save_scenes  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CLEVR folder: eight drawn scenes as split "train", four as "val"."""
    made = tmp_path_factory.mktemp("clevr")
    for seed, (split, count) in enumerate({"train": 8, "val": 4}.items()):
        images = made / "images" / split
        images.mkdir(parents=True)
        scenes = []
        for index, scene in enumerate(draw_scenes(np.random.default_rng(seed), count)):
            path = images / image_filename(split, index)
            render_scene(scene, supersample=1).save(path)
            scenes.append(replace(scene, image=path, index=index))
        save_scenes(scenes, made, split)
    return made


@pytest.fixture(scope="module")
def base():
    return new_base(0, TASK_WORDS)


@pytest.fixture(scope="module")
def scenes(folder):
    return load_scenes(folder, "train")


@pytest.fixture(scope="module")
def rows(base, scenes, folder):
    """Rows over visual tokens that the random tower made."""
    model, processor = base
    pictures = [read_picture(scene) for scene in scenes]
    images, seen, names = language.see(model.model.visual, pictures, scenes, seed=1)
    return language.Rows(SeenProcessor(processor, images), seen, names, seed=2)


def test_patches_are_the_processors(base, scenes):
    pictures = [read_picture(scene) for scene in scenes[:2]]
    pixels, grids = patches(pictures)
    images = base[1].images([scene.image for scene in scenes[:2]])
    assert grids.tolist() == [list(image.grid) for image in images]
    torch.testing.assert_close(pixels, torch.cat([image.pixels for image in images]))


def test_objects_stay_where_their_pixels_are():
    pixels = np.zeros((160, 256, 3), np.uint8)
    pixels[70, 100] = 255
    picture = Picture(pixels, np.array([[100.5, 70.5]]), np.zeros((1, 4), int))
    for mirror in (False, True):
        window = cut(picture, 80, 50, (64, 64), mirror)
        assert window.pixels.shape == (64, 64, 3)
        x, y = np.floor(window.centres[0]).astype(int)
        assert window.pixels[y, x].tolist() == [255] * 3
    beyond = cut(picture, -20, -20, (64, 64), False)
    assert beyond.pixels.shape == (64, 64, 3)


def test_cells_name_the_nearest_object_and_leave_none_out(scenes):
    for scene in scenes:
        labels = cells(read_picture(scene))
        assert labels.shape == (40,)
        assert set(range(len(scene.objects))) <= set(labels.tolist())
    # Two objects in the cell of 32..64 x 0..32: the nearer one has it, the other the next cell.
    centres = np.array([[47.0, 16.0], [51.0, 16.0]])
    labels = cells(Picture(np.zeros((160, 256, 3), np.uint8), centres, np.zeros((2, 4), int)))
    assert labels[:4].tolist() == [EMPTY, 0, 1, EMPTY]


def test_attention_of_all_pictures_at_once_is_the_stock_one(base, scenes):
    visual = base[0].model.visual
    pixels, grids = patches([read_picture(scene) for scene in scenes[:3]])
    with torch.no_grad():
        expected = visual(pixels, grid_thw=grids).pooler_output
        attend_together(visual)
        together = visual(pixels, grid_thw=grids).pooler_output
        attend_apart(visual)
        again = visual(pixels, grid_thw=grids).pooler_output
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(again, expected)


def response(sample, processor):
    return processor.decode(sample.ids[np.flatnonzero(sample.weights)[0] :])


def test_chains_are_true_of_the_scene(rows):
    for name, scene in zip(rows.names[:8], rows.scenes[:8], strict=True):
        one = language.Rows(rows.processor, [scene], [name], seed=3)
        chains = [chain.split() for chain in response(one.ask(), rows.processor).split(";")]
        for chain in filter(None, chains):
            check_chain(chain, scene)


def check_chain(words, scene):
    objects, condition = list(scene.objects), "C1"
    for name, value, answer in zip(*[iter(words)] * 3, strict=True):
        kept = [o for o in objects if value in (o.shape, o.color, o.size, o.material)]
        assert (name, answer) == (condition, "yes" if kept else "no")
        objects, condition = kept or objects, condition + (".1" if kept else ".2")


def test_rows_over_tokens_are_prompts_of_the_package(rows, base, scenes):
    plain = language.Rows(rows.processor, scenes, rows.names[: len(scenes)], seed=4)
    real = language.Rows(base[1], scenes, [str(scene.image) for scene in scenes], seed=4)
    for with_policy in (True, False):
        ours, theirs = (
            made.prompt(made.question(made.tree(2)), with_policy=with_policy)
            for made in (plain, real)
        )
        assert ours.ids.tolist() == theirs.ids.tolist()
        assert ("if" in base[1].decode(ours.ids).split()) == with_policy


def test_answers_are_true_of_the_picture_that_the_row_names(rows):
    scenes = dict(zip(rows.names, rows.scenes, strict=True))
    for _ in range(20):
        question = rows.question(rows.tree(2))
        walk = question.tree.walk(scenes[question.row["images"][0]])
        assert question.row["answer"] == walk.case


@pytest.mark.parametrize("unseen", [True, False])
def test_trees_keep_to_their_side(rows, unseen):
    trees = [rows.tree(2, unseen=unseen) for _ in range(20)]
    assert all(held_out((n.id, n.value) for n in tree.nodes()) == unseen for tree in trees)


def test_losses_over_tokens_are_the_stock_models(rows, base, scenes):
    model, processor = base
    # The first names are those of the pictures as they are.
    plain = language.Rows(rows.processor, scenes, rows.names[: len(scenes)], seed=4)
    sample = plain.follow(2)
    image = processor.image(scenes[plain.names.index(sample.images[0].key)].image)
    expected = stock_logprob(model, sample, image, processor)
    batch = collate([sample], processor)
    _, logprob, _ = language.losses(model, batch, processor.image_token_id, bf16=False)
    # The tokens were made in bf16.
    torch.testing.assert_close(logprob, expected, rtol=0.05, atol=0.05)


def stock_logprob(model, sample, image, processor):
    ids = torch.from_numpy(sample.ids)[None]
    with torch.no_grad():
        logits = model(
            input_ids=ids,
            mm_token_type_ids=(ids == processor.image_token_id).int(),
            pixel_values=image.pixels,
            image_grid_thw=torch.tensor([image.grid]),
        ).logits[0]
    scored = torch.from_numpy(np.flatnonzero(sample.weights))
    return logits[scored - 1].log_softmax(-1)[torch.arange(len(scored)), ids[0, scored]]


def test_one_command_trains_a_base_that_loads(folder, tmp_path, monkeypatch, capsys):
    from transformers import AutoModelForImageTextToText

    monkeypatch.setattr(train_clevr_base, "FINAL_ROWS", 3)
    monkeypatch.setattr(language, "PROBE_ROWS", 2)
    monkeypatch.setattr(language, "BATCH_SIZE", 4)
    words = ["--clevr-dir", folder, "--output", tmp_path / "base", "--train", "train[:6]"]
    words += ["--test", "val[:2]", "--drawn", 2, "--window-steps", 2, "--whole-steps", 1]
    monkeypatch.setattr(sys, "argv", ["train", *map(str, words), "--steps", "4"])
    train_clevr_base.main()
    assert "tower 3" in capsys.readouterr().out
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    processor = Processor.from_pretrained(tmp_path / "base")
    image = processor.image(load_scenes(folder, "val")[0].image)
    assert image.num_tokens == PICTURE[0] * PICTURE[1] // 32**2
    assert model.config.model_type == "qwen2_5_vl"
    card = (tmp_path / "base" / "README.md").read_text()
    assert "`train[:6]`" in card and "{" not in card.replace("\\boxed{Case 5}", "")
