import dataclasses
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.errors import InputError
from o3d_jax.io.ply import read_ply, write_ply
from o3d_jax.types import Gaussians

HEADER = b"""ply
format binary_little_endian 1.0
element vertex 2
property float x
property float y
property float z
property float nx
property float ny
property float nz
property float f_dc_0
property float f_dc_1
property float f_dc_2
property float opacity
property float scale_0
property float scale_1
property float scale_2
property float rot_0
property float rot_1
property float rot_2
property float rot_3
end_header
"""


def two_gaussians():
    return Gaussians(
        means=jnp.array([[0.5, -0.25, 1.0], [0.0, 2.0, -3.0]]),
        scales=jnp.array([[1.0, np.e, np.e**2], [0.0, 1.0, 1.0]]),
        quats=jnp.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.6, 0.0, 0.8]]),
        opacities=jnp.array([0.5, 1.0]),
        colors=jnp.array([[0.5, 0.5 + 0.28209479, 0.5 - 0.28209479], [0.5, 0.5, 0.5]]),
    )


def random_gaussians(n, seed=0):
    rng = np.random.default_rng(seed)
    return Gaussians(
        means=jnp.asarray(rng.normal(size=(n, 3)), jnp.float32),
        scales=jnp.asarray(rng.uniform(1e-4, 0.1, (n, 3)), jnp.float32),
        quats=jnp.asarray(rng.normal(size=(n, 4)), jnp.float32),
        opacities=jnp.asarray(rng.uniform(0.006, 0.99, n), jnp.float32),
        colors=jnp.asarray(rng.uniform(size=(n, 3)), jnp.float32),
    )


def test_two_gaussians_give_these_bytes(tmp_path):
    write_ply(tmp_path / "a.ply", two_gaussians())
    content = (tmp_path / "a.ply").read_bytes()
    assert content[: len(HEADER)] == HEADER
    body = content[len(HEADER) :]
    rows = np.array(struct.unpack("<34f", body)).reshape(2, 17)
    # By hand: logit(1/2) = 0, log(e^k) = k, (1/2 + C0 - 1/2) / C0 = 1; opacity 1 is stored as
    # 1 - 1e-6, whose logit is 13.81551; scale 0 as 1e-8, whose log is -18.420681.
    first = [0.5, -0.25, 1, 0, 0, 0, 0, 1, -1, 0, 0, 1, 2, 1, 0, 0, 0]
    second = [0, 2, -3, 0, 0, 0, 0, 0, 0, 13.815510, -18.420681, 0, 0, 0, 0.6, 0, 0.8]
    np.testing.assert_allclose(rows, [first, second], atol=3e-6)  # Digits given above.


def test_what_is_written_reads_back(tmp_path):
    written = random_gaussians(37)
    write_ply(tmp_path / "a.ply", written)
    read = read_ply(tmp_path / "a.ply")
    for field in dataclasses.fields(Gaussians):
        a, b = getattr(written, field.name), getattr(read, field.name)
        # Float32 through log and exp, logit and sigmoid.
        np.testing.assert_allclose(a, b, rtol=3e-6, atol=1e-7, err_msg=field.name)


def test_faint_gaussians_are_dropped_and_the_ends_of_the_range_stay_finite(tmp_path):
    scene = random_gaussians(5)
    opacities = jnp.array([0.0, 0.00499, 0.00501, 1.0, 0.3])
    scene = dataclasses.replace(scene, opacities=opacities, scales=jnp.zeros((5, 3)))
    write_ply(tmp_path / "a.ply", scene)
    np.testing.assert_allclose(read_ply(tmp_path / "a.ply").means, scene.means[2:])
    write_ply(tmp_path / "all.ply", scene, min_opacity=0.0)
    back = read_ply(tmp_path / "all.ply")
    np.testing.assert_allclose(back.opacities, opacities, atol=1.1e-6)  # 1e-6 off 0 and 1.
    assert np.isfinite(np.log(back.scales)).all()


def test_further_properties_and_comments_are_ignored(tmp_path):
    write_ply(tmp_path / "a.ply", two_gaussians())
    content = (tmp_path / "a.ply").read_bytes()
    header, _, body = content.partition(b"end_header\n")
    header = header.replace(b"element", b"comment by another tool\nelement")
    wide = np.frombuffer(body, "<f4").reshape(2, 17)
    wide = np.insert(wide, 9, 7.0, axis=1)  # f_rest_0 lies between f_dc_2 and opacity.
    header = header.replace(
        b"property float opacity", b"property float f_rest_0\nproperty float opacity"
    )
    (tmp_path / "b.ply").write_bytes(header + b"end_header\n" + wide.astype("<f4").tobytes())
    a, b = read_ply(tmp_path / "a.ply"), read_ply(tmp_path / "b.ply")
    np.testing.assert_array_equal(a.quats, b.quats)
    np.testing.assert_array_equal(a.colors, b.colors)


def test_a_batch_and_values_that_are_not_finite_are_not_written(tmp_path):
    scene = random_gaussians(4)
    batch = Gaussians(**{f.name: getattr(scene, f.name)[None] for f in dataclasses.fields(scene)})
    with pytest.raises(ValueError, match="one object"):
        write_ply(tmp_path / "a.ply", batch)
    broken = dataclasses.replace(scene, means=scene.means.at[1, 2].set(jnp.nan))
    with pytest.raises(ValueError, match="1 of 4 Gaussians are not finite"):
        write_ply(tmp_path / "a.ply", broken)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c[:-1], "bytes of data, its header says 136"),
        (lambda c: c + b"\0", "bytes of data, its header says 136"),
        (lambda c: b"solid" + c, "is not a .ply file"),
        (lambda c: c[:100], "is not a .ply file"),
        (lambda c: c.replace(b"binary_little_endian", b"ascii"), "not a binary little-endian"),
        (lambda c: c.replace(b"float opacity", b"float density"), "opacity"),
        (lambda c: c.replace(b"float opacity", b"double opacity"), "types do not fit"),
        (lambda c: c.replace(b"vertex 2", b"vertex two"), "one element, vertex"),
        (lambda c: c.replace(b"element vertex", b"element face"), "one element, vertex"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, change, said):
    write_ply(tmp_path / "a.ply", two_gaussians())
    bad = tmp_path / "bad.ply"
    bad.write_bytes(change((tmp_path / "a.ply").read_bytes()))
    with pytest.raises(InputError, match=said) as refusal:
        read_ply(bad)
    assert str(bad) in str(refusal.value)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="none.ply cannot be read: No such file"):
        read_ply(tmp_path / "none.ply")
