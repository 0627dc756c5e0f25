"""What .ply and .splat share: which values are written and read, and that a refusal is one line."""

import dataclasses
import errno
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.errors import InputError
from o3d_jax.media.ply import read_ply, write_ply
from o3d_jax.media.splat import read_splat, write_splat
from o3d_jax.types import Gaussians

FORMATS = [(write_ply, read_ply, "a.ply"), (write_splat, read_splat, "a.splat")]
FIELDS = [field.name for field in dataclasses.fields(Gaussians)]


@pytest.fixture
def scene():
    """Five Gaussians, in the order of their importance."""
    rng = np.random.default_rng(0)
    return Gaussians(
        means=jnp.asarray(rng.normal(size=(5, 3)), jnp.float32),
        scales=jnp.asarray([[0.5], [0.4], [0.3], [0.2], [0.1]], jnp.float32).repeat(3, 1),
        quats=jnp.asarray(rng.normal(size=(5, 4)), jnp.float32),
        opacities=jnp.array([0.9, 0.8, 0.00501, 0.00499, 0.0]),
        colors=jnp.asarray(rng.uniform(size=(5, 3)), jnp.float32),
    )


@pytest.mark.parametrize(("write", "read", "name"), FORMATS)
def test_gaussians_below_the_least_opacity_are_left_out(write, read, name, scene, tmp_path):
    path = tmp_path / name
    write(path, scene)
    np.testing.assert_array_equal(read(path).means, scene.means[:3])
    write(path, scene, min_opacity=0.0)
    np.testing.assert_array_equal(read(path).means, scene.means)
    write(path, scene, min_opacity=0.85)
    np.testing.assert_array_equal(read(path).means, scene.means[:1])
    write(path, scene, min_opacity=1.0)
    nothing = read(path)
    assert [getattr(nothing, f).shape for f in FIELDS] == [(0, 3), (0, 3), (0, 4), (0,), (0, 3)]


@pytest.mark.parametrize(("write", "read", "name"), FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", FIELDS)
def test_values_that_are_not_finite_are_not_written(
    write, read, name, field, value, scene, tmp_path
):
    path = tmp_path / name
    path.write_bytes(b"an earlier file")
    values = getattr(scene, field)
    # The second is seen; the fourth would be left out as too faint, but is as wrong.
    broken = dataclasses.replace(scene, **{field: values.at[jnp.array([1, 3])].set(value)})
    with pytest.raises(ValueError, match=f"2 of 5 Gaussians are not finite; .*{name}"):
        write(path, broken)
    assert path.read_bytes() == b"an earlier file"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("write", "read", "name"), FORMATS)
def test_a_disk_that_fills_up_leaves_the_earlier_file(
    write, read, name, scene, tmp_path, monkeypatch
):
    path = tmp_path / name
    path.write_bytes(b"an earlier file")

    def write_half(self, content):
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="No space left"):
        write(path, scene)
    assert path.read_bytes() == b"an earlier file"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("write", "read", "name"), FORMATS)
def test_a_batch_and_negative_scales_are_not_written(write, read, name, scene, tmp_path):
    batch = Gaussians(**{field: getattr(scene, field)[None] for field in FIELDS})
    with pytest.raises(ValueError, match=r"\(1, 5, 3\).*one object"):
        write(tmp_path / name, batch)
    mirrored = dataclasses.replace(scene, scales=scene.scales.at[4, 1].set(-0.25))
    with pytest.raises(ValueError, match="least scale is -0.25"):
        write(tmp_path / name, mirrored)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("write", "read", "name"), FORMATS)
def test_a_file_that_cannot_be_read_is_refused_by_name(write, read, name, tmp_path):
    with pytest.raises(InputError, match=f"{name} cannot be read: No such file"):
        read(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize(("write", "read", "name"), FORMATS)
def test_bfloat16_is_written_as_the_numbers_it_holds(write, read, name, scene, tmp_path):
    coarse = Gaussians(**{field: getattr(scene, field).astype(jnp.bfloat16) for field in FIELDS})
    write(tmp_path / name, coarse, min_opacity=0.5)
    back = read(tmp_path / name)
    np.testing.assert_array_equal(back.means, coarse.means[:2].astype(jnp.float32))
    # A logarithm in float32 is off by at most 2^-25, and the result is rounded once more.
    np.testing.assert_allclose(back.scales, coarse.scales[:2].astype(jnp.float32), rtol=1e-7)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("write", "read", "name"), FORMATS)
def test_bad_gaussians_of_other_programs_can_be_dropped_and_are_counted(
    write, read, name, value, scene, tmp_path
):
    path = tmp_path / name
    write(path, scene, min_opacity=0.0)
    good = read(path)
    content = path.read_bytes()
    start = len(content) - 5 * (len(content.rpartition(b"end_header\n")[2]) // 5)
    row = (len(content) - start) // 5
    rows = [bytearray(content[start + i * row :][:row]) for i in range(5)]
    for bad in (1, 3):
        rows[bad][4:8] = struct.pack("<f", value)  # y
    path.write_bytes(content[:start] + b"".join(rows))
    with pytest.raises(InputError, match="2 of 5 Gaussians are not finite.* drop_bad=True") as said:
        read(path)
    assert str(path) in str(said.value)
    with pytest.warns(UserWarning, match=f"{name}: 2 of 5 Gaussians are not finite, and left out"):
        found = read(path, drop_bad=True)
    for field in FIELDS:
        expected = np.asarray(getattr(good, field))[[0, 2, 4]]
        np.testing.assert_array_equal(getattr(found, field), expected)
    for each in rows:
        each[4:8] = struct.pack("<f", value)
    path.write_bytes(content[:start] + b"".join(rows))
    with pytest.raises(InputError, match="5 of 5 Gaussians are not finite; export it anew$"):
        read(path, drop_bad=True)
