import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.geometry.orbits import orbit
from o3d_jax.geometry.rays import (
    harmonic_embedding,
    nearest_to_origin,
    pluecker_rays,
    ray_directions,
)
from o3d_jax.types import Cameras

SIZE = (3, 5)


def skewed_cameras(batch: tuple[int, ...]) -> Cameras:
    """Random rigid cameras with off-center, anisotropic, skewed intrinsics."""
    rng = np.random.default_rng(0)
    poses = np.zeros((*batch, 4, 4))
    poses[..., :3, :3] = np.linalg.qr(rng.normal(size=(*batch, 3, 3)))[0]
    poses[..., :3, :3] *= np.sign(np.linalg.det(poses[..., :3, :3]))[..., None, None]
    poses[..., :3, 3] = rng.normal(size=(*batch, 3))
    poses[..., 3, 3] = 1
    k = np.zeros((*batch, 3, 3))
    k[...] = [[1.2, 0.07, 0.45], [0, 0.9, 0.6], [0, 0, 1]]
    return Cameras(
        camera_to_world=jnp.asarray(poses, jnp.float32), intrinsics=jnp.asarray(k, jnp.float32)
    )


@pytest.mark.parametrize("batch", [(4,), (2, 3), (1, 2, 3)])
def test_points_on_a_ray_project_to_its_pixel_center(batch):
    cameras = skewed_cameras(batch)
    d = np.asarray(ray_directions(cameras, SIZE), np.float64)
    poses = np.asarray(cameras.camera_to_world, np.float64)
    points = poses[..., None, None, :3, 3] + 2.5 * d
    local = np.einsum(
        "...ji,...hwj->...hwi", poses[..., :3, :3], points - poses[..., None, None, :3, 3]
    )
    image = np.einsum("...ij,...hwj->...hwi", np.asarray(cameras.intrinsics, np.float64), local)
    u = (np.arange(5) + 0.5) / 5
    v = (np.arange(3) + 0.5) / 3
    expected = np.stack(np.meshgrid(u, v), axis=-1)
    # 1e-6: float32 rounding of numbers of about 1, a few operations deep.
    np.testing.assert_allclose(image[..., 2], 2.5, atol=1e-5)
    np.testing.assert_allclose(
        image[..., :2] / image[..., 2:],
        np.broadcast_to(expected, image.shape[:-1] + (2,)),
        atol=2e-6,
    )


def test_moments_are_orthogonal_to_unit_directions():
    rays = np.asarray(pluecker_rays(skewed_cameras((2, 3)), SIZE), np.float64)
    moment, d = rays[..., :3], rays[..., 3:]
    # float32 rounding of dot products of length about 1.
    np.testing.assert_allclose(np.sum(moment * d, axis=-1), 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(d, axis=-1), 1, atol=1e-6)


def test_moments_do_not_change_as_the_origin_slides_along_the_ray():
    cameras = skewed_cameras((4,))
    rays = np.asarray(pluecker_rays(cameras, SIZE), np.float64)
    origin = np.asarray(cameras.camera_to_world, np.float64)[:, None, None, :3, 3]
    slid = np.cross(origin + 3.7 * rays[..., 3:], rays[..., 3:])
    np.testing.assert_allclose(slid, rays[..., :3], atol=2e-6)  # float32 rounding.


def test_nearest_points_are_on_their_rays_and_at_right_angles():
    cameras = skewed_cameras((2, 3))
    rays = pluecker_rays(cameras, SIZE)
    points = np.asarray(nearest_to_origin(rays), np.float64)
    d = np.asarray(rays, np.float64)[..., 3:]
    origin = np.asarray(cameras.camera_to_world, np.float64)[..., None, None, :3, 3]
    # float32 rounding of products of numbers of about 1.
    np.testing.assert_allclose(np.cross(points - origin, d), 0, atol=2e-6)
    np.testing.assert_allclose(np.sum(points * d, axis=-1), 0, atol=1e-6)


def test_pluecker_hand_values_of_a_camera_on_the_z_axis():
    # At (0, 0, 2), looking to -z with 90 degrees; the top right of 2 x 2 pixels is at
    # camera (0.5, -0.5, 1), which is (0.5, 0.5, -1) in the world. o x d = (-1, 1, 0) / |d|.
    cameras = orbit(0.0, np.array([0.0]), 2.0, 90.0)
    found = pluecker_rays(cameras, (2, 2))[0, 0, 1]
    expected = np.array([-1, 1, 0, 0.5, 0.5, -1]) / np.sqrt(1.5)
    np.testing.assert_allclose(found, expected, atol=1e-6)  # float32 rounding.


def test_harmonic_embedding_hand_values():
    x = jnp.array([[0.5, -1.0]])
    # sin of channel 0 at frequencies 1, 2, 4, then of channel 1; the same for cos; then x.
    sines = np.sin([0.5, 1.0, 2.0, -1.0, -2.0, -4.0])
    cosines = np.cos([0.5, 1.0, 2.0, -1.0, -2.0, -4.0])
    expected = np.concatenate([sines, cosines, [0.5, -1.0]])
    found = harmonic_embedding(x, 3)
    assert found.shape == (1, 14)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)  # float32 rounding.
    np.testing.assert_array_equal(harmonic_embedding(x, 0), x)
