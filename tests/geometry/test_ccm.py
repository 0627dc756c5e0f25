import jax
import jax.numpy as jnp
import numpy as np

from o3d_jax.geometry.ccm import coordinate_map, surface_depth
from o3d_jax.geometry.orbits import orbit
from o3d_jax.types import Cameras


def test_ccm_of_one_point_agrees_between_views():
    point = np.array([0.21, -0.13, 0.32])
    cameras = orbit(17.0, np.array([0.0, 100.0, 250.0]), 1.5, 49.1)
    poses = np.asarray(cameras.camera_to_world, np.float64)
    local = np.einsum("vji,vj->vi", poses[:, :3, :3], point[None, :] - poses[:, :3, 3])
    # A principal point that puts the point at the center of the only pixel.
    k = np.asarray(cameras.intrinsics, np.float64).copy()
    k[:, :2, 2] = 0.5 - k[:, [0, 1], [0, 1]] * local[:, :2] / local[:, 2:]
    cameras = Cameras(
        camera_to_world=cameras.camera_to_world, intrinsics=jnp.asarray(k, jnp.float32)
    )
    depth = jnp.asarray(local[:, 2], jnp.float32).reshape(3, 1, 1, 1)
    found = coordinate_map(depth, cameras).reshape(3, 3)
    expected = np.tile(0.5 * point + 0.5, (3, 1))
    np.testing.assert_allclose(found, expected, atol=1e-6)  # float32 rounding.


def test_ccm_hand_values_clamp_and_empty():
    # Camera at (0, 0, 2) looking to -z, 90 degrees; 1 x 2 pixels at camera x = -0.5, 0.5 (times z).
    cameras = orbit(0.0, np.array([0.0]), 2.0, 90.0)
    depth = jnp.array([1.5, 1.0]).reshape(1, 1, 2, 1)
    found = coordinate_map(depth, cameras)[0, 0]
    # Points (-0.75, 0, 0.5) and (0.5, 0, 1).
    np.testing.assert_allclose(found, [[0.125, 0.5, 0.75], [0.75, 0.5, 1.0]], atol=1e-6)
    far_and_empty = coordinate_map(jnp.array([9.0, 0.0]).reshape(1, 1, 2, 1), cameras)[0, 0]
    # (-4.5, 0, -7) clamps to (0, 0.5, 0).
    np.testing.assert_allclose(far_and_empty, [[0.0, 0.5, 0.0], [0.5, 0.5, 0.5]], atol=1e-6)


def test_surface_depth_divides_by_alpha_only_where_solid():
    depth = jnp.array([1.2, 0.9, 0.4, 0.0]).reshape(1, 2, 2, 1)
    alpha = jnp.array([1.0, 0.6, 0.5, 0.0]).reshape(1, 2, 2, 1)
    found = surface_depth(depth, alpha).ravel()
    np.testing.assert_allclose(found, [1.2, 1.5, 0.0, 0.0], rtol=1e-6)


def test_surface_depth_has_finite_gradients_in_empty_pixels():
    zeros = jnp.zeros((1, 2, 3, 1))
    gradients = jax.grad(lambda d, a: surface_depth(d, a).sum(), argnums=(0, 1))(zeros, zeros)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)
