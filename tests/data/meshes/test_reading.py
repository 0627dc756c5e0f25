"""Model files, and what is wrong with them."""

import base64
import json
import struct
import sys

import numpy as np
import pytest

from support.gltf_files import Gltf, cube, png

LIMIT = 2**20
TRIANGLE = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], float)


@pytest.fixture
def read(tmp_path):
    """Writes a model file and reads it."""
    from o3d_jax.data.meshes.reading import read_mesh

    def run(content, name="model.glb", up="y", limit=LIMIT):
        path = tmp_path / name
        if isinstance(content, Gltf):
            content = content.glb()
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_mesh(path, limit, up)

    return run


@pytest.fixture
def refusal(read):
    """The message that a model file is refused with."""
    from o3d_jax.errors import InputError

    def run(content, name="model.glb", **options):
        with pytest.raises(InputError) as caught:
            read(content, name, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return run


def test_nodes_move_turn_and_scale_from_the_root_down(read):
    made = Gltf()
    half = np.sqrt(0.5)
    child = made.node(made.triangle(), rotation=[0, 0, half, half], scale=[2, 3, 1])
    made.tree["nodes"].append({"children": [0], "translation": [10, 0, 5]})
    made.tree["scenes"][0]["nodes"] = [1]
    assert "translation" not in child
    mesh = read(made)
    # (x, y) -> scaled (2x, 3y) -> turned by 90 degrees (-3y, 2x) -> moved.
    expected = [[10, 0, 5], [10, 2, 5], [7, 0, 5]]
    np.testing.assert_allclose(mesh.corners[0], expected, atol=1e-6)
    np.testing.assert_allclose(mesh.normals[0], [[0, 0, 1]] * 3, atol=1e-6)


def test_a_mirroring_node_keeps_fronts_in_front_and_normals_outward(read):
    made = Gltf()
    slanted = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 1]], float)
    normal = np.cross(slanted[1], slanted[2]) / np.sqrt(2)
    primitive = made.triangle(slanted, NORMAL=made.accessor([normal] * 3))
    made.node(primitive, scale=[-1, 2, 1])
    mesh = read(made)
    a, b, c = mesh.corners[0].astype(float)
    geometric = np.cross(b - a, c - a)
    # In the mirrored world, (x, y, z) -> (-x, 2y, z) takes the plane z = y to z = y / 2.
    outward = np.array([0, -0.5, 1]) / np.sqrt(1.25)
    np.testing.assert_allclose(geometric / np.linalg.norm(geometric), outward, atol=1e-6)
    np.testing.assert_allclose(mesh.normals[0], [outward] * 3, atol=1e-6)


def test_accessors_may_be_normalized_sparse_strided_or_short_of_data(read):
    made = Gltf()
    interleaved = np.zeros(3, [("p", "<f4", 3), ("c", "u1", 4)])
    interleaved["p"] = TRIANGLE
    interleaved["c"] = [[255, 0, 51, 255]] * 3
    view = made.view(interleaved.tobytes(), byteStride=16)
    made.tree["accessors"] = [
        {"bufferView": view, "componentType": 5126, "count": 3, "type": "VEC3"},
        {
            "bufferView": view,
            "byteOffset": 12,
            "componentType": 5121,
            "normalized": True,
            "count": 3,
            "type": "VEC4",
        },
        {  # No view: zeros, but for what is sparse.
            "componentType": 5126,
            "count": 3,
            "type": "VEC2",
            "sparse": {
                "count": 1,
                "indices": {"bufferView": made.view(b"\2\0"), "componentType": 5123},
                "values": {"bufferView": made.view(np.float32([0.25, 0.75]).tobytes())},
            },
        },
    ]
    made.node({"attributes": {"POSITION": 0, "COLOR_0": 1, "TEXCOORD_0": 2}})
    mesh = read(made)
    np.testing.assert_array_equal(mesh.corners[0], TRIANGLE)
    np.testing.assert_allclose(mesh.colors[0], [[1, 0, 0.2, 1]] * 3, atol=1e-6)  # Linear, as is.
    np.testing.assert_allclose(mesh.uvs[0], [[0, 0], [0, 0], [0.25, 0.75]])


def test_quantized_integers_are_what_the_file_says(read):
    made = Gltf()
    made.tree["extensionsRequired"] = ["KHR_mesh_quantization"]
    uvs = made.accessor([[0, 65535], [65535, 0], [13107, 0]], "uint16", normalized=True)
    primitive = made.triangle(TEXCOORD_0=uvs)
    primitive["attributes"]["POSITION"] = made.accessor([[0, 0, -2], [4, 0, -2], [0, 4, 0]], "int8")
    made.node(primitive, scale=[0.25, 0.25, 0.5])
    mesh = read(made)
    np.testing.assert_allclose(mesh.corners[0], [[0, 0, -1], [1, 0, -1], [0, 1, 0]])
    np.testing.assert_allclose(mesh.uvs[0], [[0, 1], [1, 0], [0.2, 0]], atol=1e-6)


def test_strips_and_fans_keep_their_winding(read):
    square = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]
    for mode, corners in ((5, square), (6, [square[0], square[1], square[3], square[2]])):
        made = Gltf()
        made.node({**made.triangle(corners), "mode": mode})
        mesh = read(made)
        assert len(mesh.corners) == 2
        np.testing.assert_allclose(mesh.normals.reshape(-1, 3), [[0, 0, 1]] * 6)


def test_skins_and_morphs_are_read_in_their_rest_pose(read):
    made = Gltf()
    primitive = made.triangle(
        JOINTS_0=made.accessor([[0, 1, 0, 0]] * 3, "uint8"),
        WEIGHTS_0=made.accessor([[1, 0, 0, 0], [0, 1, 0, 0], [0.5, 0.5, 0, 0]]),
    )
    primitive["targets"] = [{"POSITION": made.accessor([[0, 0, 2], [0, 0, 0], [0, 0, 0]])}]
    inverse = np.stack([np.eye(4), np.eye(4)])
    inverse[1, 3, :3] = [-1, 0, 0]  # Column-major: the second joint was bound at x = 1.
    node = made.node(primitive, {"weights": [0.5]}, skin=0, translation=[99, 0, 0])
    assert node["mesh"] == 0
    made.tree["nodes"] += [{"translation": [0, 5, 0]}, {"translation": [1, 7, 0]}]
    made.tree["scenes"][0]["nodes"] += [1, 2]
    made.tree["skins"] = [{"joints": [1, 2], "inverseBindMatrices": made.accessor(inverse)}]
    # The node's own place does not count; the joints' do: up by 5, by 7, and by their mean.
    expected = [[0, 5, 1], [1, 7, 0], [0, 7, 0]]
    np.testing.assert_allclose(read(made).corners[0], expected, atol=1e-6)


def test_materials_say_color_alpha_sides_and_light(read):
    made = Gltf()
    texture = made.texture(np.full((2, 2, 4), 128))
    made.tree["samplers"] = [{"wrapS": 33071, "wrapT": 33648}]
    made.tree["textures"][0]["sampler"] = 0
    looks = [
        {"pbrMetallicRoughness": {"baseColorFactor": [0.001, 0.5, 1, 0.25]}, "alphaMode": "BLEND"},
        {
            "pbrMetallicRoughness": {"baseColorTexture": texture},
            "alphaMode": "MASK",
            "alphaCutoff": 0.3,
            "doubleSided": True,
        },
        {"pbrMetallicRoughness": {"baseColorTexture": texture}, "emissiveFactor": [0.1, 0.2, 0.3]},
        {
            "extensions": {
                "KHR_materials_unlit": {},
                "KHR_materials_pbrSpecularGlossiness": {"diffuseFactor": [0.2, 0.3, 0.4, 1]},
            }
        },
    ]
    for look in looks:
        made.node(made.triangle(material=look))
    made.node(made.triangle())
    mesh = read(made)
    blend, cut, glow, flat, default = mesh.materials[mesh.material]
    # Floats, not bytes: 0.001 of light would be lost in eight bits.
    np.testing.assert_allclose(blend["base"], [0.001, 0.5, 1, 0.25], rtol=1e-6)
    assert (blend["mode"], cut["mode"], glow["mode"]) == (2, 1, 0)
    assert cut["cutoff"] == np.float32(0.3) and cut["two_sided"] and not glow["two_sided"]
    assert (cut["color"]["wrap_u"], cut["color"]["wrap_v"]) == (1, 2)
    np.testing.assert_allclose(glow["emission"], [0.1, 0.2, 0.3], rtol=1e-6)
    assert not flat["lit"] and blend["lit"]
    np.testing.assert_allclose(flat["base"], [0.2, 0.3, 0.4, 1], rtol=1e-6)
    np.testing.assert_allclose(default["base"], 1)
    assert default["color"]["texture"] == -1
    assert mesh.textures[cut["color"]["texture"]][0, 0, 3] == 128
    assert mesh.textures[glow["color"]["texture"]][0, 0, 3] == 255  # Opaque: alpha means nothing.


def test_texture_transforms_move_the_coordinates_asked_for(read):
    made = Gltf()
    moved = {"offset": [0.5, 0.25], "scale": [2, 3], "rotation": np.pi / 2, "texCoord": 1}
    reference = {
        **made.texture(np.zeros((2, 2, 4))),
        "extensions": {"KHR_texture_transform": moved},
    }
    look = {"pbrMetallicRoughness": {"baseColorTexture": reference}}
    uvs = np.array([[0, 0], [1, 0], [0, 1]])
    made.node(
        made.triangle(
            material=look, TEXCOORD_0=made.accessor(uvs + 7), TEXCOORD_1=made.accessor(uvs)
        )
    )
    # The extension's own matrices: translation x rotation x scale, with v pointing down.
    c, s = np.cos(np.pi / 2), np.sin(np.pi / 2)
    turn = np.array([[c, s], [-s, c]])
    expected = uvs @ (turn @ np.diag([2, 3])).T + [0.5, 0.25]
    np.testing.assert_allclose(read(made).uvs[0], expected, atol=1e-6)


def test_gltf_reads_the_files_beside_it(read, tmp_path):
    made = Gltf()
    look = {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}
    made.tree["textures"], made.tree["images"] = [{"source": 0}], [{"uri": "a%20b.png"}]
    made.node(made.triangle(material=look))
    (tmp_path / "a b.png").write_bytes(png(np.full((1, 1, 3), 77)))
    (tmp_path / "data.bin").write_bytes(made.data)
    made.tree["buffers"] = [{"uri": "data.bin", "byteLength": len(made.data)}]
    mesh = read(json.dumps(made.tree), "model.gltf")
    assert mesh.textures[0].tolist() == [[[77, 77, 77, 255]]]


def test_data_uris_may_have_line_breaks_and_lack_their_padding(read):
    made = cube()
    expected = read(made).corners
    made.data += b"\0" * ((1 - len(made.data)) % 3)  # So that there is padding.
    encoded = base64.b64encode(made.data).decode()
    broken = "\n".join(encoded[i : i + 76] for i in range(0, len(encoded), 76)) + "\n"
    forms = [encoded, encoded.rstrip("="), broken, broken.replace("\n", "\r\n "), encoded + "=="]
    forms += [base64.urlsafe_b64encode(made.data).decode(), encoded.replace("=", "%3D")]
    uris = ["data:application/octet-stream;base64," + form for form in forms]
    uris += [f"data:{kind},{encoded}" for kind in (";charset=utf-8;base64", "; BASE64 ")]
    for uri in uris:
        made.tree["buffers"] = [{"uri": uri}]
        text = json.dumps(made.tree)
        for content in (text, text.replace("\\n", "\n")):  # Also where JSON forbids the break.
            np.testing.assert_array_equal(read(content, "model.gltf").corners, expected)


@pytest.mark.parametrize("more", [b"", b" \0 ", b"\n\0\0"])
def test_a_chunk_of_json_may_be_padded_with_zeros(read, more):
    made = cube()
    whole = made.glb()
    length = struct.unpack_from("<I", whole, 12)[0]
    text = whole[20 : 20 + length].rstrip()
    padded = text + b"\0" * (4 + -(len(text) + len(more)) % 4) + more
    body = struct.pack("<II", len(padded), 0x4E4F534A) + padded + whole[20 + length :]
    content = b"glTF" + struct.pack("<II", 2, 12 + len(body)) + body
    np.testing.assert_array_equal(read(content).corners, read(whole).corners)


def test_only_the_first_buffer_is_that_of_the_file(refusal):
    """Compressors leave others without a URI, whose data extensions hold."""
    made = cube()
    made.glb()
    for view in made.tree["bufferViews"]:
        view["buffer"] = 1
    made.tree["buffers"].append({"byteLength": len(made.data)})
    assert "cut short" in refusal(made)


def test_draco_is_asked_for_by_name(refusal, monkeypatch):
    made = Gltf()
    primitive = made.triangle()
    primitive["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {}}}
    made.node(primitive)
    monkeypatch.setitem(sys.modules, "DracoPy", None)
    assert "pip install DracoPy" in refusal(made)


def test_draco_gives_back_what_was_compressed(read, refusal):
    import DracoPy

    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0.5]])
    faces = np.array([[0, 1, 2], [2, 1, 3]], np.uint32)
    uvs = np.array([[0, 0], [0.5, 0], [0, 0.25], [1, 1]])
    packed = DracoPy.encode(points, faces, tex_coord=uvs, quantization_bits=16)
    stored = DracoPy.decode(packed).attributes
    numbers = {("POSITION" if len(a["data"][0]) == 3 else "TEXCOORD_0"): a for a in stored}
    attributes = {name: a["unique_id"] for name, a in numbers.items()}

    def model(data):
        made = Gltf()
        made.tree["accessors"] = [
            {"componentType": 5126, "count": 4, "type": "VEC3"},
            {"componentType": 5126, "count": 4, "type": "VEC2"},
            {"componentType": 5125, "count": 6, "type": "SCALAR"},
        ]
        extension = {"bufferView": made.view(data), "attributes": attributes}
        made.tree["extensionsRequired"] = ["KHR_draco_mesh_compression"]
        made.node(
            {
                "attributes": {"POSITION": 0, "TEXCOORD_0": 1},
                "indices": 2,
                "extensions": {"KHR_draco_mesh_compression": extension},
            }
        )
        return made

    mesh = read(model(packed))
    order = [np.abs(points - corner).sum(-1).argmin() for corner in mesh.corners.reshape(-1, 3)]
    assert sorted(order) == [0, 1, 1, 2, 2, 3]
    # Quantized to 16 bits of an extent of 1.
    np.testing.assert_allclose(mesh.corners.reshape(-1, 3), points[order], atol=2**-16)
    np.testing.assert_allclose(mesh.uvs.reshape(-1, 2), uvs[order], atol=2**-16)
    assert (mesh.normals[..., 2] > 0).all()
    assert "Draco data is damaged" in refusal(model(b"nothing of that kind"))


OBJ = """mtllib scene.mtl
v 0 0 0
v 1 0 0
v 1 1 0
v 0 1 0
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl paper
f 1/1 2/2 3/3 4/4
"""


def test_obj_has_colors_textures_and_holes(read, tmp_path):
    from o3d_jax.data.meshes.scene import LINEAR

    (tmp_path / "scene.mtl").write_text("newmtl paper\nKd 0.5 0.25 1\n")
    mesh = read(OBJ, "model.obj")
    assert len(mesh.corners) == 2 and mesh.materials["two_sided"].all()
    np.testing.assert_allclose(
        mesh.materials[mesh.material[0]]["base"], [LINEAR[128], LINEAR[64], 1, 1], atol=0.004
    )
    pixels = np.array([[[10, 20, 30, 0], [40, 50, 60, 255]]])
    (tmp_path / "a.png").write_bytes(png(pixels))
    (tmp_path / "scene.mtl").write_text("newmtl paper\nKd 0 0 0\nmap_Kd a.png\nmap_d a.png\n")
    mesh = read(OBJ, "model.obj")
    material = mesh.materials[mesh.material[0]]
    np.testing.assert_array_equal(mesh.textures[material["color"]["texture"]], pixels)
    np.testing.assert_allclose(material["base"], 1)  # The map replaces Kd, as in Blender.
    assert material["mode"] == 1
    # OBJ counts v from the bottom, textures are stored from the top.
    corner = np.argmin(np.abs(mesh.corners.reshape(-1, 3)).sum(-1))
    np.testing.assert_allclose(mesh.uvs.reshape(-1, 2)[corner], [0, 1])


def test_obj_without_its_textures_is_drawn_without(read, tmp_path):
    (tmp_path / "scene.mtl").write_text("newmtl other\nKd 1 0 0\n")
    unnamed = "\n".join(line for line in OBJ.splitlines() if not line.startswith("mtllib"))
    for content in (unnamed, OBJ):  # No library; one without the material that is used.
        mesh = read(content, "model.obj")
        assert len(mesh.corners) == 2 and not mesh.textures


PLY = """ply
format ascii 1.0
element vertex 4
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
element face 1
property list uchar int vertex_indices
end_header
0 0 0 255 0 0
1 0 0 255 0 0
1 1 0 255 0 188
0 1 0 255 0 0
4 0 1 2 3
"""


def test_ply_has_vertex_colors_in_srgb_and_may_be_z_up(read):
    mesh = read(PLY, "model.ply", up="z")
    blue = mesh.colors[..., 2].max()
    assert blue == pytest.approx(0.5, abs=0.01)  # Byte 188 is half the light.
    assert mesh.colors[..., 0].min() == 1 and mesh.colors[..., 1].max() == 0
    corners = mesh.corners.reshape(-1, 3)
    np.testing.assert_allclose(corners.min(axis=0), [0, 0, -1], atol=1e-6)  # y went to -z.
    np.testing.assert_allclose(np.abs(mesh.normals.reshape(-1, 3)), [[0, 1, 0]] * 6, atol=1e-6)


def test_ply_may_have_colors_by_face(read):
    heads = "property list uchar int vertex_indices\nproperty uchar red\nproperty uchar green\n"
    heads += "property uchar blue\n"
    text = PLY.replace("property list uchar int vertex_indices\n", heads)
    text = text.replace("property uchar red\nproperty uchar green\nproperty uchar blue\n", "", 1)
    text = text.replace(" 255 0 0\n", "\n").replace(" 255 0 188\n", "\n")
    text = text.replace("element face 1", "element face 2")
    mesh = read(text.replace("4 0 1 2 3", "4 0 1 2 3 255 0 0\n4 3 2 1 0 0 255 0"), "model.ply")
    front = mesh.normals[:, 0, 2] > 0
    assert front.sum() == 2 and len(front) == 4
    np.testing.assert_array_equal(mesh.colors[front], [[[1, 0, 0, 1]] * 3] * 2)
    np.testing.assert_array_equal(mesh.colors[~front], [[[0, 1, 0, 1]] * 3] * 2)


def test_missing_normals_are_smooth_on_round_and_flat_on_edgy_things():
    from o3d_jax.data.meshes.mesh import Material, MeshPart, ModelContent, to_mesh

    turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ring = np.stack([np.cos(turns), np.sin(turns)], -1)
    tube = np.concatenate([np.c_[ring, -np.ones(24)], np.c_[ring, np.ones(24)]])
    at = np.arange(24)
    after = (at + 1) % 24
    faces = np.concatenate(
        [np.stack([at, after, after + 24], -1), np.stack([at, after + 24, at + 24], -1)]
    )
    mesh = to_mesh(ModelContent([MeshPart(tube, faces, 0)], [Material()], []), smooth=True)
    radial = mesh.corners * [1, 1, 0]
    # The mean of the three facets that meet in a point leans to the side with two of them.
    assert (mesh.normals * radial).sum(-1).min() > np.cos(np.deg2rad(15 / 4))
    corners = np.array(np.meshgrid([0.0, 1], [0.0, 1], [0.0, 1])).reshape(3, -1).T
    bent = np.array([[0, 1, 3], [0, 3, 2], [0, 4, 5], [0, 5, 1]])
    mesh = to_mesh(ModelContent([MeshPart(corners, bent, 0)], [Material()], []), smooth=True)
    assert np.abs(mesh.normals).max(axis=-1).min() > 0.999  # Along an axis, each of them.


def test_models_are_centered_and_as_large_as_both_limits_allow(read):
    from o3d_jax.data.meshes.reading import fit, visible_radius

    mesh = read(cube())
    moved = mesh._replace(corners=mesh.corners * np.float32([4, 1, 1]) + np.float32([7, -3, 2]))
    long = fit(moved, side=1.0, ball=0.6)
    points = long.corners.reshape(-1, 3)
    np.testing.assert_allclose(points.max(axis=0), [0.5, 0.125, 0.125], atol=1e-6)
    np.testing.assert_allclose(points.min(axis=0), -points.max(axis=0), atol=1e-6)
    made = Gltf()
    made.node(made.triangle())
    lone = fit(read(made, "lone.glb"), side=1.0, ball=9.0).corners[0]
    np.testing.assert_allclose(lone, TRIANGLE - [0.5, 0.5, 0], atol=1e-6)  # The box's center.
    compact = fit(mesh, side=1.0, ball=0.6).corners
    assert np.linalg.norm(compact, axis=-1).max() == pytest.approx(0.6)
    assert visible_radius(1.5, 49.1) == pytest.approx(0.623, abs=5e-4)  # As known of LGM's cameras.
    from o3d_jax.errors import InputError

    with pytest.raises(InputError, match="no shape"):
        fit(mesh._replace(corners=0 * mesh.corners), 1.0, 0.6)


def with_image(uri):
    made = Gltf()
    made.tree["textures"], made.tree["images"] = [{"source": 0}], [{"uri": uri}]
    made.node(made.triangle(material={"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}))
    return made


def test_references_out_of_the_folder_are_refused(refusal, tmp_path):
    (tmp_path.parent / "secret.png").write_bytes(png(np.zeros((1, 1, 3))))
    (tmp_path / "link.png").symlink_to(tmp_path.parent / "secret.png")
    absolute = str(tmp_path.parent / "secret.png")
    elsewhere = (absolute, "../secret.png", "link.png", "file://" + absolute, "C:\\secret.png")
    for uri in (*elsewhere, "a/../../secret.png", "%2e%2e/secret.png", "http://host/x.png"):
        assert "outside its folder" in refusal(with_image(uri)), uri
    for name in (absolute, "../secret.png", "link.png"):
        (tmp_path / "scene.mtl").write_text(f"newmtl paper\nmap_Kd {name}\n")
        assert "outside its folder" in refusal(OBJ, "model.obj"), name
    assert "outside its folder" in refusal(OBJ.replace("scene.mtl", "../s.mtl"), "model.obj")


def test_damage_is_told_in_one_line(refusal, tmp_path):
    whole = cube().glb()
    assert "model.glb is empty" in refusal(b"")
    assert "cut short" in refusal(whole[:-100])
    assert "cut short" in refusal(whole[:40])
    assert "limit of" in refusal(whole, limit=100) and "--max-megabytes" in refusal(
        whole, limit=100
    )
    assert "damaged" in refusal("{ not json", "model.gltf")
    assert "damaged" in refusal("[1, 2]", "model.gltf")
    assert "version 1" in refusal(b"glTF\1\0\0\0" + whole[8:])
    assert "missing" in refusal(with_image("nowhere.png"))
    assert "cannot be read" in refusal(with_image("n" * 300 + ".png"))
    assert "cannot be read" in refusal(with_image("model.glb/x.png"))
    (tmp_path / "bad.png").write_bytes(png(np.zeros((9, 9, 3)))[:-30])
    assert "damaged" in refusal(with_image("bad.png"))
    assert "base64" in refusal(with_image("data:image/png;base64,%%%"))
    assert "is missing" in refusal(OBJ, "model.obj")  # Its scene.mtl.
    (tmp_path / "scene.mtl").write_text("newmtl paper\nmap_Kd bad.png\n")
    assert "damaged" in refusal(OBJ, "model.obj")
    assert "damaged" in refusal("v 0 0 0\nv 1 0 0\nf 1 2 3\n", "model.obj")
    assert "not there" in refusal(PLY.replace("4 0 1 2 3", "4 0 1 2 7"), "model.ply")
    assert "no triangles" in refusal("v 0 0 0\nv 1 0 0\nv 1 1 0\n", "model.obj")
    assert "no triangles" in refusal(
        PLY.split("element face")[0] + "end_header\n" + "0 0 0 1 1 1\n" * 4, "model.ply"
    )  # noqa: E501
    assert "damaged" in refusal(PLY[:60], "model.ply")
    assert "none of .glb" in refusal("", "model.fbx")


def test_contradictions_in_gltf_are_told_in_one_line(refusal):
    made = cube()
    made.tree["extensionsRequired"] = ["KHR_materials_unlit", "EXT_meshopt_compression"]
    assert "needs EXT_meshopt_compression" in refusal(made)
    made = cube()
    made.tree["nodes"][0]["children"] = [0]
    assert "two parents" in refusal(made)
    made = cube()
    made.tree["meshes"][0]["primitives"][0]["indices"] = made.accessor([0, 1, 99], "uint16")
    assert "not there" in refusal(made)
    made = cube()
    made.tree["accessors"][0]["count"] = 10**6
    assert "damaged" in refusal(made)
    made = cube()
    made.tree["bufferViews"][0]["byteLength"] = 10**6
    assert "cut short" in refusal(made)
    made = Gltf()
    made.node(made.triangle(np.full((3, 3), np.nan)))
    assert "no triangles" in refusal(made)
