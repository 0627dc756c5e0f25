import hashlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from numba import njit

from o3d_jax.config import CameraConfig
from o3d_jax.data.toys.assembly import Toy, assemble
from o3d_jax.data.toys.parts import Coat, ball
from o3d_jax.data.toys.seeded import make_toy, orbit_azimuths, orbit_elevation, render_orbit
from o3d_jax.data.toys.shapes import Eye, Image, Vec
from o3d_jax.data.toys.tracing import distance, draw_toy
from o3d_jax.geometry.ccm import unproject
from o3d_jax.geometry.orbits import orbit_poses, pinhole

CAMERA = CameraConfig()


def view(toy: Toy, pose: np.ndarray, height: int, width: int) -> Image:
    image = Image(
        rgba=np.zeros((height, width, 4), np.uint8),
        depth=np.zeros((height, width, 1), np.float32),
        position=np.zeros((height, width, 3), np.float32),
    )
    focal = float(pinhole(CAMERA.fov)[0, 0])
    rotation = np.ascontiguousarray(pose[:3, :3])
    draw_toy(toy.solid, Eye(pose[:3, 3].copy(), rotation, focal, toy.ball), image)
    return image


def world_directions(pose: np.ndarray, size: int) -> np.ndarray:
    """World directions through pixel centers, 1 along camera z; by matrix inversion."""
    u, v = np.meshgrid((np.arange(size) + 0.5) / size, (np.arange(size) + 0.5) / size)
    pixels = np.stack([u, v, np.ones_like(u)], axis=-1)
    return pixels @ np.linalg.inv(pinhole(CAMERA.fov)).T @ pose[:3, :3].T


def test_a_ball_has_its_closed_form_depth_position_and_area():
    size, coat = 37, Coat(first=(0.5, 0.4, 0.3))
    toy = assemble([ball(coat, 1.0)], 0.51)
    radius = 0.51 / 1.02  # `assemble` leaves 2 % room.
    pose = orbit_poses(20.0, np.array([50.0]), CAMERA.radius)[0]
    found = view(toy, pose, size, size)
    d, o = world_directions(pose, size), pose[:3, 3]
    a, b, c = np.sum(d * d, -1), d @ o, o @ o - radius**2
    root = b * b - a * c
    depth = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, 0)
    # Rays stop 1e-5 before the surface, measured across it: more along it at the very edge.
    inner = root > 0.02
    assert inner.sum() > 200
    np.testing.assert_allclose(found.depth[inner, 0], depth[inner], atol=5e-5)
    position = np.where(depth[..., None] > 0, o + depth[..., None] * d, 0)
    np.testing.assert_allclose(found.position[inner], position[inner], atol=5e-5)
    np.testing.assert_array_equal(found.depth[root < -1e-3], 0)
    outline = np.tan(np.arcsin(radius / CAMERA.radius)) * pinhole(CAMERA.fov)[0, 0] * size
    # 16 rays on each of about 100 edge pixels: 1 % is several standard deviations.
    area = found.rgba[..., 3].sum() / 255
    np.testing.assert_allclose(area, np.pi * outline**2, rtol=0.01)


@njit
def first_inside(solid, origin, d, step, end):
    """First length along unit rays at which a dense march is inside, or -1."""
    found = -np.ones(len(d))
    for i in range(len(d)):
        t = origin[3]
        while t < end:
            p = Vec(origin[0] + t * d[i, 0], origin[1] + t * d[i, 1], origin[2] + t * d[i, 2])
            if distance(solid, p) < 0:
                found[i] = t
                break
            t += step
    return found


@pytest.mark.parametrize("seed", range(8))
def test_depth_agrees_with_a_dense_march(seed):
    size, step = 24, 5e-4
    toy = make_toy(seed)
    pose = orbit_poses(15.0, np.array([77.0 * seed]), CAMERA.radius)[0]
    found = view(toy, pose, size, size).depth[..., 0].ravel()
    d = world_directions(pose, size).reshape(-1, 3)
    length = np.linalg.norm(d, axis=1)
    start = np.append(pose[:3, 3], CAMERA.radius - toy.ball)
    dense = first_inside(toy.solid, start, d / length[:, None], step, CAMERA.radius + toy.ball)
    solid = dense > 0
    assert solid.sum() > 50
    # No ray may step through a surface that the dense march finds.
    assert np.all(found[solid] > 0)
    assert np.all(found[solid] * length[solid] < dense[solid] + 1e-5)
    # A grazing ray stops 1e-5 off the surface, where the march goes by: 3 % of the object's pixels.
    early = (found * length < dense - 2 * step - 1e-4) | ((found > 0) & ~solid)
    assert early.sum() <= 0.03 * solid.sum()


def test_position_is_the_unprojected_depth_and_in_the_ball():
    found = render_orbit(3, 20, frames=5, camera=CAMERA)
    solid = found.depth[..., 0] > 0
    expected = np.asarray(unproject(jnp.asarray(found.depth), found.cameras))
    # float32 rounding of lengths of about 1.5.
    np.testing.assert_allclose(found.position[solid], expected[solid], atol=2e-6)
    assert np.linalg.norm(found.position[solid], axis=-1).max() < 0.6


def test_colors_agree_between_views_of_the_same_point():
    # Views a degree apart: the same points, lit the same. Where a neighbor pixel differs by an
    # edge or a pattern, it may not match; hence the median.
    toy, size = make_toy(4), 64
    one, other = (
        view(toy, pose, size, size) for pose in orbit_poses(10.0, np.array([40.0, 41.0]), 1.5)
    )
    a, b = one.position[one.depth[..., 0] > 0], other.position[other.depth[..., 0] > 0]
    nearest = np.argmin(((a[:, None, :] - b[None, :, :]) ** 2).sum(-1), axis=1)
    first = one.rgba[one.depth[..., 0] > 0].astype(float)
    second = other.rgba[other.depth[..., 0] > 0].astype(float)[nearest]
    # 4 of 255: shading changes this much over the half pixel between nearest neighbors.
    assert np.median(np.abs(first - second)) <= 4


def digest(seed: int) -> str:
    found = render_orbit(seed, 16, frames=3, camera=CAMERA)
    return hashlib.sha256(
        found.rgba.tobytes() + found.depth.tobytes() + found.position.tobytes()
    ).hexdigest()


def test_an_orbit_is_bit_identical_in_another_process():
    script = (
        "import sys; sys.path.insert(0, 'tests/data/toys'); from test_seeded import digest; "
        "print(digest(12))"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert other.stdout.strip() == digest(12) == digest(12), other.stderr


def test_seeds_give_different_objects():
    digests = {digest(seed) for seed in range(20)}
    assert len(digests) == 20


def test_elevations_fill_the_range_and_azimuths_are_even():
    elevations = np.array([orbit_elevation(seed, (-5.0, 30.0)) for seed in range(400)])
    assert elevations.min() >= -5
    assert elevations.max() <= 30
    # The mean of 400 uniform draws is 12.5 with a standard deviation of 0.5.
    assert abs(elevations.mean() - 12.5) < 2
    np.testing.assert_allclose(np.diff(orbit_azimuths(5, 16)), 22.5, atol=1e-9)
    starts = np.array([orbit_azimuths(seed, 1)[0] for seed in range(400)])
    assert abs(starts.mean() - 180) < 21  # Four standard deviations.
    found = render_orbit(9, 1, frames=3, camera=CAMERA, elevation_range=(20.0, 21.0))
    height = np.asarray(found.cameras.camera_to_world)[:, 1, 3] / CAMERA.radius
    assert np.all((np.sin(np.deg2rad(20)) <= height) & (height <= np.sin(np.deg2rad(21))))


def test_objects_are_never_cropped():
    for seed in range(50):
        rgba = render_orbit(seed, 24, frames=3, camera=CAMERA).rgba
        alpha = rgba[..., 3]
        for border in (alpha[:, 0], alpha[:, -1], alpha[:, :, 0], alpha[:, :, -1]):
            assert border.max() == 0, seed
        # They fill some of it, too: 5 % of the picture at least.
        assert (alpha > 0).mean() > 0.05, seed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"camera": CameraConfig(radius=0.6)}, "camera.radius 0.6 must exceed 0.6"),
        ({"camera": CAMERA, "elevation_range": (10.0, 5.0)}, "elevation range"),
        ({"camera": CAMERA, "frames": 0}, "0 frames"),
    ],
)
def test_impossible_orbits_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        render_orbit(0, 8, **arguments)
