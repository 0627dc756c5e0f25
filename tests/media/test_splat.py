import dataclasses
import hashlib
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.errors import InputError
from o3d_jax.media.splat import read_splat, write_splat
from o3d_jax.types import Gaussians


def three_gaussians():
    """Volume times opacity: 0.1875, 1 and 0.1875."""
    return Gaussians(
        means=jnp.array([[0.5, -0.25, 1.0], [0.0, 2.0, -3.0], [1.5, 0.0, 0.125]]),
        scales=jnp.array([[0.5, 0.25, 2.0], [1.0, 1.0, 1.0], [0.25, 0.5, 2.0]]),
        quats=jnp.array([[0.0, 3.0, 0.0, -4.0], [1.0, 0.0, 0.0, 0.0], [-2.0, 0, 0, 0]]),
        opacities=jnp.array([0.75, 1.0, 0.75]),
        colors=jnp.array([[1.0, 0.5, 0.0], [0.25, 1.5, -0.5], [0.2, 0.4, 0.6]]),
    )


def random_gaussians(n, seed=0):
    rng = np.random.default_rng(seed)
    return Gaussians(
        means=jnp.asarray(rng.normal(size=(n, 3)), jnp.float32),
        scales=jnp.asarray(rng.uniform(1e-4, 0.1, (n, 3)), jnp.float32),
        quats=jnp.asarray(rng.normal(size=(n, 4)), jnp.float32),
        opacities=jnp.asarray(rng.uniform(0.006, 1.0, n), jnp.float32),
        colors=jnp.asarray(rng.uniform(size=(n, 3)), jnp.float32),
    )


def test_three_gaussians_give_these_bytes(tmp_path):
    write_splat(tmp_path / "a.splat", three_gaussians(), up="y-up")
    content = (tmp_path / "a.splat").read_bytes()
    # By hand. The heaviest first, then equals by index. Bytes: value * 255 to the nearest, halves
    # to even (127.5 -> 128), within 0 .. 255; q / |q| * 128 + 128, so 0.6 -> 204.8 -> 205,
    # -0.8 -> 25.6 -> 26, -1 -> 0 and 1 -> 256 -> 255.
    heaviest = struct.pack("<6f8B", 0, 2, -3, 1, 1, 1, 64, 255, 0, 255, 255, 128, 128, 128)
    first = struct.pack("<6f8B", 0.5, -0.25, 1, 0.5, 0.25, 2, 255, 128, 0, 191, 128, 205, 128, 26)
    third = struct.pack("<6f8B", 1.5, 0, 0.125, 0.25, 0.5, 2, 51, 102, 153, 191, 0, 128, 128, 128)
    assert content == heaviest + first + third


def test_a_scene_of_other_numbers_keeps_its_digest(tmp_path):
    write_splat(tmp_path / "a.splat", random_gaussians(50), up="y-up")
    digest = hashlib.sha256((tmp_path / "a.splat").read_bytes()).hexdigest()
    assert digest == "9d1556f15b511d18b35e850b367d79d98989770f78ebd74d3bd6b20abe1944db"


def test_what_is_written_reads_back_to_the_formats_precision(tmp_path):
    written = random_gaussians(300)
    write_splat(tmp_path / "a.splat", written)
    read = read_splat(tmp_path / "a.splat")
    weight = np.asarray(written.scales, np.float64).prod(axis=1) * np.asarray(written.opacities)
    order = np.array(sorted(range(300), key=lambda i: -weight[i]))
    np.testing.assert_array_equal(read.means, written.means[order])
    np.testing.assert_array_equal(read.scales, written.scales[order])
    half_a_byte = 0.5 / 255 + 1e-7  # float32 of the quotient.
    np.testing.assert_allclose(read.colors, written.colors[order], rtol=0, atol=half_a_byte)
    np.testing.assert_allclose(read.opacities, written.opacities[order], rtol=0, atol=half_a_byte)
    quats = np.asarray(written.quats[order], np.float64)
    quats /= np.linalg.norm(quats, axis=-1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(read.quats, axis=-1), 1, rtol=1e-6)
    degrees = 2 * np.rad2deg(np.arccos(np.abs((quats * read.quats).sum(axis=-1)).clip(0, 1)))
    # Four bytes, each half of 1/128 off, turn the quaternion by asin(1/128), the object by twice.
    assert 0.3 < degrees.max() < 0.9


def test_reading_a_file_and_writing_it_again_changes_no_byte_but_of_rotations(tmp_path):
    scene = random_gaussians(300)
    # Else a rounded opacity may change places in the order.
    scene = dataclasses.replace(scene, opacities=jnp.ones(300))
    write_splat(tmp_path / "a.splat", scene)
    write_splat(tmp_path / "b.splat", read_splat(tmp_path / "a.splat"))
    a, b = (np.fromfile(tmp_path / f"{x}.splat", np.uint8).reshape(-1, 32) for x in "ab")
    np.testing.assert_array_equal(a[:, :28], b[:, :28])
    # A quaternion of rounded bytes is not of unit length, so it is rounded twice.
    assert np.abs(a[:, 28:].astype(int) - b[:, 28:]).max() <= 1


def test_a_zero_quaternion_is_the_identity(tmp_path):
    scene = dataclasses.replace(three_gaussians(), quats=jnp.zeros((3, 4)))
    write_splat(tmp_path / "a.splat", scene, up="y-up")
    content = (tmp_path / "a.splat").read_bytes()
    assert content[28:32] == bytes([255, 128, 128, 128])
    np.testing.assert_array_equal(
        read_splat(tmp_path / "a.splat", up="y-up").quats, np.eye(4)[[0, 0, 0]]
    )
    (tmp_path / "b.splat").write_bytes(content[:28] + bytes([128] * 4))
    np.testing.assert_array_equal(read_splat(tmp_path / "b.splat", up="y-up").quats, [[1, 0, 0, 0]])


def row(*floats):
    return struct.pack("<6f8B", *floats, *range(8))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (row(1, 2, 3, 1, 1, 1)[:-1], "31 bytes, no multiple of 32"),
        (row(1, 2, 3, 1, 1, 1) + b"\0", "33 bytes, no multiple of 32"),
        (row(1, 2, 3, 1, 1, 1) + row(1, np.nan, 3, 1, 1, 1), "1 of 2 Gaussians are not finite"),
        (row(1, 2, 3, 1, 1, np.inf), "1 of 1 Gaussians are not finite"),
        (row(1, 2, 3, 1, -1, 1), "scales below 0"),
        (b"ply\nformat binary_little_endian 1.0\nend_header\n".ljust(64), "is a .ply file"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, content, said):
    (tmp_path / "bad.splat").write_bytes(content)
    with pytest.raises(InputError, match=said) as refusal:
        read_splat(tmp_path / "bad.splat")
    assert str(tmp_path / "bad.splat") in str(refusal.value)
    assert "\n" not in str(refusal.value)
