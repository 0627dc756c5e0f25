"""A texture for a surface: colors as the Gaussians are drawn with, from all around."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy.ndimage import distance_transform_edt, map_coordinates

from o3d_jax.meshing.compiled import fill_texels
from o3d_jax.meshing.extra import needed
from o3d_jax.meshing.field import DensityField
from o3d_jax.meshing.silhouettes import FOV, cast_field, draw_gaussians, surround
from o3d_jax.meshing.surface import TriangleSurface, vertex_normals
from o3d_jax.types import Gaussians

BAKED_VIEWS = 26
"""Directions, evenly on a sphere, from which colors are taken."""
BAKED_SIZE = 512
"""Pixels along a side of each picture."""
BAKED_DEPTH_SIZE = 192
"""Pixels along a side of where a picture's surface is."""
PADDING = 2
"""Texels between parts of the surface in a texture."""
BEHIND = 3.0
"""Steps of the grid: how far behind what a camera sees a point may be, to count as seen."""


class Texture(NamedTuple):
    """Colors on a surface."""

    uvs: Float[np.ndarray, "k 2"]
    """Where in the image each vertex is, in [0, 1], from its left and from its top."""
    image: Float32[np.ndarray, "s s 3"]
    """In [0, 1], as in image files."""


class Baked(NamedTuple):
    """A texture, and the surface cut open where it has seams."""

    texture: Texture
    origin: Int[np.ndarray, " k"]
    """What each vertex was before; those on seams are there more than once."""
    faces: Int[np.ndarray, "f 3"]


class Look(NamedTuple):
    """What a surface gets its colors from."""

    gaussians: Gaussians
    field: DensityField
    threshold: float
    """Density at which the surface is."""


def bake_texture(look: Look, surface: TriangleSurface, size: int) -> Baked:
    """Returns a texture of `size` pixels along a side.

    A texel has the mean color of the pictures that see it, those it faces most weighing most; one
    that no picture sees has the color of the Gaussians around it.

    Raises:
        InputError: xatlas is not installed.
    """
    # Where each triangle lies in the image. Vertices on seams lie there twice.
    xatlas = needed("xatlas")
    atlas, options = xatlas.Atlas(), xatlas.PackOptions()
    atlas.add_mesh(surface.vertices.astype(np.float32), surface.faces.astype(np.uint32))
    options.resolution, options.padding = size, PADDING
    atlas.generate(pack_options=options)
    origin, triangles, uvs = atlas.get_mesh(0)
    faces, uvs = triangles.astype(np.int64), uvs.astype(np.float64)

    # Which point of the surface each texel shows, with its normal, and from that its color.
    texels = np.zeros((size, size, 7), np.float32)
    values = np.concatenate([surface.vertices, vertex_normals(surface)], axis=-1)[origin]
    fill_texels(uvs * size, faces, values, texels)
    there = texels[..., 6] > 0
    points, normals = np.split(texels[there][:, :6].astype(np.float64), 2, axis=-1)
    image = np.zeros((size, size, 3), np.float32)
    image[there] = _seen_colors(look, points, normals)

    # Beyond its parts it has their nearest colors, for engines blur it for the distance.
    nearest = distance_transform_edt(~there, return_distances=False, return_indices=True)
    image = image[tuple(nearest)]  # pyright: ignore[reportArgumentType]
    return Baked(Texture(uvs, image), origin.astype(np.int64), faces)


def _seen_colors(
    look: Look, points: Float[np.ndarray, "k 3"], normals: Float[np.ndarray, "k 3"]
) -> Float[np.ndarray, "k 3"]:
    around = surround(look.field, BAKED_VIEWS)
    seen = draw_gaussians(look.gaussians, around, BAKED_SIZE)
    depths = cast_field(look.field, around, BAKED_DEPTH_SIZE, look.threshold).depth

    sums, total = np.zeros((len(points), 3)), np.zeros((len(points), 1))
    for pose, rgb, alpha, depth in zip(around.poses, *seen, depths, strict=True):
        at, nearness, z = _projected(points, pose)
        facing = ((pose[:3, 3] - points) * normals).sum(-1, keepdims=True) * nearness
        covered = _picked(alpha[..., None], at)
        hidden = z > _nearest(depth, at) + BEHIND * look.field.spacing
        weight = facing.clip(0) ** 2 * (covered > 0.5) * ~hidden
        sums += weight * _picked(rgb, at) / covered.clip(0.5)  # Before black: not yet divided.
        total += weight
    around_them = look.field.color_at(points)
    return np.where(total > 1e-3, sums / total.clip(1e-3), around_them).clip(0, 1)


class _Projected(NamedTuple):
    at: Float[np.ndarray, "k 2"]
    """From the picture's top and from its left, in [0, 1]."""
    nearness: Float[np.ndarray, "k 1"]
    """1 / distance from the camera."""
    z: Float[np.ndarray, "k 1"]


def _projected(points: Float[np.ndarray, "k 3"], pose: Float[np.ndarray, "4 4"]) -> _Projected:
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    z = local[:, 2:]
    at = 0.5 + 0.5 * local[:, 1::-1] / (z * np.tan(np.deg2rad(FOV) / 2))
    return _Projected(at, 1 / np.linalg.norm(local, axis=-1, keepdims=True), z)


def _picked(
    picture: Float[np.ndarray, "h w c"], at: Float[np.ndarray, "k 2"]
) -> Float[np.ndarray, "k c"]:
    """Returns values between pixels, by bilinear interpolation."""
    where = (at * picture.shape[:2] - 0.5).T
    channels = [map_coordinates(x, where, order=1, mode="nearest") for x in np.rollaxis(picture, 2)]
    return np.stack(channels, axis=-1)


def _nearest(depth: Float[np.ndarray, "h w"], at: Float[np.ndarray, "k 2"]) -> np.ndarray:
    """Returns the depth of each pixel that is hit; infinite where it has none."""
    row, column = np.floor(at * depth.shape).astype(int).clip(0, len(depth) - 1).T
    found = depth[row, column][:, None]
    return np.where(found > 0, found, np.inf)
