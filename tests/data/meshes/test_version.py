"""How models look, as LOOK promises it: folders of rendered orbits rely on it."""

from pathlib import Path

import numpy as np
from PIL import Image

from o3d_jax.data.meshes import orbits, picture, rasterize
from o3d_jax.data.meshes.orbits import OrbitPlan, render_model
from support.gltf_files import Gltf, cube

PINNED = Path(__file__).with_name(f"look_{orbits.LOOK}.png")


def model() -> Gltf:
    """A matt cube, a cut-out texture above it, and a pane of glass in front of one side."""
    made = cube(0.4)
    y, x = np.mgrid[:8, :8]
    alpha = np.where((x - 3) ** 2 + (y - 3) ** 2 < 9, 255, 90)
    leaf = made.texture(np.stack([x * 30, y * 30, (x + y) % 2 * 255, alpha], -1))
    looks = [
        {"pbrMetallicRoughness": {"baseColorTexture": leaf}, "alphaMode": "MASK"},
        {"pbrMetallicRoughness": {"baseColorFactor": [0.2, 0.5, 0.9, 0.4]}, "alphaMode": "BLEND"},
    ]
    above = ((-0.7, 0.5, -0.2), (0.5, 0.6, -0.3), (0.1, 0.9, 0.7))
    before = ((-0.5, -0.4, 0.6), (0.5, -0.4, 0.6), (0.0, 0.5, 0.6))
    for corners, look in zip((above, before), looks, strict=True):
        uv = made.accessor([[0, 0], [2, 0], [1, 2]])
        made.node(made.triangle(corners, look | {"doubleSided": True}, TEXCOORD_0=uv))
    return made


def test_a_look_stands_for_its_pixels(tmp_path):
    (tmp_path / "a.glb").write_bytes(model().glb())
    plan = OrbitPlan(size=40, orbits=1, frames=5)
    found = np.concatenate(
        render_model(tmp_path / "a.glb", "a", plan, 2**20).orbits[0].rgba, axis=1
    )
    Image.fromarray(found).save(tmp_path / PINNED.name)
    with Image.open(PINNED) as image:
        pinned = np.asarray(image)
    # Another processor may round otherwise: one more or less, and now and then a sample's side.
    off = np.abs(found.astype(int) - pinned).max(axis=-1) > 1
    assert off.mean() < 2e-3, (
        f"{off.sum()} of {off.size} pixels are not those of look {orbits.LOOK}; if that was meant, "
        f"raise LOOK and add {tmp_path / PINNED.name} under the new number"
    )


def test_files_that_compile_others_in_are_compiled_anew_for_a_new_look():
    """Numba keeps what it compiled of a file until that file changes, not those it calls."""
    assert rasterize.COMPILED_IN == picture.COMPILED_IN == orbits.LOOK
