import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.geometry.orbits import frame_indices, orbit, pinhole, relative_to_first
from o3d_jax.types import Cameras

# OpenCV camera_to_world of two views of a folder, and what the official loader makes of view 2.
FIRST_POSE = [
    [-0.29552021, 0.11440576, -0.94846145, 1.66588589],
    [0.95533649, 0.03538985, -0.29339351, 0.51531889],
    [0.0, -0.99280355, -0.11975441, 0.21033769],
    [0.0, 0.0, 0.0, 1.0],
]
SECOND_POSE = [
    [-0.46656057, -0.10592149, 0.87812407, -1.5423447],
    [-0.88448925, 0.05587269, -0.46320299, 0.81357373],
    [0.0, -0.99280355, -0.11975441, 0.21033769],
    [0.0, 0.0, 0.0, 1.0],
]
SECOND_RELATIVE = [
    [-0.70710678, 0.08467916, -0.70201812, 1.23303069],
    [0.08467916, -0.97551818, -0.20296237, 0.35648487],
    [-0.70201812, -0.20296237, 0.68262496, -1.19896838],
    [0.0, 0.0, 0.0, 1.0],
]


def test_camera_at_azimuth_0_is_on_z_and_looks_back_with_y_up():
    cameras = orbit(0.0, np.array([0.0]), 1.5, 49.1)
    expected = np.diag([1.0, -1.0, -1.0, 1.0])
    expected[2, 3] = 1.5
    np.testing.assert_allclose(cameras.camera_to_world[0], expected, atol=1e-7)


def test_azimuth_grows_toward_x_and_elevation_toward_y():
    cameras = orbit(30.0, np.array([90.0, 0.0]), 2.0, 49.1)
    poses = np.asarray(cameras.camera_to_world)
    # sin 30 = 1/2, cos 30 = sqrt(3)/2; the columns are right, down, forward, center.
    c = np.sqrt(3) / 2
    expected = np.array([[0, 0.5, -c, 2 * c], [0, -c, -0.5, 1], [-1, 0, 0, 0]])
    np.testing.assert_allclose(poses[0, :3], expected, atol=1e-6)  # float32 rounding.
    np.testing.assert_allclose(poses[1, :3, 3], [0, 1, 2 * c], atol=1e-6)


def test_cameras_are_right_handed_rotations_aimed_at_the_origin():
    poses = np.asarray(orbit(-20.0, np.arange(7) * 50, 1.7, 40.0).camera_to_world, np.float64)
    rotations = poses[:, :3, :3]
    identity = np.broadcast_to(np.eye(3), rotations.shape)
    np.testing.assert_allclose(rotations @ np.swapaxes(rotations, 1, 2), identity, atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(rotations), 1, atol=1e-6)  # float32 rounding.
    np.testing.assert_allclose(poses[:, :3, 3], -1.7 * rotations[:, :, 2], atol=1e-6)


def test_intrinsics_of_90_degrees():
    np.testing.assert_allclose(pinhole(90.0), [[0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 1]], atol=1e-12)
    # The release's cameras: 39.598 degrees, f = 1.388889; the fov has 5 digits.
    np.testing.assert_allclose(pinhole(39.598)[0, 0], 1.388889, atol=2e-5)


def test_relative_cameras_of_a_level_orbit_are_the_orbit_from_azimuth_0():
    turned = relative_to_first(orbit(0.0, 70.0 + np.arange(5) * 40, 1.6, 49.1))
    straight = orbit(0.0, np.arange(5) * 40, 1.6, 49.1)
    np.testing.assert_allclose(turned.camera_to_world, straight.camera_to_world, atol=1e-6)


def test_relative_cameras_hand_value():
    # Seen from 30 degrees above at radius 2, the camera opposite sits at S inv(P0) p1. In the axes
    # of camera 0, p1 - p0 = (0, 0, -2 sqrt 3) is (0, sqrt 3, 3). S maps
    # (x, y, z) to (x, -y, 2 - z).
    relative = relative_to_first(orbit(30.0, np.array([0.0, 180.0]), 2.0, 49.1))
    found = np.asarray(relative.camera_to_world)
    first = np.diag([1.0, -1.0, -1.0, 1.0])
    first[2, 3] = 2.0
    np.testing.assert_allclose(found[0], first, atol=1e-6)
    np.testing.assert_allclose(found[1, :3, 3], [0, np.sqrt(3), -1], atol=1e-6)


def test_relative_cameras_match_the_release():
    """Poses and results of the official data loader on a synthetic folder, cut to two views."""
    intrinsics = np.tile(pinhole(40.0), (2, 1, 1))
    cameras = Cameras(
        camera_to_world=jnp.array([FIRST_POSE, SECOND_POSE], jnp.float32),
        intrinsics=jnp.asarray(intrinsics, jnp.float32),
    )
    found = relative_to_first(cameras)
    # Inputs are rounded to 8 digits and float32.
    np.testing.assert_allclose(found.camera_to_world[1], SECOND_RELATIVE, atol=1e-6)
    np.testing.assert_array_equal(found.intrinsics, cameras.intrinsics)


def test_distances_between_cameras_survive_and_batches_are_independent():
    one = orbit(12.0, np.arange(3) * 100, 1.5, 49.1)
    other = orbit(-4.0, 33.0 + np.arange(3) * 70, 1.5, 49.1)
    both = Cameras(
        camera_to_world=jnp.stack([one.camera_to_world, other.camera_to_world]),
        intrinsics=jnp.stack([one.intrinsics, other.intrinsics]),
    )
    found = relative_to_first(both).camera_to_world
    expected = relative_to_first(other).camera_to_world
    np.testing.assert_allclose(found[1], expected, atol=1e-6)
    centers, before = np.asarray(found)[..., :3, 3], np.asarray(both.camera_to_world)[..., :3, 3]
    np.testing.assert_allclose(
        np.linalg.norm(centers[:, 1] - centers[:, 2], axis=-1),
        np.linalg.norm(before[:, 1] - before[:, 2], axis=-1),
        atol=1e-6,  # float32 rounding.
    )


def test_every_second_frame_wraps_around():
    np.testing.assert_array_equal(frame_indices(5, 8, 16), [5, 7, 9, 11, 13, 15, 1, 3])
    np.testing.assert_array_equal(frame_indices(15, 3, 16), [15, 1, 3])


def test_an_orbit_too_short_for_its_views_is_refused():
    with pytest.raises(ValueError, match="at least 10 frames, not 9"):
        frame_indices(0, 5, 9)
