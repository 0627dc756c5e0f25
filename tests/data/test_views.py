import numpy as np
import pytest
from PIL import Image

from o3d_jax.config import DataConfig
from o3d_jax.data.orbits.folder import read_index, write_orbit
from o3d_jax.data.sources import FolderOrbit
from o3d_jax.data.views import (
    choose_views,
    opaque_images,
)
from o3d_jax.files.images import on_white, on_white_in_linear_light
from support.small_sets import random_orbit, small_config


def pixel(*rgba):
    return np.array(rgba, np.uint8).reshape(1, 1, 1, 4)


def test_white_shows_through_by_alpha():
    np.testing.assert_allclose(on_white(pixel(0, 51, 255, 51))[0, 0, 0], [0.8, 0.84, 1], atol=1e-6)


def test_half_of_black_on_white_is_half_the_light():
    # sRGB's curve, by its definition: 0.5 of linear light is displayed as 0.7353569.
    found = on_white_in_linear_light(pixel(0, 255, 0, 128))[0, 0, 0, 0]
    linear = 1 - 128 / 255
    assert found == pytest.approx(1.055 * linear ** (1 / 2.4) - 0.055, abs=1e-6)
    assert found == pytest.approx(0.735, abs=2e-3)


def test_opaque_and_empty_pixels_are_alike_in_both_kinds_of_blending():
    """Over all 256 values, so on both sides of the curve's kink."""
    values = np.arange(256, dtype=np.uint8)
    solid = np.stack([values, values[::-1], values, np.full(256, 255, np.uint8)], -1)[None, None]
    np.testing.assert_allclose(
        on_white_in_linear_light(solid), solid[..., :3] / 255, atol=2e-6
    )  # float32 through two powers.
    clear = solid * np.array([1, 1, 1, 0], np.uint8)
    np.testing.assert_allclose(on_white_in_linear_light(clear), 1, atol=1e-6)


def test_the_area_filter_is_the_mean_weighted_by_alpha():
    rgba = np.zeros((1, 4, 4, 4), np.uint8)
    rgba[0, :2, :2] = [[[200, 0, 40, 255], [100, 0, 40, 255]], [[9, 9, 9, 0], [7, 7, 7, 0]]]
    rgba[0, 2:, 2:] = [10, 20, 30, 255]
    found = opaque_images(rgba, 2, DataConfig(resize_filter="area")) * 255
    covered = np.array([150, 0, 40]) * 0.5 + 255 * 0.5  # Colors behind alpha 0 do not count.
    np.testing.assert_allclose(found[0, 0, 0], covered, atol=1.5)  # Pillow rounds to 8 bits twice.
    np.testing.assert_allclose(found[0, 1, 1], [10, 20, 30], atol=1e-4)
    np.testing.assert_allclose(found[0, 0, 1], 255, atol=1e-4)


def test_the_share_of_a_pixel_that_an_object_covers_is_reduced_like_its_colors(tmp_path):
    orbit = random_orbit("a", 2, size=32)
    write_orbit(tmp_path / "a", orbit)
    stored = FolderOrbit("a", read_index(tmp_path / "a"))
    found = choose_views(small_config(), stored, 5).alpha[..., 0] * 255
    shares = orbit.rgba[[5, 0, 2], ..., 3].reshape(3, 16, 2, 16, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(found, shares, atol=1)  # Pillow rounds to 8 bits twice.


def test_the_bicubic_filter_is_pillows_default_as_in_the_release():
    rgba = random_orbit("a", 0, size=21).rgba
    found = opaque_images(rgba, 8, DataConfig(resize_filter="bicubic"))
    expected = on_white(np.stack([np.asarray(Image.fromarray(f).resize((8, 8))) for f in rgba]))
    np.testing.assert_array_equal(found, expected)
    area = opaque_images(rgba, 8, DataConfig(resize_filter="area"))
    assert np.abs(area - expected).max() > 0.05


def test_the_config_decides_filter_blending_and_frames(tmp_path):
    orbit = random_orbit("a", 2, size=32)
    write_orbit(tmp_path / "a", orbit)
    stored = FolderOrbit("a", read_index(tmp_path / "a"))
    config = small_config(resize_filter="bicubic", blending="linear", orbit_frames="linspace")
    views = choose_views(config, stored, 5)
    chosen = [5, 1, 4]  # 5 + 0, 3 and 6, of 7.
    half = [Image.fromarray(orbit.rgba[k]).resize((16, 16)) for k in chosen]
    expected = on_white_in_linear_light(np.stack([np.asarray(image) for image in half]))
    np.testing.assert_array_equal(views.images, expected)
    plain = choose_views(small_config(orbit_frames="linspace"), stored, 5)
    assert np.abs(plain.images - views.images).max() > 0.05
