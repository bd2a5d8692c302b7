import io

import numpy as np
import PIL.Image
import pytest
import torch

from fastmpi.data.images import content_key, load_image


def picture(mode: str = "RGB", size: tuple[int, int] = (5, 3)) -> PIL.Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return PIL.Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    picture(mode).save(path)
    assert load_image("x" + path.suffix, tmp_path).mode == "RGB"


def test_path_bytes_and_pil_agree(tmp_path):
    picture().save(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    expected = np.asarray(picture())
    for source in ("x.png", {"bytes": data, "path": None}, {"path": "x.png"}, picture()):
        assert np.array_equal(np.asarray(load_image(source, tmp_path)), expected)


def test_exif_rotation_is_applied():
    buffer = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    picture(size=(5, 3)).save(buffer, "JPEG", exif=exif)
    assert load_image({"bytes": buffer.getvalue()}).size == (3, 5)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png"])
def test_paths_stay_inside_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match="outside the data folder"):
        load_image(name, tmp_path)


def test_missing_and_broken_pictures_are_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    with pytest.raises(ValueError, match=r"'gone\.png' does not exist"):
        load_image("gone.png", tmp_path)
    with pytest.raises(ValueError, match=r"'broken\.png' cannot be read"):
        load_image("broken.png", tmp_path)
    with pytest.raises(ValueError, match="'bytes' or 'path'"):
        load_image({"bytes": None})
    with pytest.raises(ValueError, match="not int"):
        load_image(3)


def test_key_sees_pixels_and_grid():
    pixels = torch.arange(12.0).reshape(2, 6)
    key = content_key(pixels, (1, 1, 2))
    assert key == content_key(pixels.clone(), (1, 1, 2))
    assert key != content_key(pixels, (1, 2, 1))
    assert key != content_key(pixels + 1e-6, (1, 1, 2))
    assert key != content_key(pixels.reshape(3, 4), (1, 1, 2))
