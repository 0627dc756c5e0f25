import sys
import types

import numpy as np
import pytest
from PIL import Image

from o3d_jax.errors import InputError
from o3d_jax.media.foreground import extract_foreground, read_foreground, recenter_on_white
from support.pictures import GREEN, ORANGE, WHITE, disc, over


@pytest.mark.parametrize("background", [WHITE, GREEN, (0.0, 0.0, 0.0)])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_disc_on_a_plain_background_comes_out_with_its_coverage_and_color(background, noise):
    coverage = disc(50, 61, (24.3, 30.8), 17.6)
    rgba = over(coverage, ORANGE, background)
    rng = np.random.default_rng(1)
    rgba[..., :3] = (rgba[..., :3] + noise * rng.standard_normal((50, 61, 3))).clip(0, 1)
    result = extract_foreground(rgba).rgba
    # Blends closer to the background than its tolerance (noise: twice the 99 % quantile of the
    # largest of three channels, 2 * 3 sigma, of a contrast of 0.6) count as background.
    np.testing.assert_allclose(result[..., 3], coverage, atol=0.02 + 12 * noise)
    # The color is that of the object even where the pixel was a blend: no halo.
    seen = result[..., 3] > 0.1
    np.testing.assert_allclose(
        result[seen][:, :3], np.float32(ORANGE)[None].repeat(seen.sum(), 0), atol=0.02 + 6 * noise
    )


def test_a_whitish_object_on_white_stays_whole_and_so_does_its_white_center():
    coverage, eye = disc(40, 60, (20, 30), 15), disc(40, 60, (20, 30), 5)
    rgba = over(coverage, (0.95, 0.95, 0.93), WHITE)
    rgba[..., :3] += eye[..., None] * (1 - rgba[..., :3])
    # Blends below the least tolerance, 2 / 255 of a contrast of 0.07, count as background.
    np.testing.assert_allclose(extract_foreground(rgba).rgba[..., 3], coverage, atol=0.12)


def test_thin_parts_stay_opaque_and_dust_goes():
    rgba = over(disc(60, 80, (30, 40), 20), ORANGE, WHITE)
    rgba[30, 58:76, :3] = (0.5, 0.8, 0.6)  # A wire, one pixel thick; no blend with orange.
    rgba[5, 5, :3] = 0  # Dust.
    alpha = extract_foreground(rgba).rgba[..., 3]
    assert (alpha[30, 65:76] == 1).all() and alpha[5, 5] == 0


def test_an_object_hardly_off_its_background_is_opaque_to_its_edge():
    """Where 8-bit steps are as large as the contrast, no blend can be told."""
    coverage = disc(40, 60, (20, 30), 15)
    alpha = extract_foreground(over(coverage, (0.985, 0.985, 0.985), WHITE)).rgba[..., 3]
    assert set(np.unique(alpha)) == {0, 1}
    np.testing.assert_array_equal(alpha == 1, coverage > 2 / 255 / 0.015)  # Least tolerance.


def test_an_object_that_touches_the_border_does_not_make_it_busy():
    coverage = disc(60, 80, (55, 40), 18)
    alpha = extract_foreground(over(coverage, ORANGE, WHITE)).rgba[..., 3]
    np.testing.assert_allclose(alpha, coverage, atol=0.02)


def test_one_plain_color_has_no_object():
    with pytest.raises(InputError, match="one plain color"):
        extract_foreground(over(np.zeros((6, 9), np.float32), ORANGE, GREEN))


def busy():
    rgba = np.random.default_rng(3).uniform(size=(20, 30, 4)).astype(np.float32)
    rgba[..., 3] = 1
    return rgba


BOTH_STEPS = r"--mask FILE.* pip install 'o3d-jax\[rembg\]', then `rembg d u2net` .*u2net\.onnx;"


def test_a_busy_background_without_rembg_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "rembg", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=BOTH_STEPS):
        extract_foreground(busy())


@pytest.fixture
def fake_rembg(monkeypatch):
    """Stands in for rembg: its custom session, and a mask that covers the left third."""
    module = types.ModuleType("rembg")

    def new_session(name, model_path):
        assert name == "u2net_custom"  # The one session that never downloads.
        return model_path

    def remove(picture, session, only_mask):
        assert only_mask and session.endswith(".onnx")
        mask = np.zeros(picture.size[::-1], np.uint8)
        mask[:, : picture.width // 3] = 255
        return Image.fromarray(mask)

    module.new_session, module.remove = new_session, remove
    monkeypatch.setitem(sys.modules, "rembg", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())


def test_rembg_without_local_weights_is_refused_with_the_path(fake_rembg, tmp_path, monkeypatch):
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"by rembg: `rembg d u2net` .* nothing is") as refusal:
        extract_foreground(busy())
    assert str(tmp_path / "u2net.onnx") in str(refusal.value)


def test_rembg_with_local_weights_gives_its_mask(fake_rembg, tmp_path, monkeypatch):
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    (tmp_path / "u2net.onnx").write_bytes(b"weights")
    result = extract_foreground(busy()).rgba
    np.testing.assert_array_equal(result[..., :3], busy()[..., :3])
    assert (result[:, :10, 3] == 1).all() and (result[:, 10:, 3] == 0).all()


@pytest.mark.parametrize(("height", "width"), [(10, 40), (37, 12), (1, 300), (200, 200)])
@pytest.mark.parametrize("border", [0.0, 0.2, 0.35])
def test_the_longest_side_fills_the_square_but_its_border_and_is_centered(height, width, border):
    rgba = np.zeros((height + 13, width + 29, 4), np.float32)
    rgba[4 : 4 + height, 22 : 22 + width] = (0, 0, 0, 1)
    size = 90
    ink = 1 - recenter_on_white(rgba, size, border)[..., 0]
    longest = (1 - border) * size
    sides = np.array([height, width]) * longest / max(height, width)
    # Clipping the filter's overshoot adds up to 0.02 pixels along the outline, and the square's
    # own edge cuts its tail.
    np.testing.assert_allclose(ink.sum(), sides.prod(), rtol=0.02, atol=0.04 * sides.sum())
    pixel = np.arange(size) + 0.5
    center = [(ink.sum(1) * pixel).sum() / ink.sum(), (ink.sum(0) * pixel).sum() / ink.sum()]
    np.testing.assert_allclose(center, size / 2, atol=1e-2)
    extent = [(ink.max(1) > 0.05).sum(), (ink.max(0) > 0.05).sum()]
    # At most one blurred pixel of an enlarged edge a side, in output pixels.
    blur = 2 * max(1.0, longest / max(height, width))
    assert abs(max(extent) - longest) <= blur


def test_transparent_colors_never_show():
    """Premultiplied resizing: what lies under alpha 0 has no influence."""
    rng = np.random.default_rng(0)
    rgba = rng.uniform(size=(40, 30, 4)).astype(np.float32)
    rgba[..., 3] = disc(40, 30, (18, 14), 11)
    other = np.where(rgba[..., 3:] == 0, rng.uniform(size=rgba.shape), rgba).astype(np.float32)
    other[..., 3] = rgba[..., 3]
    np.testing.assert_array_equal(recenter_on_white(rgba, 17), recenter_on_white(other, 17))


def test_shrinking_averages_rather_than_picks():
    rgba = np.ones((256, 256, 4), np.float32)
    rgba[::2, :, :3] = 0  # Stripes far above what 16 pixels can hold: gray.
    square = recenter_on_white(rgba, 16, border=0.0)
    np.testing.assert_allclose(square[2:-2, 2:-2], 0.5, atol=0.01)


def test_traces_of_alpha_do_not_move_the_object():
    rgba = np.zeros((50, 50, 4), np.float32)
    rgba[10:20, 10:20] = 1
    faint = rgba.copy()
    faint[45, 45] = (0, 0, 0, 2 / 255)
    np.testing.assert_array_equal(recenter_on_white(rgba, 32), recenter_on_white(faint, 32))


def test_nothing_visible_and_senseless_borders_are_refused():
    with pytest.raises(InputError, match="transparent"):
        recenter_on_white(np.zeros((4, 5, 4), np.float32), 8)
    with pytest.raises(ValueError, match="border 1.0"):
        recenter_on_white(np.ones((4, 5, 4), np.float32), 8, border=1.0)


def test_a_foreground_is_read_from_a_file_and_a_refusal_names_the_file(tmp_path):
    rgba = np.zeros((20, 30, 4), np.uint8)
    rgba[5:15, 8:18] = (255, 0, 0, 255)
    Image.fromarray(rgba).save(tmp_path / "cube.png")
    np.testing.assert_array_equal(
        read_foreground(tmp_path / "cube.png").rgba, rgba / np.float32(255)
    )
    Image.new("RGB", (9, 7), "blue").save(tmp_path / "sky.png")
    with pytest.raises(InputError, match=r"sky\.png: the image is one plain color"):
        read_foreground(tmp_path / "sky.png")
    Image.new("RGBA", (9, 7), (0, 0, 255, 3)).save(tmp_path / "haze.png")
    with pytest.raises(InputError, match=r"haze\.png: the image shows no object"):
        read_foreground(tmp_path / "haze.png")
