"""Meshes in files: read by decoders of others, and made by the command."""

import dataclasses
import importlib
import json
import struct

import numpy as np
import pytest
import trimesh

from o3d_jax.__main__ import main as o3d
from o3d_jax.data.meshes.drawing import draw_orbit, prepare_scene
from o3d_jax.data.meshes.reading import read_mesh
from o3d_jax.geometry.orbits import orbit_poses
from o3d_jax.media.ply import write_ply
from o3d_jax.media.splat import write_splat
from o3d_jax.meshing.colored import MeshPlan, mesh_of_gaussians
from o3d_jax.meshing.glb import write_glb
from support.solids import signpost

SMALL = MeshPlan(resolution=40, faces=1500)


@pytest.fixture(scope="module")
def plain():
    return mesh_of_gaussians(signpost(), SMALL)


@pytest.fixture(scope="module")
def textured():
    return mesh_of_gaussians(signpost(), dataclasses.replace(SMALL, texture=192))


def decoded(path):
    """The arrays of a .glb by their names, and its document, by the letter of glTF 2.0."""
    content = path.read_bytes()
    magic, version, length, size, kind = struct.unpack("<4sII I4s", content[:20])
    assert (magic, version, length, kind) == (b"glTF", 2, len(content), b"JSON") and size % 4 == 0
    document = json.loads(content[20 : 20 + size])
    binary = struct.unpack("<I4s", content[20 + size : 28 + size])
    assert binary == (len(content) - size - 28, b"BIN\0") and binary[0] % 4 == 0
    numbers = content[28 + size :]
    assert document["buffers"][0]["byteLength"] <= len(numbers)
    arrays = {}
    (primitive,) = document["meshes"][0]["primitives"]
    named = {**primitive["attributes"], "indices": primitive["indices"]}
    for name, index in named.items():
        accessor = document["accessors"][index]
        view = document["bufferViews"][accessor["bufferView"]]
        kind = {5126: "<f4", 5123: "<u2", 5125: "<u4"}[accessor["componentType"]]
        width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}[accessor["type"]]
        start, count = view["byteOffset"], accessor["count"] * width
        assert start % 4 == 0 and view["byteLength"] == count * np.dtype(kind).itemsize
        arrays[name] = np.frombuffer(numbers, kind, count, start).reshape(-1, width)
    return arrays, document


def light_of(display):
    """IEC 61966-2-1."""
    return display / 12.92 if display <= 0.04045 else ((display + 0.055) / 1.055) ** 2.4


def test_a_glb_holds_the_mesh_with_its_colors_as_linear_light(plain, tmp_path):
    colors = np.linspace(0, 1, plain.colors.size).reshape(plain.colors.shape)
    write_glb(tmp_path / "a.glb", plain._replace(colors=colors))
    arrays, document = decoded(tmp_path / "a.glb")
    assert arrays.keys() == {"POSITION", "NORMAL", "COLOR_0", "indices"}
    np.testing.assert_array_equal(arrays["POSITION"], plain.vertices.astype(np.float32))
    np.testing.assert_array_equal(arrays["indices"].reshape(-1, 3), plain.faces)
    np.testing.assert_allclose(np.linalg.norm(arrays["NORMAL"], axis=-1), 1, atol=1e-6)
    expected = 65535 * np.vectorize(light_of)(colors)
    np.testing.assert_allclose(arrays["COLOR_0"][:, :3], expected, atol=0.5001)  # Rounded.
    assert (arrays["COLOR_0"][:, 3] == 65535).all()
    accessors, (material,) = document["accessors"], document["materials"]
    assert accessors[2]["normalized"] is True
    assert accessors[0]["min"] == arrays["POSITION"].min(axis=0).tolist()
    assert accessors[0]["max"] == arrays["POSITION"].max(axis=0).tolist()
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0  # Else it would look of iron.


def test_trimesh_opens_it_as_one_watertight_body_that_stands_upright(plain, tmp_path):
    write_glb(tmp_path / "a.glb", plain)
    (mesh,) = trimesh.load(tmp_path / "a.glb").geometry.values()
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.body_count == 1
    assert mesh.volume > 0 and len(mesh.faces) <= SMALL.faces
    vertices, colors = np.asarray(mesh.vertices), mesh.visual.vertex_attributes["color"]
    for axis, red_green_blue in ((1, [1, 0, 0]), (0, [0, 0, 1]), (2, [0, 1, 0])):
        seen = colors[np.argmax(vertices[:, axis]), :3] / np.iinfo(colors.dtype).max
        # A third of white still reaches the ends; light, so white at a third is a tenth.
        np.testing.assert_allclose(seen, red_green_blue, atol=0.1)


def test_a_mesh_looks_like_its_gaussians_from_the_front(textured, tmp_path):
    """Through our reader of models: red is up, blue to the right, and green in the middle."""
    write_glb(tmp_path / "a.glb", textured)
    scene = prepare_scene(read_mesh(tmp_path / "a.glb", 2**24))
    picture = draw_orbit(scene, orbit_poses(0.0, np.zeros(1), 2.0), 40.0, 64).rgba[0].astype(int)
    for channel, where in ((0, (16, 32)), (2, (32, 48)), (1, (32, 32))):
        *color, alpha = picture[where]
        assert alpha == 255
        assert color[channel] > 1.5 * max(color[:channel] + color[channel + 1 :]), (where, color)


def test_a_texture_has_the_colors_of_the_renders_at_each_vertex(plain, textured, tmp_path):
    write_glb(tmp_path / "a.glb", textured)
    mesh = trimesh.load(tmp_path / "a.glb", force="mesh", process=False)
    assert mesh.visual.kind == "texture"
    image = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB"), float) / 255
    assert image.shape == (192, 192, 3)
    uvs, vertices = np.asarray(mesh.visual.uv), np.asarray(mesh.vertices)
    # trimesh counts from the bottom; a texel's middle is half a texel in.
    at = np.stack([1 - uvs[:, 1], uvs[:, 0]], axis=-1) * 192
    row, column = np.floor(at).astype(int).clip(0, 191).T
    found = image[row, column]
    for axis, color in ((1, [1, 0, 0]), (0, [0, 0, 1]), (2, [0, 1, 0])):
        np.testing.assert_allclose(found[np.argmax(vertices[:, axis])], color, atol=0.15)
    # Elsewhere as the Gaussians around: renders look a little deeper.
    assert np.abs(found - textured.colors).mean() < 0.06
    merged = trimesh.Trimesh(textured.vertices, textured.faces, process=True)
    merged.merge_vertices(merge_tex=True, merge_norm=True)
    assert merged.is_watertight and merged.volume == pytest.approx(
        trimesh.Trimesh(*plain[:2]).volume, rel=1e-4
    )


def test_a_texture_has_no_empty_places_that_would_bleed_in(textured):
    """The darkest color of the object is a bright one in some channel."""
    assert textured.texture.image.max(axis=-1).min() > 0.5


def test_the_command_writes_what_the_function_makes_of_each_file(plain, tmp_path, capsys):
    (tmp_path / "post").mkdir()
    write_ply(tmp_path / "post" / "gaussians.ply", signpost(), up="z-up")  # The file says so.
    write_splat(tmp_path / "web.splat", signpost(), up="y-up")
    with (tmp_path / "web.splat").open("ab") as file:
        file.write(np.full(6, np.nan, "<f4").tobytes() + bytes([0, 0, 0, 255, 128, 128, 128, 255]))
    options = ["--resolution", "40", "--faces", "1500"]
    o3d(["mesh", str(tmp_path / "post"), *options])
    with pytest.warns(UserWarning, match="1 of .* not finite, and left out"):
        o3d(["mesh", str(tmp_path / "web.splat"), "--up", "y-up", "--drop-bad", *options])
    for name in ("post/mesh.glb", "web.glb"):
        made = trimesh.load(tmp_path / name, force="mesh", process=False)
        # .ply to float32's digits; .splat has opacities to 1/510, which is 0.1 steps here.
        np.testing.assert_allclose(made.bounds, trimesh.Trimesh(*plain[:2]).bounds, atol=3e-3)
    said = capsys.readouterr().out.splitlines()
    found = f"{len(plain.faces)} triangles, at density {plain.threshold:.3g}"
    assert said[0] == f"{tmp_path / 'post' / 'mesh.glb'}: {found}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no object; give one that sample.py wrote, as `o3d mesh out/rings`"),
        (["{tmp}"], "there is no {tmp}/gaussians.ply; did you mean {tmp}/post?"),
        (["{tmp}/none"], "there is no {tmp}/none/gaussians.ply; give a folder"),
        (["{tmp}/a.txt"], "a.txt is no folder, .ply or .splat"),
        (["{tmp}/bad.splat"], "bad.splat: 1 of 2 Gaussians are not finite"),
        (["{tmp}/bad.splat"], "with drop_bad=True (o3d mesh: --drop-bad)"),
        (["{tmp}/post", "--resolution", "5"], "--resolution 5 is not 16 to 512; try 128"),
        (["{tmp}/post", "--faces", "1"], "--faces 1 is not 100 to 10000000"),
        (["{tmp}/post", "--texture", "9000"], "--texture 9000 is not 0 or 64 to 8192; try 1024"),
        (["{tmp}/post", "--threshold", "0"], "--threshold 0.0 is not above 0"),
        (["{tmp}/post", "--threshold", "7"], "nowhere above 7; give a lower --threshold"),
    ],
)
def test_a_mesh_that_cannot_be_made_is_one_line_and_status_2(words, said, tmp_path, capsys):
    (tmp_path / "post").mkdir()
    write_ply(tmp_path / "post" / "gaussians.ply", signpost())
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "bad.splat").write_bytes(bytes(32) + np.full(8, np.inf, "<f4").tobytes())
    with pytest.raises(SystemExit) as stop:
        o3d(["mesh", *(word.format(tmp=tmp_path) for word in words)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert said.format(tmp=tmp_path) in error
    assert not [*tmp_path.rglob("*.glb")]


@pytest.mark.parametrize(
    ("missing", "package", "options"),
    [
        ("skimage.measure", "scikit-image", []),
        ("fast_simplification", "fast-simplification", []),
        ("xatlas", "xatlas", ["--texture", "64"]),
    ],
)
def test_a_missing_package_is_one_line_with_what_to_install(
    missing, package, options, monkeypatch, tmp_path, capsys
):
    real = importlib.import_module

    def without(name, *more):
        if name == missing:
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(SystemExit) as stop:
        o3d(["mesh", str(tmp_path), *options])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said == f"error: meshes need {package}: pip install 'o3d_jax[mesh]'\n"
