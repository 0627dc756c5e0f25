import dataclasses
import hashlib
import math
import struct
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.errors import InputError
from o3d_jax.media.ply import read_ply, write_ply
from o3d_jax.splat import render
from o3d_jax.types import Cameras, Gaussians

HEADER = b"""ply
format binary_little_endian 1.0
comment o3d_jax up y-up
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
        scales=jnp.array([[0.5, 1.0, 4.0], [0.0, 1.0, 1.0]]),
        quats=jnp.array([[1.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, -4.0]]),
        opacities=jnp.array([0.75, 1.0]),
        colors=jnp.array([[0.5, 0.75, 0.25], [0.5, 0.5, 1.5]]),
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


def assert_same(a, b):
    for field in dataclasses.fields(Gaussians):
        left, right = getattr(a, field.name), getattr(b, field.name)
        # Float32 through log and exp, logit and sigmoid: half a unit of a logarithm of up to 18,
        # 2^-20, and one of the result.
        np.testing.assert_allclose(left, right, rtol=1.1e-6, atol=1e-7, err_msg=field.name)


def test_two_gaussians_give_these_bytes(tmp_path):
    write_ply(tmp_path / "a.ply", two_gaussians(), up="y-up")
    # By hand: (3/4 - 1/2) / C0 = sqrt(pi) / 2, logit(3/4) = log 3; opacity 1 is stored as
    # 1 - 1e-6, whose logit is log(1e6 - 1), and scale 0 as 1e-8. Quaternions stay as they are.
    c = math.sqrt(math.pi) / 2
    first = [0.5, -0.25, 1, 0, 0, 0, 0, c, -c, math.log(3), -math.log(2), 0, 2 * math.log(2)]
    second = [0, 2, -3, 0, 0, 0, 0, 0, 4 * c, math.log(1e6 - 1), -8 * math.log(10), 0, 0]
    body = struct.pack("<34f", *first, 1, 0, 0, 0, *second, 0, 3, 0, -4)
    assert (tmp_path / "a.ply").read_bytes() == HEADER + body


def test_a_scene_of_other_numbers_keeps_its_digest(tmp_path):
    write_ply(tmp_path / "a.ply", random_gaussians(50), up="y-up")
    content = (tmp_path / "a.ply").read_bytes().replace(b"comment o3d_jax up y-up\n", b"")
    digest = hashlib.sha256(content).hexdigest()
    assert digest == "bb53e9268222045199a806f8bbfc78dccadab6871bfb4efb872ce5684a047581"


def test_what_is_written_reads_back(tmp_path):
    written = random_gaussians(37)
    write_ply(tmp_path / "a.ply", written)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(read_ply(tmp_path / "a.ply"), written)


def test_the_ends_of_the_range_stay_finite(tmp_path):
    scene = random_gaussians(3)
    opacities = jnp.array([0.0, 1.0, 0.3])
    scene = dataclasses.replace(scene, opacities=opacities, scales=jnp.zeros((3, 3)))
    write_ply(tmp_path / "a.ply", scene, min_opacity=0.0)
    back = read_ply(tmp_path / "a.ply")
    np.testing.assert_allclose(back.opacities, opacities, atol=1.1e-6)  # 1e-6 off 0 and 1.
    np.testing.assert_allclose(back.scales, 1e-8, rtol=2e-6)  # log(1e-8) in float32.


# Files of other programs, made here from the definition of the format.

TYPES = {"f4": "float", "f8": "double", "u1": "uchar", "i2": "short", "u4": "uint32"}
STORED = ("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity")
STORED += ("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3")


def vertices(scene, kinds):
    """The scene as a table with these properties (name -> type), before activation."""
    o = np.asarray(scene.opacities, np.float64)
    values = [scene.means, (np.asarray(scene.colors, np.float64) - 0.5) * 2 * math.sqrt(math.pi)]
    values += [np.log(o / (1 - o))[:, None], np.log(np.asarray(scene.scales, np.float64))]
    columns = dict(zip(STORED, np.concatenate([*values, scene.quats], axis=1).T, strict=True))
    table = np.zeros(len(o), [(name, kind) for name, kind in kinds.items()])
    for name in kinds:
        table[name] = columns.get(name, 7)
    return table


def element(name, table):
    lines = [f"element {name} {len(table)}"]
    for field, (kind, _) in (table.dtype.fields or {}).items():
        lines.append(f"property {TYPES[kind.str[1:]]} {field}")
    return "\n".join(lines) + "\n"


def ply(*elements, order="<", newline="\n", remark="comment by another tool\n"):
    """A file of these (name, table)."""
    kind = {"<": "binary_little_endian", ">": "binary_big_endian"}[order]
    header = f"ply\nformat {kind} 1.0\n{remark}" + "".join(element(*pair) for pair in elements)
    header = (header + "end_header\n").replace("\n", newline).encode()
    return header + b"".join(t.astype(t.dtype.newbyteorder(order)).tobytes() for _, t in elements)


SINGLE = dict.fromkeys(STORED, "<f4")


def test_what_others_write_is_read_whatever_the_order_types_and_further_parts(tmp_path):
    scene = random_gaussians(11)
    plain = vertices(scene, SINGLE)
    backwards = dict(reversed([*SINGLE.items()]))
    mixed = {"red": "u1", "x": "<f8", "label": "<i2", "scale_1": "<f8", **SINGLE, "flags": "<u4"}
    camera = np.zeros(3, [("x", "<f8"), ("fov", "<f4")])
    files = {
        "lgm": ply(("vertex", plain)),  # LGM stores no normals.
        "backwards": ply(("vertex", vertices(scene, backwards))),
        "mixed": ply(("vertex", vertices(scene, mixed))),
        "big endian": ply(("vertex", vertices(scene, mixed)), order=">"),
        "elements": ply(("camera", camera), ("vertex", plain), ("camera", camera)),
        "windows": ply(("vertex", plain), newline="\r\n"),
        "remark": ply(("vertex", plain), remark="obj_info end_header\ncomment \xe4\n\n"),
    }
    assert len({*files.values()}) == len(files)
    for name, content in files.items():
        (tmp_path / f"{name}.ply").write_bytes(content)
        assert_same(read_ply(tmp_path / f"{name}.ply", up="y-up"), scene)


def test_without_a_third_scale_gaussians_are_flat_along_their_third_axis(tmp_path):
    """As 2D Gaussian Splatting writes them, whose discs have their normal there."""
    scene = random_gaussians(5)
    flat = {name: kind for name, kind in SINGLE.items() if name != "scale_2"}
    (tmp_path / "a.ply").write_bytes(ply(("vertex", vertices(scene, flat))))
    found = read_ply(tmp_path / "a.ply", up="y-up")
    assert_same(found, dataclasses.replace(scene, scales=scene.scales.at[:, 2].set(0)))
    camera = Cameras(
        camera_to_world=jnp.eye(4).at[2, 3].set(-4.0)[None],
        intrinsics=jnp.array([[[1.2, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]]]),
    )
    thin = dataclasses.replace(found, scales=found.scales.at[:, 2].set(1e-6))
    drawn, limit = (render(x, camera, (24, 40), jnp.ones(3)).rgb for x in (found, thin))
    # A thousandth of a pixel.
    np.testing.assert_allclose(drawn, limit, atol=1e-4)
    assert np.ptp(drawn) > 0.3
    bent = {**SINGLE, "scale_2": "<i2"}
    (tmp_path / "b.ply").write_bytes(ply(("vertex", vertices(scene, bent))))
    with pytest.raises(InputError, match="no scale_2 of type float"):
        read_ply(tmp_path / "b.ply", up="y-up")


def test_faces_after_the_vertices_are_skipped(tmp_path):
    scene = random_gaussians(4)
    content = ply(("vertex", vertices(scene, SINGLE)))
    faces = b"element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    content = content.replace(b"end_header\n", faces) + struct.pack("<B3i", 3, 0, 1, 2)
    (tmp_path / "a.ply").write_bytes(content)
    assert_same(read_ply(tmp_path / "a.ply", up="y-up"), scene)


def test_colors_that_change_with_the_direction_are_read_without_that_part(tmp_path):
    scene = random_gaussians(4)
    kinds = {**SINGLE, "f_rest_0": "<f4", "f_rest_1": "<f4"}
    table = vertices(scene, kinds)
    table["f_rest_0"] = 0
    (tmp_path / "a.ply").write_bytes(ply(("vertex", table)))
    with pytest.warns(UserWarning, match=r"a.ply has colors that change with the direction"):
        assert_same(read_ply(tmp_path / "a.ply", up="y-up"), scene)
    table["f_rest_1"] = 0  # Degree 0, stored with room for more.
    (tmp_path / "b.ply").write_bytes(ply(("vertex", table)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(read_ply(tmp_path / "b.ply", up="y-up"), scene)


def test_extreme_values_before_activation_are_read_as_their_limits(tmp_path):
    table = vertices(random_gaussians(2), SINGLE)
    table["opacity"], table["scale_0"] = [-np.inf, 200], -np.inf
    table["f_dc_0"], table["f_dc_1"] = -5, 5
    (tmp_path / "a.ply").write_bytes(ply(("vertex", table)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scene = read_ply(tmp_path / "a.ply", up="y-up")
    np.testing.assert_array_equal(scene.opacities, [0, 1])
    np.testing.assert_array_equal(scene.scales[:, 0], [0, 0])
    np.testing.assert_array_equal(scene.colors[:, 0], [0, 0])  # 3D Gaussian Splatting's rule.
    np.testing.assert_allclose(scene.colors[:, 1], 0.5 + 5 / (2 * math.sqrt(math.pi)), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c[:-1], "135 bytes of data, its header says 136"),
        (lambda c: c + b"\0", "137 bytes of data, its header says 136"),
        (
            lambda c: c.replace(b"end_", b"element face 1\nproperty list char int i\nend_")[:-1],
            "135 bytes of data, its header says at least 136",
        ),
        (lambda c: b"solid" + c, "is not a .ply file"),
        (lambda c: c[:100], "is not a .ply file"),
        (lambda c: c.replace(b"binary_little_endian", b"ascii"), "in text"),
        (lambda c: c.replace(b"1.0", b"2.0"), "header says 'format binary_little_endian 2.0'"),
        (lambda c: c.replace(b"format binary_little_endian 1.0\n", b""), "'element vertex 2'"),
        (lambda c: c.replace(b"float opacity", b"float density"), "no opacity of type float"),
        (lambda c: c.replace(b"float opacity", b"uchar opacity"), "no opacity of type float"),
        (
            lambda c: c.replace(b"float rot", b"list char float rot"),
            "no rot_0, rot_1, rot_2, rot_3",
        ),
        (lambda c: c.replace(b"float opacity", b"half opacity"), "'property half opacity'"),
        (lambda c: c.replace(b"float nx", b"float x"), "property x twice"),
        (lambda c: c.replace(b"vertex 2", b"vertex two"), "'element vertex two'"),
        (lambda c: c.replace(b"vertex 2", b"vertex " + b"2" * 5000), "'element vertex 22"),
        (lambda c: c.replace(b"vertex 2", b"vertex 999999999999"), "header says 67999999999932"),
        (lambda c: c.replace(b"element vertex", b"element face"), "one element, vertex"),
        (lambda c: c.replace(b"end_", b"element vertex 2\nend_"), "one element, vertex"),
        (lambda c: c.replace(b"float nx", b"list uchar int nx"), "lists before the end"),
        (
            lambda c: c.replace(b"element v", b"element f 0\nproperty list char int i\nelement v"),
            "lists before the end",
        ),
        (lambda c: c[:-4] + struct.pack("<f", np.nan), "1 of 2 Gaussians are not finite"),
        (lambda c: c[:-20] + struct.pack("<f", 89) + c[-16:], "1 of 2 Gaussians are not finite"),
        (lambda c: c[:-20] + struct.pack("<f", 999) + c[-16:], "1 of 2 Gaussians are not finite"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, change, said):
    write_ply(tmp_path / "a.ply", two_gaussians())
    bad = tmp_path / "bad.ply"
    bad.write_bytes(change((tmp_path / "a.ply").read_bytes()))
    with warnings.catch_warnings(), pytest.raises(InputError, match=said) as refusal:
        warnings.simplefilter("error")  # The error says it all.
        read_ply(bad)
    assert str(bad) in str(refusal.value)
    assert "\n" not in str(refusal.value)
