"""The release's geometry, against values worked out by hand; `tests/golden` has the original's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.geometry.orbits import orbit
from o3d_jax.geometry.rays import pluecker_rays
from o3d_jax.geometry.released import (
    FRAME_CHOICES,
    drawn_quaternions,
    linspace_frames,
    released_coordinate_map,
    released_rays,
)
from o3d_jax.splat import RenderOptions
from o3d_jax.splat.reference import render_reference
from o3d_jax.types import Cameras, Gaussians


def camera(camera_to_world, intrinsics):
    return Cameras(
        camera_to_world=jnp.asarray(camera_to_world, jnp.float32)[None],
        intrinsics=jnp.asarray(intrinsics, jnp.float32)[None],
    )


POSE = np.array([[0, -1, 0, 0.5], [1, 0, 0, -0.25], [0, 0, 1, 2], [0, 0, 0, 1]])
K = np.array([[2, 0, 0.5], [0, 4, 0.25], [0, 0, 1]])


def test_released_ray_is_turned_back_swapped_and_shifted_by_the_origin():
    # Row 0 of 2 is at 0.25, column 1 at 0.75. The row is read as x: ((0.25 - 0.5) / 2, (0.75 -
    # 0.25) / 4, 1) = (-0.125, 0.125, 1); times R^T it is (0.125, 0.125, 1), less t (-0.375,
    # 0.375, -1).
    found = released_rays(camera(POSE, K), (2, 2))[0, 0, 1]
    direction = np.array([-0.375, 0.375, -1]) / np.sqrt(2 * 0.375**2 + 1)
    expected = [*np.cross([0.5, -0.25, 2], direction), *direction]
    np.testing.assert_allclose(found, expected, atol=1e-6)  # float32 rounding.


def test_released_rays_are_the_true_ones_only_where_both_must_be():
    cameras = orbit(0.0, np.array([0.0]), 1.5, 49.1)  # R is its own transpose, t along the axis.
    true, released = (f(cameras, (3, 3))[0, 1, 1] for f in (pluecker_rays, released_rays))
    np.testing.assert_allclose(true, released, atol=1e-6)  # The middle pixel looks along -z.
    turned = orbit(20.0, np.array([40.0]), 1.5, 49.1)
    true, released = (f(turned, (3, 3)) for f in (pluecker_rays, released_rays))
    assert np.abs(true - released).max() > 0.5


def test_released_map_has_pixel_indices_over_normalized_intrinsics():
    depth = jnp.array([[0.0, 40.0], [1.5, 900.0]]).reshape(1, 2, 2, 1)
    found = released_coordinate_map(depth, camera(POSE, K))[0]
    # Row 0, column 1, depth 40: ((1 - 0.5) / 2, (0 - 0.25) / 4, 1) * 40 = (10, -2.5, 40), turned
    # (2.5, 10, 40), moved (3, 9.75, 42).
    np.testing.assert_allclose(found[0, 1], [0.503, 0.50975, 0.542], atol=1e-6)
    # Row 1, column 0, depth 1.5: (-0.25, 0.1875, 1) * 1.5, turned (-0.28125, -0.375, 1.5).
    np.testing.assert_allclose(
        found[1, 0], 0.5 + np.array([0.21875, -0.625, 3.5]) / 1000, atol=1e-6
    )
    np.testing.assert_array_equal(found[0, 0], [0.5, 0.5, 0.5])
    assert found[1, 1, 2] == 1  # 902 / 1000 + 0.5, clamped.


def test_linspace_frames_skip_one_before_the_last():
    assert linspace_frames(0, 8, 16).tolist() == [0, 2, 4, 6, 8, 10, 12, 15]
    assert linspace_frames(5, 8, 16).tolist() == [5, 7, 9, 11, 13, 15, 1, 4]
    assert linspace_frames(1, 3, 7).tolist() == [1, 4, 0]
    assert FRAME_CHOICES["every_second"](5, 8, 16).tolist() == [5, 7, 9, 11, 13, 15, 1, 3]


@pytest.mark.parametrize("length", [0.01, 0.05])
def test_drawn_quaternions_draw_what_raw_ones_do(length):
    rng = np.random.default_rng(0)
    n = 7
    quats = rng.normal(size=(n, 4))
    quats *= length / np.linalg.norm(quats, axis=-1, keepdims=True)

    def drawn(quats, normalize):
        gaussians = Gaussians(
            means=jnp.asarray(rng_means, jnp.float32),
            scales=jnp.asarray(rng_scales, jnp.float32),
            quats=jnp.asarray(quats, jnp.float32),
            opacities=jnp.full(n, 0.8),
            colors=jnp.asarray(rng_colors, jnp.float32),
        )
        cameras = orbit(10.0, np.array([30.0]), 1.5, 49.1)
        return render_reference(
            gaussians, cameras, (24, 20), jnp.ones(3), RenderOptions(normalize)
        ).rgb

    rng_means, rng_colors = rng.uniform(-0.4, 0.4, (n, 3)), rng.uniform(size=(n, 3))
    rng_scales = rng.uniform(0.02, 0.2, (n, 3))
    raw, unit = drawn(quats, False), drawn(drawn_quaternions(quats), True)
    # The matrix of a raw quaternion differs from a rotation by |q|^2, and so does the picture, but
    # for pixels at a Gaussian's edge, which ends where it covers 1/255.
    assert np.quantile(np.abs(raw - unit), 0.98) < 2 * length**2
    assert np.abs(raw - unit).max() < 1 / 255 + 2 * length**2
    assert np.abs(raw - drawn(quats, True)).max() > 0.05


def test_drawn_quaternions_of_unit_ones_are_the_same_rotations():
    quats = np.random.default_rng(1).normal(size=(5, 4))
    quats /= np.linalg.norm(quats, axis=-1, keepdims=True)
    found = drawn_quaternions(quats)
    np.testing.assert_allclose(np.abs((found * quats).sum(-1)), 1, atol=1e-12)


def test_released_maps_have_finite_gradients():
    cameras = camera(POSE, K)
    depth = jnp.array([[0.0, 40.0], [1.5, 2.0]]).reshape(1, 2, 2, 1)
    slope = jax.grad(lambda d: released_coordinate_map(d, cameras).sum())(depth)
    # d/d depth of the sum of the point's coordinates, over 1000; none where there is no surface.
    np.testing.assert_allclose(slope.ravel()[:3], [0, 1.3125e-3, 0.5625e-3], atol=1e-9)
