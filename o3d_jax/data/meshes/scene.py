"""A mesh, its lights and a camera as compiled code takes them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int32, Int64, Shaped, UInt8

from o3d_jax.files.srgb import to_display, to_light

SAMPLES = 16
"""Samples in a pixel."""
GRID = 256
"""Steps of a pixel that corners are rounded to."""
SAMPLE_X = np.array([16 * k - 120 for k in range(SAMPLES)], np.int64)
"""Where samples are, in steps from a pixel's middle: one a column and one a row (Hammersley)."""
SAMPLE_Y = np.array([16 * int(f"{k:04b}"[::-1], 2) - 120 for k in range(SAMPLES)], np.int64)
FARTHEST = 120
"""The largest distance of a sample from the middle, along either axis."""

PLANE = 10
"""Columns of `Canvas.planes`."""


LINEAR = to_light(np.arange(256) / 255).astype(np.float32)
"""The light of each sRGB byte."""
DISPLAY = np.round(255 * to_display(np.arange(4096) / 4095)).astype(np.uint8)
"""The sRGB bytes of light at equal steps from 0 to 1."""


class Textures(NamedTuple):
    """All levels of all textures."""

    texels: UInt8[np.ndarray, "n 4"]
    """sRGB and alpha, row by row, one level after the other."""
    levels: Int64[np.ndarray, "textures levels 3"]
    """First texel, width and height of each level; width 0 where there is none."""
    linear: Float32[np.ndarray, " 256"]
    """The light of each sRGB byte."""


class Surface(NamedTuple):
    """A mesh, with the fields of `Mesh`."""

    corners: Float32[np.ndarray, "t 3 3"]
    normals: Float32[np.ndarray, "t 3 3"]
    uvs: Float32[np.ndarray, "t 3 2"]
    colors: Float32[np.ndarray, "t 3 4"]
    opacity_uvs: Float32[np.ndarray, "t 3 2"]
    glow_uvs: Float32[np.ndarray, "t 3 2"]
    material: Int32[np.ndarray, " t"]
    materials: Shaped[np.ndarray, " m"]
    textures: Textures


class Dome(NamedTuple):
    """Lights all around, far away, and what each of them sees."""

    axes: Float32[np.ndarray, "l 3 3"]
    """Axes of each light's shadow map: along rows, along columns, and toward the light."""
    strengths: Float32[np.ndarray, " l"]
    floor: float
    """Light that nothing shadows."""
    reach: float
    """Half the width of the shadow maps, scene units."""
    maps: Float32[np.ndarray, "l s s"]
    """How far toward the light the surface is that it sees, scene units."""


class Scene(NamedTuple):
    """What does not change from view to view."""

    surface: Surface
    dome: Dome


class MeshView(NamedTuple):
    """A camera: pixel (x, y) sees along ((x - middle) / focal, (y - middle) / focal, 1)."""

    rotation: Float[np.ndarray, "3 3"]
    """World to camera; x right, y down, z forward."""
    origin: Float[np.ndarray, " 3"]
    """Where the camera is in the world."""
    focal: float
    """Focal length, pixels."""
    middle: float
    """The image's middle, pixels; the left edge of the first one is 0."""
    display: UInt8[np.ndarray, " 4096"]
    """The bytes that its pictures have for light at equal steps from 0 to 1."""


class Canvas(NamedTuple):
    """Where views are drawn sample by sample; between uses, all is as `new_canvas` makes it."""

    nearness: Float32[np.ndarray, "h w 16"]
    """1 / depth; 0 where empty."""
    owner: Int32[np.ndarray, "h w 16"]
    """Triangle in front, counted from 1; 0 for none."""
    first: Int32[np.ndarray, "h w"]
    """The first of the pixel's transparent fragments; -1 for none."""
    planes: Float32[np.ndarray, "t 10"]
    """A row for each triangle drawn: a point in pixels (2), 1 / depth there, its slopes in x and y,
    those of the second and the third corner's weight / depth, and 1 for its front or -1 for its
    back."""


class Fragments(NamedTuple):
    """What transparent triangles cover, in no order."""

    follower: Int32[np.ndarray, " n"]
    """The next fragment of the same pixel; -1 for none."""
    owner: Int32[np.ndarray, " n"]
    """Its triangle, counted from 0."""
    covered: Int32[np.ndarray, " n"]
    """A bit for each sample that it covers."""


class Picture(NamedTuple):
    """A drawn view."""

    rgba: UInt8[np.ndarray, "h w 4"]
    """sRGB, straight alpha."""
    depth: Float32[np.ndarray, "h w"]
    """Depth along z of the surface that shows most, in the middle of what shows of it; 0: none."""
    position: Float32[np.ndarray, "h w 3"]
    """The same point's place in the world."""


def new_canvas(size: int, triangles: int) -> Canvas:
    """Returns an empty canvas for square views of `size` pixels and so many triangles."""
    return Canvas(
        nearness=np.zeros((size, size, SAMPLES), np.float32),
        owner=np.zeros((size, size, SAMPLES), np.int32),
        first=np.full((size, size), -1, np.int32),
        planes=np.zeros((triangles, PLANE), np.float32),
    )


def new_fragments(count: int) -> Fragments:
    """Returns room for so many fragments."""
    return Fragments(*(np.zeros(count, np.int32) for _ in range(3)))


def new_picture(size: int) -> Picture:
    """Returns an empty square picture of `size` pixels."""
    return Picture(
        rgba=np.zeros((size, size, 4), np.uint8),
        depth=np.zeros((size, size), np.float32),
        position=np.zeros((size, size, 3), np.float32),
    )
