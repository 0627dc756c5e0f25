"""Draws a mesh from cameras around it, under even light: the Python side of the rasterizer."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8

from o3d_jax.data.meshes.mesh import MATERIAL, Mesh, Texels
from o3d_jax.data.meshes.picture import fill_picture
from o3d_jax.data.meshes.rasterize import scatter
from o3d_jax.data.meshes.scene import (
    DISPLAY,
    LINEAR,
    Canvas,
    Dome,
    Fragments,
    MeshView,
    Picture,
    Scene,
    Surface,
    Textures,
    new_canvas,
    new_fragments,
    new_picture,
)
from o3d_jax.data.meshes.shading import cast, halve

LIGHTS = 24
"""Lights on the dome: enough that their shadows blend, for each costs a look at its shadow map."""
SHADOW_MAP = 192
"""Texels along a side of a shadow map."""
BRIGHTEST = 0.95
"""Light on the surface that gets most; below 1, so that white does not blow out."""
NORMALS = 1024
"""How many directions that surface is looked for among."""
FLOOR = 0.38
"""Share of the light that nothing shadows, so that no crease is black."""
FROM_ABOVE = 0.45
"""A light right above is 1 + this times as strong as one at the horizon, one below 1 - this."""
KEY = np.array([0.5, 0.6, 0.62])
"""Direction of the main light: above, right and in front of the first camera."""
KEY_STRENGTH = 0.8
"""Strength of the main light at its middle, where one at the horizon has 1."""
KEY_WIDTH = 6.0
"""Exponent of the cosine; the larger, the smaller the main light."""

LEVELS = 16
"""The most levels of a texture: it has 32768 texels a side then."""


class Drawn(NamedTuple):
    """Frames of one mesh."""

    rgba: UInt8[np.ndarray, "frames h w 4"]
    depth: Float32[np.ndarray, "frames h w"]
    position: Float32[np.ndarray, "frames h w 3"]


def prepare_scene(mesh: Mesh) -> Scene:
    """Makes the smaller levels of the textures and finds what each light sees.

    The mesh must lie around the origin.
    """
    surface = Surface(
        corners=mesh.corners.astype(np.float32),
        normals=mesh.normals,
        uvs=mesh.uvs,
        colors=mesh.colors,
        opacity_uvs=mesh.opacity_uvs,
        glow_uvs=mesh.glow_uvs,
        material=mesh.material,
        materials=np.ascontiguousarray(mesh.materials, MATERIAL),
        textures=_pack(mesh.textures),
    )
    reach = 1.02 * float(np.linalg.norm(surface.corners, axis=-1).max()) + 1e-6
    dome = make_dome(reach)
    for light in range(len(dome.axes)):
        cast(surface, dome, light)
    return Scene(surface, dome)


def draw_orbit(
    scene: Scene, camera_to_world: Float[np.ndarray, "frames 4 4"], fov: float, size: int
) -> Drawn:
    """Returns square frames of `size` pixels.

    Args:
        camera_to_world: OpenCV axes.
        fov: degrees, both ways.
    """
    canvas, fragments = new_canvas(size, len(scene.surface.corners)), new_fragments(0)
    frames = []
    for pose in np.asarray(camera_to_world, np.float64):
        focal = 0.5 * size / np.tan(np.deg2rad(fov) / 2)
        rotation = np.ascontiguousarray(pose[:3, :3].T)
        view = MeshView(rotation, pose[:3, 3].copy(), float(focal), size / 2, DISPLAY)
        picture, fragments = _draw(scene, view, canvas, fragments)
        frames.append(picture)
    return Drawn(*(np.stack(field) for field in zip(*frames, strict=True)))


def _draw(
    scene: Scene, view: MeshView, canvas: Canvas, fragments: Fragments
) -> tuple[Picture, Fragments]:
    picture = new_picture(len(canvas.first))
    count = scatter(scene.surface, view, canvas, fragments)

    # With too little room for what is transparent, all is drawn again with enough.
    if count > len(fragments.owner):
        canvas.first[:] = -1
        fragments = new_fragments(count)
        scatter(scene.surface, view, canvas, fragments)
    fill_picture(scene, view, canvas, fragments, picture)
    return picture, fragments


def make_dome(reach: float) -> Dome:
    """Returns white lights all around, brighter above and around the main light; maps are empty.

    Strengths are such that no surface gets more than BRIGHTEST.
    """
    directions, height = _spiral(LIGHTS)
    key = np.clip(directions @ (KEY / np.linalg.norm(KEY)), 0, 1) ** KEY_WIDTH
    strengths = 1 + FROM_ABOVE * height + KEY_STRENGTH * key

    every, _ = _spiral(NORMALS)
    brightest = (np.clip(every @ directions.T, 0, 1) @ strengths).max()

    # Axes of each shadow map: any two that are at right angles to the light.
    up = np.where(np.abs(height[:, None]) > 0.9, [[1.0, 0, 0]], [[0, 1.0, 0]])
    right = np.cross(up, directions)
    right /= np.linalg.norm(right, axis=-1, keepdims=True)

    return Dome(
        np.stack([right, np.cross(directions, right), directions], axis=1).astype(np.float32),
        (strengths * (BRIGHTEST - FLOOR) / brightest).astype(np.float32),
        FLOOR,
        reach,
        np.full((LIGHTS, SHADOW_MAP, SHADOW_MAP), -np.inf, np.float32),
    )


def _spiral(count: int) -> tuple[Float[np.ndarray, "{count} 3"], Float[np.ndarray, " {count}"]]:
    """Returns directions evenly on a sphere (golden spiral), and their heights."""
    k = np.arange(count) + 0.5
    height, turn = 1 - 2 * k / count, np.pi * (1 + 5**0.5) * k
    ring = np.sqrt(1 - height**2)
    return np.stack([ring * np.cos(turn), height, ring * np.sin(turn)], axis=-1), height


def _pack(textures: tuple[Texels, ...]) -> Textures:
    levels = np.zeros((max(len(textures), 1), LEVELS, 3), np.int64)
    pieces: list[Shaped[np.ndarray, "_ 4"]] = [np.zeros((1, 4), np.uint8)]
    start = 1
    for i, texture in enumerate(textures):
        level = np.ascontiguousarray(texture)
        for j in range(LEVELS):
            h, w = level.shape[:2]
            levels[i, j] = start, w, h
            pieces.append(level.reshape(-1, 4))
            start += h * w
            if h == w == 1:
                break
            level = halve(level, LINEAR, DISPLAY)
    return Textures(np.concatenate(pieces), levels, LINEAR)
