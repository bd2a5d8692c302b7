"""ops/images.py against Pillow, against transformers' image processors and against its twin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmpi.ops import images as ops
from fastmpi.ops.images import CropRule, PatchRule
from fastmpi.reference import images as reference

QWEN2 = PatchRule(14, 2, 56 * 56, 28 * 28 * 1280)
QWEN3 = PatchRule(16, 2, 65536, 16777216)
SMALL = PatchRule(4, 3, 12 * 12, 60 * 60)  # odd merge; every picture above 3,600 pixels shrinks
CLIP = CropRule(42, 42, 42)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# height, width: one pixel, prime sides, 1:200 both ways, exact multiples (a pass is skipped), both
# orders of the passes, halves that round to even, and sides around the blocks of 16 and 32.
SIZES = [(1, 1), (1, 200), (200, 1), (7, 5), (13, 101), (101, 13), (56, 84), (56, 83), (55, 84)]
SIZES += [(150, 60), (60, 150), (42, 70), (14, 14), (31, 33), (32, 16), (65, 11), (240, 320)]


def draw(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise, with saturated corners so that clipping is seen."""
    values = np.random.default_rng((seed, height, width)).integers(0, 256, (height, width, 3))
    values[: height // 2, : width // 2] = np.where(values[: height // 2, : width // 2] > 99, 255, 0)
    return values.astype(np.uint8)


def pillow_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    resized = PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BICUBIC)
    return np.asarray(resized)


@pytest.mark.parametrize("size", SIZES)
def test_resize_equals_pillow(size: tuple[int, int]) -> None:
    image = draw(*size)
    for height, width in [(1, 1), (28, 28), (28, 84), (84, 28), (56, 84), (97, 151), (151, 7)]:
        expected = pillow_resize(image, height, width)
        for threads in (1, 3):
            found = ops.resize(image, height, width, num_threads=threads)
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(reference.resize(image, height, width), expected)


side = st.integers(1, 90)


@settings(max_examples=150)
@given(side, side, side, side)
def test_resize_equals_pillow_for_any_sizes(h: int, w: int, height: int, width: int) -> None:
    image = draw(h, w)
    expected = pillow_resize(image, height, width)
    np.testing.assert_array_equal(ops.resize(image, height, width, num_threads=2), expected)


def test_large_pictures_resize_as_pillow() -> None:
    for size, new in [((768, 1024), (756, 1036)), ((1500, 700), (140, 1400)), ((9, 9000), (3, 40))]:
        image = draw(*size)
        np.testing.assert_array_equal(ops.resize(image, *new), pillow_resize(image, *new))


@pytest.mark.parametrize("height", [57, 58, 59, 60, 61, 62])
def test_the_first_pass_is_the_one_that_pillow_takes(height: int) -> None:
    """Around a height that shrinks by twice what the width does."""
    image = draw(height, 42)
    expected = pillow_resize(image, 56, 40)
    np.testing.assert_array_equal(ops.resize(image, 56, 40), expected)
    np.testing.assert_array_equal(reference.resize(image, 56, 40), expected)


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([QWEN2, QWEN3, SMALL]))
def test_sizes_are_those_of_transformers(height: int, width: int, rule: PatchRule) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    if max(height, width) / min(height, width) > 200:
        with pytest.raises(ValueError, match="picture 0: .* more than 200 times"):
            ops.patch_grids(np.array([[height, width]]), rule)
        return
    factor = rule.patch_size * rule.merge_size
    expected = smart_resize(height, width, factor, rule.min_pixels, rule.max_pixels)
    assert reference.smart_resize(height, width, rule) == expected
    grid = ops.patch_grids(np.array([[height, width]]), rule)
    assert grid.tolist() == [[1, *(side // rule.patch_size for side in expected)]]


@pytest.mark.parametrize("rule", [QWEN2, QWEN3, SMALL])
def test_patches_equal_reference(rule: PatchRule) -> None:
    batch = [draw(*size) for size in SIZES]
    table = ops.value_table(MEAN, STD)
    for options in ({}, {"table": table, "frames": 2}, {"table": ops.bfloat16_bits(table)}):
        expected = reference.image_patches(batch, rule, **options)
        for threads in (1, 2, 5):
            found = ops.image_patches(batch, rule, num_threads=threads, **options)
            for ours, twin in zip(found, expected, strict=True):
                assert ours.dtype == twin.dtype
                np.testing.assert_array_equal(ours, twin)


def processor_of(rule: PatchRule):
    from transformers import Qwen2VLImageProcessorPil

    size = {"shortest_edge": rule.min_pixels, "longest_edge": rule.max_pixels}
    return Qwen2VLImageProcessorPil(
        patch_size=rule.patch_size, merge_size=rule.merge_size, size=size
    )


@pytest.mark.parametrize("rule", [QWEN2, QWEN3, SMALL])
def test_patches_equal_transformers(rule: PatchRule) -> None:
    processor = processor_of(rule)
    table = ops.value_table(processor.image_mean, processor.image_std, processor.rescale_factor)
    batch = [PIL.Image.fromarray(draw(*size)) for size in SIZES]
    expected = processor(images=batch, return_tensors="np")
    found = ops.image_patches(batch, rule, table=table, frames=2)
    np.testing.assert_array_equal(found.patches, expected["pixel_values"])
    np.testing.assert_array_equal(found.grids, expected["image_grid_thw"])
    assert found.offsets[-1] == len(expected["pixel_values"])


@pytest.mark.parametrize("rule", [CLIP, CropRule(30, 17, 30)])
def test_crops_equal_transformers(rule: CropRule) -> None:
    from transformers import CLIPImageProcessorPil

    crop = {"height": rule.height, "width": rule.width}
    processor = CLIPImageProcessorPil(size={"shortest_edge": rule.shortest_edge}, crop_size=crop)
    table = ops.value_table(processor.image_mean, processor.image_std, processor.rescale_factor)
    batch = [draw(*size) for size in SIZES]
    pictures = [PIL.Image.fromarray(image) for image in batch]
    expected = np.stack(processor(images=pictures, return_tensors="np")["pixel_values"])
    for threads in (1, 3):
        found = ops.image_crops(pictures, rule, table=table, num_threads=threads)
        np.testing.assert_array_equal(found, expected)
    for options in ({}, {"table": table}):
        twin = reference.image_crops(batch, rule, **options)
        np.testing.assert_array_equal(ops.image_crops(batch, rule, **options), twin)


def test_values_equal_bytes_expanded() -> None:
    table = ops.value_table(MEAN, STD)
    raw = ops.image_patches([draw(60, 90), draw(200, 31)], QWEN2).patches
    full = ops.image_patches([draw(60, 90), draw(200, 31)], QWEN2, table=table, frames=2).patches
    np.testing.assert_array_equal(ops.expand_patches(raw, table, 2, num_threads=3), full)
    np.testing.assert_array_equal(reference.expand_patches(raw, table, 2), full)


def test_bfloat16_bits_are_torchs() -> None:
    import torch

    table = ops.value_table(MEAN, STD)
    expected = torch.from_numpy(table).bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(ops.bfloat16_bits(table), expected)


def test_memory_is_reused() -> None:
    out = np.full((400, 588), 77, np.uint8)
    found = ops.image_patches([draw(100, 120)], QWEN2, out=out)
    assert found.patches.base is out and len(found.patches) == found.offsets[-1] < 400
    assert (out[len(found.patches) :] == 77).all(), "written past its end"
    np.testing.assert_array_equal(found.patches, ops.image_patches([draw(100, 120)], QWEN2).patches)


def test_nothing_is_written_past_the_end_of_crops_and_rows() -> None:
    out = np.full((3, 3, 42, 42), 77, np.uint8)
    ops.image_crops([draw(50, 60)], CLIP, out=out)
    assert (out[1:] == 77).all()
    out = np.full((21, 33, 3), 77, np.uint8)
    ops.resize(draw(50, 60), 20, 33, out=out)
    assert (out[20:] == 77).all()


def test_no_pictures() -> None:
    found = ops.image_patches([], QWEN2)
    assert found.patches.shape == (0, 588) and found.grids.shape == (0, 3)
    assert found.offsets.tolist() == [0]
    assert ops.image_crops([], CLIP).shape == (0, 3, 42, 42)
    assert ops.patch_grids(np.zeros((0, 2), np.int64), QWEN2).shape == (0, 3)


def test_strides_are_copied() -> None:
    """Flipped, cut and transposed views, and a read-only array."""
    image = draw(90, 120)
    image.flags.writeable = False
    for view in (image[::-1], image[:, ::-1], image[..., ::-1], image[3:40, 5:77], image[::2, ::3]):
        expected = pillow_resize(np.ascontiguousarray(view), 28, 56)
        np.testing.assert_array_equal(ops.resize(view, 28, 56), expected)
    turned = image.transpose(1, 0, 2)
    np.testing.assert_array_equal(
        ops.image_patches([turned], QWEN2).patches,
        ops.image_patches([turned.copy()], QWEN2).patches,
    )


def test_pillow_pictures_are_read_where_they_lie(monkeypatch) -> None:
    image = draw(70, 90)
    picture = PIL.Image.fromarray(image)
    expected = ops.image_patches([image], QWEN2).patches
    assert ops._pixels(picture, "picture").shape == (70, 90, 4)
    np.testing.assert_array_equal(ops.image_patches([picture], QWEN2).patches, expected)
    tall = PIL.Image.fromarray(draw(150, 60))  # columns first
    np.testing.assert_array_equal(ops.resize(tall, 28, 84), pillow_resize(draw(150, 60), 28, 84))
    large = PIL.Image.new("RGB", (2400, 2400), "red")  # in several pieces
    assert ops._pixels(large, "picture").shape == (2400, 2400, 3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"picture 1 must be uint8 of shape \(H, W, 3\)"),
        (np.zeros((4, 4, 4), np.uint8), r"picture 1 must be uint8 of shape \(H, W, 3\)"),
        (np.zeros((4, 4, 3), np.float32), "got float32"),
        (np.zeros((0, 4, 3), np.uint8), "empty|sides must be"),
        (np.zeros((4, 0, 3), np.uint8), "empty|sides must be"),
        (PIL.Image.new("L", (4, 4)), "mode 'L'"),
    ],
)
def test_bad_pictures_are_named(image, message: str) -> None:
    for call in (
        lambda: ops.image_patches([draw(9, 9), image], QWEN2),
        lambda: ops.image_crops([draw(9, 9), image], CLIP),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (PatchRule(0, 2, 1, 10), "patch_size must be in"),
        (PatchRule(14, -1, 1, 10), "merge_size must be in"),
        (PatchRule(14, 2, 0, 10), "min_pixels must be in"),
        (PatchRule(14, 2, 1, 2**62), "max_pixels must be in"),
        (PatchRule(1, 1, 2**40, 2**40), "sides must be in"),
    ],
)
def test_bad_rules(rule: PatchRule, message: str) -> None:
    sizes = np.array([[1, 200]])
    with pytest.raises(ValueError, match=message):
        ops.patch_grids(sizes, rule)


@pytest.mark.parametrize("size", [(0, 5), (-3, 5), (2**21, 2**21), (2**62, 2**62), (1, 201)])
def test_sizes_that_no_picture_has(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="picture 0: "):
        ops.patch_grids(np.array([size]), QWEN2)


@pytest.mark.parametrize("rule", [CropRule(40, 41, 40), CropRule(40, 40, 0), CropRule(0, 0, 0)])
def test_bad_crops(rule: CropRule) -> None:
    with pytest.raises(ValueError, match="must be in"):
        ops.image_crops([draw(50, 50)], rule)


def test_sides_of_a_resize() -> None:
    for height, width in [(0, 5), (5, -1), (2**40, 5), (2**63, 2)]:
        with pytest.raises(ValueError, match="sides must be in"):
            ops.resize(draw(5, 5), height, width)


def test_bad_memory_and_tables() -> None:
    table = ops.value_table(MEAN, STD)
    image = draw(30, 30)
    rows = len(ops.image_patches([image], QWEN2).patches)
    locked = np.zeros((rows, 588), np.uint8)
    locked.flags.writeable = False
    for out, message in [
        (np.zeros((rows - 1, 588), np.uint8), "rows, and"),
        (np.zeros((rows, 589), np.uint8), "out must be uint8"),
        (np.zeros((rows, 588), np.int8), "out must be uint8"),
        (np.zeros((rows, 588 * 2), np.uint8)[:, ::2], "contiguous"),
        (np.zeros((588, rows), np.uint8).T, "contiguous"),
        (locked, "writeable"),
    ]:
        with pytest.raises(ValueError, match=message):
            ops.image_patches([image], QWEN2, out=out)
    for bad in (table.astype(np.float64), table[:, :255], table[:2], table[:, ::-1]):
        with pytest.raises(ValueError, match="table must be"):
            ops.image_patches([image], QWEN2, table=bad)
    with pytest.raises(ValueError, match="frames must be in"):
        ops.image_patches([image], QWEN2, table=table, frames=0)
    with pytest.raises(ValueError, match="one frame"):
        ops.image_patches([image], QWEN2, frames=2)
    with pytest.raises(ValueError, match=r"\(rows, 3 \* n\)"):
        ops.expand_patches(np.zeros((4, 7), np.uint8), table)
    with pytest.raises(ValueError, match="num_threads"):
        ops.image_patches([image], QWEN2, num_threads=0)
    with pytest.raises(ValueError, match="num_threads"):
        ops.image_patches([image], QWEN2, num_threads=10**6)


@pytest.mark.parametrize("rows", [2**40, 2**60])
def test_rows_without_columns_are_no_work(rows: int) -> None:
    table = ops.value_table(MEAN, STD)
    assert ops.expand_patches(np.zeros((rows, 0), np.uint8), table).shape == (rows, 0)


def test_calls_from_many_threads_agree() -> None:
    from concurrent.futures import ThreadPoolExecutor

    batch = [draw(*size) for size in SIZES]
    expected = ops.image_patches(batch, QWEN2).patches
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda _: ops.image_patches(batch, QWEN2, num_threads=2).patches, range(8))
        for patches in found:
            np.testing.assert_array_equal(patches, expected)


def test_every_variant_gives_the_same_bytes(tmp_path: Path) -> None:
    """Each in a process of its own, since the choice is made once. Those that this processor does
    not run are replaced by its fastest."""
    script = (
        "import sys, numpy as np\n"
        "from fastmpi import _C\n"
        "from fastmpi.ops.images import resize\n"
        "image = np.random.default_rng(1).integers(0, 256, (99, 77, 3), dtype=np.uint8)\n"
        "shapes = [(50, 120), (150, 7), (33, 31), (99, 40)]\n"
        "pixels = [resize(image, *shape).tobytes() for shape in shapes]\n"
        "sys.stdout.buffer.write(_C.image_kernels().encode() + b'|' + b''.join(pixels))\n"
    )
    command = [sys.executable, "-c", script]  # where the source tree is not in the way
    found = {}
    for simd in ("plain", "avx2", "avx512"):
        environment = {**os.environ, "FASTMPI_SIMD": simd}
        run = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, check=True
        )
        name, _, found[simd] = run.stdout.partition(b"|")
        assert simd != "plain" or name == b"plain"
    assert found["plain"] == found["avx2"] == found["avx512"]
    environment = {**os.environ, "FASTMPI_SIMD": "sse"}
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True)
    assert b"ValueError: FASTMPI_SIMD must be plain, avx2 or avx512, got 'sse'" in run.stderr


@pytest.mark.skipif("FASTMPI_CLEVR_DIR" not in os.environ, reason="FASTMPI_CLEVR_DIR is not set")
def test_real_pictures_equal_transformers() -> None:
    paths = sorted(Path(os.environ["FASTMPI_CLEVR_DIR"], "images").rglob("*.png"))[:8]
    batch = [PIL.Image.open(path).convert("RGB") for path in paths]
    processor = processor_of(QWEN3)
    table = ops.value_table(processor.image_mean, processor.image_std)
    expected = processor(images=batch, return_tensors="np")
    found = ops.image_patches(batch, QWEN3, table=table, frames=2)
    np.testing.assert_array_equal(found.patches, expected["pixel_values"])
