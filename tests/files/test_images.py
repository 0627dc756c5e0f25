import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from o3d_jax.errors import InputError, exit_on_input_error
from o3d_jax.files.images import WORKING_SIZE, decode, find_images, load_image, save_png, to_rgba
from support.deep_png import deep_png
from support.fuzz import CLEAR, megabytes_more

BYTE = 1 / 255


def pattern(height, width, channels, seed=0):
    return np.random.default_rng(seed).integers(1, 256, (height, width, channels), np.uint8)


def encoded(pixels, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, **options)
    return file.getvalue()


def png_of_header(width, height):
    """A PNG that claims a size and holds no pixels; written by hand from the specification."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("options", "channels", "tolerance"),
    [
        ({"format": "PNG"}, 3, 0),
        ({"format": "PNG"}, 4, 0),
        ({"format": "WEBP", "lossless": True, "exact": True}, 4, 0),
        # A smooth ramp through JPEG at quality 95 moves by a few steps.
        ({"format": "JPEG", "quality": 95, "subsampling": 0}, 3, 4 * BYTE),
    ],
)
def test_load_returns_the_pixels_that_were_saved(tmp_path, options, channels, tolerance):
    ramp = np.arange(7)[:, None, None] * 20 + np.arange(5)[None, :, None] * 9
    pixels = (ramp + np.array([1, 5, 11, 40])[None, None, :channels]).astype(np.uint8)
    (tmp_path / "a").write_bytes(encoded(pixels, **options))
    rgba = load_image(tmp_path / "a")
    np.testing.assert_allclose(
        rgba[..., :channels], pixels * np.float32(BYTE), atol=tolerance + 1e-6
    )
    if channels == 3:
        assert (rgba[..., 3] == 1).all()


def test_gray_palette_and_16_bit_files_load_as_the_same_rgba(tmp_path):
    gray = pattern(6, 4, 1)[..., 0]
    expected = np.stack([gray] * 3 + [np.full_like(gray, 255)], axis=-1) / np.float32(255)
    variants = {
        "gray.png": Image.fromarray(gray),
        "palette.png": Image.fromarray(gray).convert("P"),
        "gray_alpha.png": Image.fromarray(gray).convert("LA"),
        "deep.png": Image.fromarray(gray.astype(np.uint16) * 257),  # v/255 == 257 v / 65535
    }
    for name, image in variants.items():
        image.save(tmp_path / name)
        np.testing.assert_allclose(load_image(tmp_path / name), expected, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pictures_of_16_bits_are_their_8_bit_twins(tmp_path, channels):
    pixels = pattern(5, 7, channels)
    (tmp_path / "deep.png").write_bytes(deep_png(pixels.astype(np.uint16) * 257))
    (tmp_path / "twin.png").write_bytes(encoded(pixels.squeeze(), format="PNG"))
    found, twin = load_image(tmp_path / "deep.png"), load_image(tmp_path / "twin.png")
    np.testing.assert_array_equal(found, twin)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_value_that_is_not_there_is_clear_in_16_bits_too(tmp_path, channels):
    pixels = pattern(5, 7, channels)
    deep = pixels.astype(np.uint16) * 256 + 77  # The lower byte is another number.
    (tmp_path / "a.png").write_bytes(deep_png(deep, deep[2, 3]))
    alpha = load_image(tmp_path / "a.png")[..., 3]
    np.testing.assert_array_equal(alpha == 0, (pixels == pixels[2, 3]).all(axis=-1))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_deep_gray_of_every_mode_is_scaled_by_what_it_can_hold(mode):
    gray = pattern(6, 4, 1)[..., 0]
    # Pillow makes and keeps each of these modes; TIFF files come in all of them.
    stored = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4", "F": "<f4"}[mode]
    values = gray / 255 if mode == "F" else gray.astype(np.int64) * 257
    image = Image.frombytes(mode, (4, 6), values.astype(stored).tobytes())
    rgba = np.asarray(to_rgba(image, "it"))
    np.testing.assert_array_equal(rgba, np.dstack([gray, gray, gray, np.full_like(gray, 255)]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_loads_upright(tmp_path, orientation):
    upright = pattern(5, 3, 3)
    # What a camera stores so that the tag's transform undoes it (EXIF 2.3, table "Orientation").
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a.png").write_bytes(encoded(np.ascontiguousarray(stored), format="PNG", exif=exif))
    np.testing.assert_allclose(load_image(tmp_path / "a.png")[..., :3], upright * BYTE, atol=1e-6)


def test_a_large_image_shrinks_to_the_working_size_without_dark_fringes(tmp_path):
    pixels = np.zeros((10, 2 * WORKING_SIZE, 4), np.uint8)  # Transparent is black, as often.
    pixels[:, : WORKING_SIZE + 1] = (255, 0, 0, 255)
    (tmp_path / "a.png").write_bytes(encoded(pixels, format="PNG"))
    rgba = load_image(tmp_path / "a.png")
    assert rgba.shape == (5, WORKING_SIZE, 4)
    seen = rgba[rgba[..., 3] > 0.1]
    np.testing.assert_allclose(seen[:, 0], 1, atol=4 * BYTE)  # Rounding of premultiplied bytes.


@pytest.mark.parametrize("options", [{"format": "PNG"}, {"format": "WEBP", "lossless": True}])
def test_of_an_animation_the_first_frame_loads_and_a_warning_says_so(tmp_path, options):
    frames = [Image.fromarray(pattern(4, 6, 3, seed)) for seed in range(3)]
    frames[0].save(tmp_path / "film", save_all=True, append_images=frames[1:], **options)
    with pytest.warns(UserWarning, match="film is animated; only its first frame"):
        rgba = load_image(tmp_path / "film")
    np.testing.assert_allclose(rgba[..., :3], pattern(4, 6, 3, 0) * BYTE, atol=1e-6)


def make_bad_input(folder, kind):
    path = folder / f"{kind}.png"
    noise = pattern(31, 17, 3)
    content = {
        "text": b"not an image",
        "zero_bytes": b"",
        "cut_png": encoded(noise, format="PNG")[:-200],
        "cut_jpeg": encoded(noise, format="JPEG")[:-200],
        "cut_webp": encoded(noise, format="WEBP")[:-200],
        "flipped_bit": flip(encoded(noise, format="PNG"), 300),
        "no_pixels": png_of_header(0, 0),
        "bomb": png_of_header(20_000, 20_000),
        "small_bomb": png_of_header(9_000, 9_000),
        "flat_bomb": png_of_header(7_000, 6_000),
        "tall_bomb": png_of_header(2, 4_000_000),
        "too_few": png_of_header(900, 700),
        "bmp": encoded(noise, format="BMP"),
        "transparent": encoded(pattern(4, 5, 4) * np.array([1, 1, 1, 0], np.uint8), format="PNG"),
    }
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(content[kind])
    return path


def flip(content, at):
    return content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]


BAD = {
    "missing": "does not exist",
    "folder": "is a folder",
    "text": "is not a readable PNG, JPEG or WebP",
    "zero_bytes": "is empty",
    "cut_png": "cut short",
    "cut_jpeg": "cut short",
    "cut_webp": "damaged",
    "flipped_bit": "damaged",
    "no_pixels": "without pixels",
    "bomb": "more than 64 megapixels",
    "small_bomb": "more than 64 megapixels",
    "flat_bomb": "7000 x 6000 pixels in",
    "tall_bomb": "2 x 4000000 pixels in",
    "too_few": "900 x 700 pixels are not in",
    "bmp": "is not a readable PNG, JPEG or WebP",
    "transparent": "fully transparent",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_in_one_line_with_its_name_and_status_2(tmp_path, kind, capsys):
    path = make_bad_input(tmp_path, kind)
    with warnings.catch_warnings(), pytest.raises(SystemExit) as stop, exit_on_input_error():
        warnings.simplefilter("error")  # Nothing else is said, either.
        load_image(path)
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.startswith("error: ") and said.count("\n") == 1 and said.endswith("\n")
    assert str(path) in said and BAD[kind] in said


@pytest.mark.parametrize("options", [{"format": "PNG"}, {"format": "JPEG"}, {"format": "WEBP"}])
def test_no_prefix_of_a_file_loads_with_other_pixels(tmp_path, options):
    content = encoded(pattern(9, 7, 3), **options)
    path = tmp_path / "a"
    path.write_bytes(content)
    whole, refused = load_image(path), 0
    for length in range(1, len(content)):
        path.write_bytes(content[:length])
        try:
            np.testing.assert_array_equal(load_image(path), whole)
        except InputError:
            refused += 1
    assert refused > 0.9 * len(content)  # All but a trailer after the pixels.


@pytest.mark.skipif(not CLEAR.exists(), reason="memory by Linux's counters")
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_a_large_picture_of_one_color_loads_in_little_memory(tmp_path, mode):
    """As textures and drawings may be: 4096 x 4096 in some kilobytes."""
    Image.new(mode, (4096, 4096), 99 if mode == "I;16" else "red").save(tmp_path / "a.png")
    shape, megabytes = megabytes_more(lambda: load_image(tmp_path / "a.png").shape)
    assert shape == (2048, 2048, 4)
    assert megabytes < 200  # 64 decoded, as much as RGBA; or 80 of the result and its bytes.


def test_a_tiff_whose_offset_is_a_decimal_is_damaged():
    content = encoded(pattern(4, 5, 1)[..., 0], format="TIFF", tiffinfo={}, compression="raw")
    strip, as_long, as_double = 0x111, 4, 12
    before, after = (struct.pack("<HH", strip, kind) for kind in (as_long, as_double))
    assert content.count(before) == 1
    with pytest.raises(InputError, match="it is damaged or cut short"):
        decode(io.BytesIO(content.replace(before, after) + bytes(16)), "it", ("TIFF", "PNG"))


def test_a_folder_stands_for_its_images_by_name_and_none_is_taken_twice(tmp_path, monkeypatch):
    for name in ("b.PNG", "a.jpeg", "c.webp", "._a.png", "notes.txt", "d.gif"):
        (tmp_path / name).touch()
    (tmp_path / "deeper.png").mkdir()
    (tmp_path / "deeper.png" / "e.png").touch()
    monkeypatch.chdir(tmp_path)
    first, missing = Path("c.webp"), tmp_path / "none.png"
    found = find_images([first, tmp_path, missing, first])
    assert found == [first, tmp_path / "a.jpeg", tmp_path / "b.PNG", missing]
    with pytest.raises(InputError, match="deeper holds no PNG, JPEG or WebP files"):
        (tmp_path / "deeper").mkdir()
        find_images([tmp_path / "deeper"])


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), exit_on_input_error():
        _ = 1 // 0


def test_a_line_break_in_the_message_does_not_make_two_lines(capsys):
    @exit_on_input_error()
    def main():
        raise InputError("a\nb is missing")

    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "error: a b is missing\n"


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_save_rounds_to_the_nearest_byte_and_clips(tmp_path, channels):
    image = np.full((3, 5, channels), 100.4 / 255, np.float32)
    image[0], image[1] = 1.7, 100.6 / 255
    image[2, :2] = -0.2
    save_png(tmp_path / "a.png", image)
    read = np.asarray(Image.open(tmp_path / "a.png")).reshape(3, 5, channels)
    assert (read[0] == 255).all() and (read[1] == 101).all()
    assert (read[2, :2] == 0).all() and (read[2, 2:] == 100).all()


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_png(path, np.zeros((2, 3, 3), np.float32))
    before = path.read_bytes()

    def full_disk(self, file, **_):
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="disk full"):
        save_png(path, np.ones((2, 3, 3), np.float32))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_values_that_are_not_finite_are_not_saved(tmp_path):
    image = np.zeros((2, 3, 3), np.float32)
    image[0, 1, 2] = np.nan
    with pytest.raises(ValueError, match="1 values of the image are not finite"):
        save_png(tmp_path / "a.png", image)
    assert not list(tmp_path.iterdir())
