"""Objects stand upright in files, whatever the input's elevation: read by decoders of our own."""

import dataclasses
import math
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.geometry.orbits import orbit, orbit_poses, relative_poses, relative_to_first
from o3d_jax.geometry.upright import TURNS, from_axes, to_axes, turned_about_x, upright
from o3d_jax.media.ply import read_ply, write_ply
from o3d_jax.media.splat import read_splat, write_splat
from o3d_jax.splat import render
from o3d_jax.types import Gaussians

ELEVATION = 25.0
RED, BLUE, GREEN = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)
STANDING = np.array([[0.0, 0.8, 0.0], [0.7, 0.0, 0.0], [0.0, 0.0, 0.6]])  # Up, right, front.
LENGTHS = np.array([[0.1, 0.3, 0.02], [0.25, 0.04, 0.05], [0.03, 0.06, 0.2]])

WHERE = {  # Up, right and front in each file, by hand.
    "y-up": [(0, 1, 0), (1, 0, 0), (0, 0, 1)],
    "y-down": [(0, -1, 0), (1, 0, 0), (0, 0, -1)],
    "z-up": [(0, 0, 1), (1, 0, 0), (0, -1, 0)],
}


def seen_from_above():
    """Red up, blue to the right, green to the front, in the method's world for ELEVATION.

    Each is long along the axes of the upright world, by LENGTHS.
    """
    pose = orbit_poses(ELEVATION, np.zeros(1), 2.0)
    turn = (relative_poses(pose) @ np.linalg.inv(pose))[0, :3, :3]
    half = math.acos((np.trace(turn) - 1) / 2) / 2
    axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    axis /= np.linalg.norm(axis)
    quat = [math.cos(half), *(math.sin(half) * axis)]
    return Gaussians(
        means=jnp.asarray(STANDING @ turn.T, jnp.float32),
        scales=jnp.asarray(LENGTHS, jnp.float32),
        quats=jnp.tile(jnp.asarray(quat, jnp.float32), (3, 1)),
        opacities=jnp.array([0.9, 0.8, 0.7]),
        colors=jnp.array([RED, BLUE, GREEN]),
    )


def matrix(w, x, y, z):
    """The rotation of a quaternion: where it takes the axes, by p -> q p q*."""

    def times(a, b):
        (p, *u), (r, *v) = a, b
        vector = p * np.array(v) + r * np.array(u) + np.cross(u, v)
        return (p * r - np.dot(u, v), *vector)

    norm = math.sqrt(w * w + x * x + y * y + z * z)
    q, conjugate = np.array([w, x, y, z]) / norm, np.array([w, -x, -y, -z]) / norm
    return np.stack([times(times(q, (0, *e)), conjugate)[1:] for e in np.eye(3)], axis=1)


def decoded_ply(path):
    """Color to mean and covariance, by the layout of 3D Gaussian Splatting."""
    header, body = path.read_bytes().split(b"end_header\n")
    names = [line.split()[2] for line in header.decode().splitlines() if "float" in line]
    found = {}
    for values in struct.iter_unpack(f"<{len(names)}f", body):
        row = dict(zip(names, values, strict=True))
        color = tuple(round(0.5 + row[f"f_dc_{i}"] * 0.28209479) for i in range(3))
        turn = matrix(*(row[f"rot_{i}"] for i in range(4)))
        lengths = np.exp([row[f"scale_{i}"] for i in range(3)])
        found[color] = np.array([row[a] for a in "xyz"]), turn @ np.diag(lengths**2) @ turn.T
    return found


def decoded_splat(path):
    """The same of 32 bytes a Gaussian."""
    found = {}
    for row in struct.iter_unpack("<6f8B", path.read_bytes()):
        turn = matrix(*((byte - 128) / 128 for byte in row[10:]))
        covariance = turn @ np.diag(np.square(row[3:6])) @ turn.T
        found[tuple(round(byte / 255) for byte in row[6:9])] = np.array(row[:3]), covariance
    return found


@pytest.mark.parametrize("up", WHERE)
@pytest.mark.parametrize(
    ("write", "decoded", "loose"),
    # Four float32 roundings; and bytes turn by up to 0.9 degrees, of lengths up to 0.3.
    [(write_ply, decoded_ply, 1e-6), (write_splat, decoded_splat, 0.3**2 * 0.016)],
)
def test_red_is_up_blue_right_and_green_in_front_in_each_file(up, write, decoded, loose, tmp_path):
    write(tmp_path / "a", upright(seen_from_above(), ELEVATION), up=up)
    found = decoded(tmp_path / "a")
    assert found.keys() == {RED, BLUE, GREEN}
    axes = np.array(WHERE[up], float)  # Rows: where the upright y, x and z are.
    to_file = axes[[1, 0, 2]].T
    assert np.linalg.det(to_file) == 1  # No mirror.
    for i, color in enumerate((RED, BLUE, GREEN)):
        mean, covariance = found[color]
        np.testing.assert_allclose(mean, axes[i] * np.abs(STANDING[i]).max(), atol=1e-6)
        expected = to_file @ np.diag(LENGTHS[i] ** 2) @ to_file.T
        np.testing.assert_allclose(covariance, expected, rtol=0, atol=loose)


@jax.jit
def drawn(gaussians, cameras):
    return render(gaussians, cameras, (20, 28), jnp.ones(3)).rgb


def random_scene(*shape):
    rng = np.random.default_rng(3)
    return Gaussians(
        means=jnp.asarray(rng.uniform(-0.5, 0.5, (*shape, 3)), jnp.float32),
        scales=jnp.asarray(rng.uniform(0.02, 0.2, (*shape, 3)), jnp.float32),
        quats=jnp.asarray(rng.normal(size=(*shape, 4)), jnp.float32),
        opacities=jnp.asarray(rng.uniform(0.3, 0.9, shape), jnp.float32),
        colors=jnp.asarray(rng.uniform(size=(*shape, 3)), jnp.float32),
    )


@pytest.mark.parametrize("elevation", [-35.0, 0.0, ELEVATION])
def test_the_upright_object_looks_from_its_orbit_as_the_method_draws_it(elevation):
    scene, cameras = random_scene(9), orbit(elevation, np.array([0.0, 75.0, 190.0]), 2.5, 49.1)
    relative = drawn(scene, relative_to_first(cameras))
    assert np.ptp(relative) > 0.3
    # Rounding of means (1e-7 at 30 px a unit) against edges of 0.02; colors are up to 1.
    np.testing.assert_allclose(drawn(upright(scene, elevation), cameras), relative, atol=2e-5)


@pytest.mark.parametrize("up", TURNS)
@pytest.mark.parametrize(
    ("write", "read", "loose"), [(write_ply, read_ply, 1e-5), (write_splat, read_splat, 0.02)]
)
def test_a_file_of_any_axes_reads_back_as_the_same_picture(up, write, read, loose, tmp_path):
    scene = random_scene(9)
    write(tmp_path / "a", scene, up=up)
    back = read(tmp_path / "a", up=up)
    cameras = orbit(10.0, np.array([20.0, 140.0, 300.0]), 2.5, 49.1)
    # Rounding; bytes of a .splat are up to 1/510 off in color and opacity, and turned by 0.9 deg.
    np.testing.assert_allclose(drawn(back, cameras), drawn(scene, cameras), atol=loose)


def test_objects_of_a_batch_are_turned_each_by_itself():
    scenes = random_scene(2, 5)
    together = turned_about_x(scenes, 63.0)
    for i in range(2):
        alone = turned_about_x(jax.tree.map(lambda a, i=i: a[i], scenes), 63.0)
        np.testing.assert_array_equal(together.means[i], alone.means)
        np.testing.assert_array_equal(together.quats[i], alone.quats)


def test_a_zero_quaternion_is_turned_as_the_identity():
    scene = dataclasses.replace(random_scene(3), quats=jnp.zeros((3, 4)))
    expected = [math.cos(math.radians(20)), math.sin(math.radians(20)), 0, 0]
    np.testing.assert_allclose(turned_about_x(scene, 40.0).quats, [expected] * 3, atol=1e-7)


def test_a_ply_says_its_axes_and_what_the_reader_is_told_goes_first(tmp_path):
    scene = upright(seen_from_above(), ELEVATION)
    write_ply(tmp_path / "a.ply", scene, up="z-up")
    assert b"\ncomment o3d_jax up z-up\n" in (tmp_path / "a.ply").read_bytes()
    np.testing.assert_allclose(read_ply(tmp_path / "a.ply").means, scene.means, atol=1e-7)
    red, *_ = read_ply(tmp_path / "a.ply", up="y-up").means  # As the file has it.
    np.testing.assert_allclose(red, [0, 0, 0.8], atol=1e-6)
    silent = (tmp_path / "a.ply").read_bytes().replace(b"comment o3d_jax up z-up\n", b"")
    (tmp_path / "b.ply").write_bytes(silent)  # As others write it: y down.
    red, *_ = read_ply(tmp_path / "b.ply").means
    np.testing.assert_allclose(red, [0, 0, -0.8], atol=1e-6)


def test_half_turns_are_exact_and_turns_add_up():
    scene = seen_from_above()
    back = from_axes(to_axes(scene, "y-down"), "y-down")
    np.testing.assert_array_equal(back.means, scene.means)
    np.testing.assert_array_equal(back.quats, scene.quats)
    twice = turned_about_x(turned_about_x(scene, 20.0), 43.0)
    once = turned_about_x(scene, 63.0)
    np.testing.assert_allclose(twice.means, once.means, atol=2e-7)  # Two roundings of up to 1.
    np.testing.assert_allclose(twice.quats, once.quats, atol=2e-7)
