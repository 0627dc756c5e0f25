"""Textures of glTF models: each is looked up by itself, and of any depth."""

import numpy as np
import pytest

from support.deep_png import deep_png
from support.drawn_models import draw
from support.gltf_files import Gltf, png

SQUARE = [[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]
CORNERS = np.array([[0, 1], [1, 1], [1, 0], [0, 0]])
HALF = np.zeros((8, 8, 3), np.uint8)
HALF[:, :4, 0], HALF[:, 4:, 1] = 255, 255  # Red on the left, green on the right.
EDGE = np.zeros((8, 8, 3), np.uint8)
EDGE[:, :7, 0], EDGE[:, 7:, 1] = 255, 255


def square(*uv_sets):
    made = Gltf()
    uvs = {f"TEXCOORD_{i}": made.accessor(uv) for i, uv in enumerate(uv_sets)}
    primitive = {"attributes": {"POSITION": made.accessor(SQUARE), **uvs}}
    primitive["indices"] = made.accessor([0, 1, 2, 0, 2, 3], "uint16")
    primitive["material"] = 0
    made.node(primitive)
    return made


def lookups():
    """Reference, UV sets and sampler of a texture that shows nothing but its green so."""
    right = CORNERS * [0.3, 1] + [0.6, 0]
    moved = {"offset": [0.6, 0], "scale": [0.3, 1]}
    both = {"offset": [0.6, 0], "scale": [0.3, 1], "texCoord": 1}
    yield {"texCoord": 1}, (CORNERS, right), None, HALF
    yield {"extensions": {"KHR_texture_transform": moved}}, (CORNERS,), None, HALF
    red_if_moved = CORNERS * [0.6, 1] - [1, 0]
    yield {"extensions": {"KHR_texture_transform": both}}, (red_if_moved, CORNERS), None, HALF
    beyond = CORNERS * [0.8, 1] + [1.1, 0]
    yield {}, (beyond,), {"wrapS": 33071}, EDGE
    yield {}, (CORNERS * [0.3, 1] + [1.1, 0],), {"wrapS": 33648}, HALF


@pytest.mark.parametrize("kind", ["glow", "color"])
@pytest.mark.parametrize("number", range(5))
def test_each_texture_has_its_own_coordinates_transform_and_sampler(tmp_path, kind, number):
    more, uv_sets, sampler, pixels = list(lookups())[number]
    made = square(*uv_sets)
    tested, plain = made.texture(pixels), made.texture(np.zeros((2, 2, 3)))
    if sampler:
        made.tree["samplers"] = [sampler]
        made.tree["textures"][tested["index"]]["sampler"] = 0
    base, glow = (plain, {**tested, **more}) if kind == "glow" else ({**tested, **more}, plain)
    look = {"pbrMetallicRoughness": {"baseColorTexture": base}, "emissiveTexture": glow}
    look |= {"emissiveFactor": [1, 1, 1], "extensions": {"KHR_materials_unlit": {}}}
    made.tree["materials"].append(look)
    (tmp_path / "m.glb").write_bytes(made.glb())
    rgba = draw(tmp_path / "m.glb").rgba[0]
    seen = rgba[rgba[..., 3] > 0]
    assert len(seen) > 1000 and (seen[:, :3] == [0, 255, 0]).all()


DEPTHS = {"gray": 1, "gray and alpha": 2, "color": 3, "color and alpha": 4}


@pytest.mark.parametrize("kind", DEPTHS)
def test_textures_of_16_bits_are_their_8_bit_twins(tmp_path, kind):
    from o3d_jax.data.meshes.reading import read_mesh

    # Dark ones: what is brightest in a picture is not full brightness.
    dark = np.random.default_rng(0).integers(0, 100, (5, 7, DEPTHS[kind]), np.uint8)
    textures = []
    for data in (png(dark.squeeze()), deep_png(dark.astype(np.uint16) * 257)):
        made = square(CORNERS)
        made.tree["images"] = [{"bufferView": made.view(data)}]
        made.tree["textures"] = [{"source": 0}]
        look = {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}, "alphaMode": "BLEND"}
        made.tree["materials"].append(look)
        (tmp_path / "m.glb").write_bytes(made.glb())
        textures.append(read_mesh(tmp_path / "m.glb", 2**20).textures[0])
    np.testing.assert_array_equal(textures[1], textures[0])
    assert textures[0].max() > 90 and textures[0].shape == (5, 7, 4)


def test_full_brightness_of_16_bits_is_65535(tmp_path):
    from o3d_jax.data.meshes.reading import read_mesh

    values = np.array([[0, 128, 129, 24576, 40000, 65406, 65407, 65535]], np.uint16)
    (tmp_path / "m.png").write_bytes(deep_png(values[..., None]))
    mtl = "newmtl a\nmap_Kd m.png\n"
    (tmp_path / "m.mtl").write_text(mtl)
    head = "mtllib m.mtl\nusemtl a\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\n"
    (tmp_path / "m.obj").write_text(head + "f 1/1 2/1 3/1\n")
    found = read_mesh(tmp_path / "m.obj", 2**20).textures[0]
    expected = [round(v / 65535 * 255) for v in values[0].tolist()]
    assert found[0, :, 0].tolist() == expected
