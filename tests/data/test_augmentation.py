"""Mirrored and recolored samples, against points projected by hand and rotations of colors."""

import itertools

import numpy as np
import pytest

from o3d_jax.config import DataConfig
from o3d_jax.data import loader
from o3d_jax.data.augmentation import augmented, mirrored, recolored
from o3d_jax.data.loader import training_batches
from o3d_jax.data.toys.cache import SyntheticOrbits
from o3d_jax.data.views import Views
from o3d_jax.geometry.orbits import orbit_poses, relative_poses
from support.small_sets import VIEWS, small_config

H, W = 11, 14
AS_THEY_ARE = np.arange(3)


def sample_of(views, center=(0.43, 0.56), elevation=20.0):
    """A whole circle whose pixels say which they are: view, row, column; wider than high."""
    poses = relative_poses(orbit_poses(elevation, np.arange(views) * 360 / views + 50, 1.5))
    places = np.stack(np.meshgrid(np.arange(views), np.arange(H), np.arange(W), indexing="ij"), -1)
    images = (places / 20).astype(np.float32)
    intrinsics = np.array([[1.1, 0, center[0]], [0, 1.3, center[1]], [0, 0, 1]], np.float32)
    return Views(images, images[..., :1], poses.astype(np.float32), intrinsics)


def seen_at(views, view, point):
    """What a view shows where a camera of OpenCV's axes projects a point."""
    x, y, z = (np.linalg.inv(views.camera_to_world[view]) @ [*point, 1])[:3]
    u, v, _ = views.intrinsics @ [x / z, y / z, 1]
    assert min(abs(u * W - round(u * W)), abs(v * H - round(v * H))) > 1e-4  # Inside a pixel.
    return views.images[view, int(v * H), int(u * W)]


@pytest.mark.parametrize("count", [4, 5])
def test_a_mirrored_sample_shows_each_point_where_its_mirror_image_is(count):
    sample = sample_of(count)
    found, order = mirrored(sample), [0, *range(count - 1, 0, -1)]
    for point in np.random.default_rng(0).uniform(-0.35, 0.35, (20, 3)):
        for view, source in enumerate(order):
            there, here = seen_at(found, view, point * [-1, 1, 1]), seen_at(sample, source, point)
            assert there[0] * 20 == pytest.approx(source)
            np.testing.assert_array_equal(there, here)
    np.testing.assert_array_equal(found.alpha[..., 0], found.images[..., 0])


@pytest.mark.parametrize("count", [4, 5])
def test_a_mirrored_orbit_has_the_same_cameras_in_the_same_order(count):
    sample = sample_of(count)
    found = mirrored(sample)
    # float32 of numbers up to 1.5.
    np.testing.assert_allclose(found.camera_to_world, sample.camera_to_world, atol=1e-6)
    np.testing.assert_allclose(found.intrinsics[0], [1.1, 0, 0.57], atol=1e-6)
    np.testing.assert_array_equal(found.intrinsics[1:], sample.intrinsics[1:])


def test_a_mirror_in_a_mirror_shows_the_sample():
    sample = sample_of(5)
    for found, expected in zip(mirrored(mirrored(sample)), sample, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-7)


def with_colors(*colors):
    """Each of them one pixel of a row, in all views."""
    row = np.array(colors, np.float32)[None, None]
    images = np.tile(row, (3, 1, 1, 1))
    return Views(images, images[..., :1], np.zeros((3, 4, 4)), np.eye(3))


def test_a_third_of_a_turn_takes_red_to_green_to_blue_to_red():
    red, green, blue = np.eye(3)
    found = recolored(with_colors(red, green, blue), 2 * np.pi / 3, AS_THEY_ARE).images
    np.testing.assert_allclose(found[1, 0], [green, blue, red], atol=1e-6)  # float32.


def test_grays_stay_and_white_stays_exactly_white_whatever_the_angle_and_order():
    grays = with_colors(*(np.full(3, value) for value in (0, 0.2, 0.7, 1)))
    rng = np.random.default_rng(1)
    for _ in range(50):
        found = recolored(grays, 2 * np.pi * rng.random(), rng.permutation(3)).images
        np.testing.assert_allclose(found, grays.images, atol=1e-6)  # float32.
        assert (found[:, :, 3] == 1).all()  # Backgrounds are.


def test_colors_turn_about_the_axis_of_grays():
    """Rodrigues: c cos(a) + (n x c) sin(a) + n (n . c) (1 - cos(a)), where nothing is clipped."""
    rng = np.random.default_rng(2)
    colors, axis = rng.uniform(0.35, 0.65, (6, 3)), np.full(3, 1 / np.sqrt(3))
    for angle in (0.4, 2.0, 5.1):
        found = recolored(with_colors(*colors), angle, AS_THEY_ARE).images[2, 0]
        along = (colors @ axis)[:, None] * axis
        expected = colors * np.cos(angle) + np.cross(axis, colors) * np.sin(angle)
        np.testing.assert_allclose(found, expected + along * (1 - np.cos(angle)), atol=1e-6)


def test_channels_are_reordered_after_the_turn_in_all_views_alike_and_nothing_else_changes():
    sample = with_colors([0.9, 0.2, 0.1], [0.3, 0.5, 0.4])
    turned = recolored(sample, 0.3, AS_THEY_ARE)
    assert np.abs(turned.images - sample.images).max() > 0.05
    found = recolored(sample, 0.3, np.array([2, 0, 1]))
    np.testing.assert_array_equal(found.images, turned.images[..., [2, 0, 1]])
    np.testing.assert_array_equal(found.images[1:], found.images[:-1])
    for name in ("alpha", "camera_to_world", "intrinsics"):
        assert getattr(found, name) is getattr(sample, name)


def test_what_leaves_the_range_of_colors_is_clipped():
    found = recolored(with_colors([1, 0, 0]), np.pi / 3, AS_THEY_ARE).images[0, 0, 0]
    np.testing.assert_allclose(found, [2 / 3, 2 / 3, 0], atol=1e-6)  # Yellow; blue is -1/3.


def drawn(config):
    """Names and rows of eight batches."""
    batches = list(itertools.islice(training_batches(config), 8))
    names = [name for loaded in batches for name in loaded.objects]
    batch = [loaded.batch for loaded in batches]
    rows = [
        Views(b.images[i], b.alpha[i], b.cameras.camera_to_world[i], b.cameras.intrinsics[i, 0])
        for b in batch
        for i in range(len(b.images))
    ]
    return names, rows


def is_same(one, other):
    return all(np.abs(a - b).max() < 1e-6 for a, b in zip(one, other, strict=True))


def test_augmentation_changes_neither_which_objects_nor_which_frames_are_drawn(monkeypatch):
    orbits = SyntheticOrbits(small_config(frames_per_orbit=6))  # Rendered once.
    monkeypatch.setattr(loader, "open_sources", lambda config: [orbits])
    names, plain = drawn(small_config(frames_per_orbit=6))
    for options in ({"mirror": True}, {"recolor": True}, {"mirror": True, "recolor": True}):
        found_names, found = drawn(small_config(frames_per_orbit=6, **options))
        assert found_names == names
        in_mirror = [
            is_same(row[1:], mirrored(before)[1:]) for row, before in zip(found, plain, strict=True)
        ]
        for row, before, turned in zip(found, plain, in_mirror, strict=True):
            expected = mirrored(before) if turned else before
            assert is_same(row[1:], expected[1:])  # Silhouettes and cameras.
            assert (row.images[row.alpha[..., 0] == 0] == 1).all()
            assert "recolor" in options or is_same(row, expected)
        # Of 24 throws of a fair coin, within 3.5 standard deviations.
        assert 3 <= sum(in_mirror) <= 21 if "mirror" in options else not any(in_mirror)
        if "recolor" in options:
            assert not any(is_same(a, b) for a, b in zip(found, plain, strict=True))


def test_augmentation_is_a_matter_of_the_generator_alone_and_without_it_nothing_is_drawn():
    sample, rng = sample_of(VIEWS), np.random.default_rng(3)
    assert augmented(DataConfig(), sample, rng) is sample
    assert rng.random() == np.random.default_rng(3).random()
    data = DataConfig(mirror=True, recolor=True)
    one, same, other = (augmented(data, sample, np.random.default_rng(seed)) for seed in (4, 4, 5))
    assert is_same(one, same) and not is_same(one, other)
