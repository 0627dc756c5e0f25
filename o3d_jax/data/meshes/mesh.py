"""What the readers of model files give and what the rasteriser takes.

Colours are linear light in [0, 1]; textures keep the sRGB bytes of their files.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, Shaped, UInt8

from o3d_jax.errors import InputError

Texels = UInt8[np.ndarray, "_ _ 4"]  # Each its own size.


class AlphaMode(IntEnum):
    """What alpha means, as in glTF."""

    OPAQUE = 0  # Nothing.
    MASK = 1  # The surface is there where alpha reaches the cutoff.
    BLEND = 2  # How much of what is behind it the surface hides.


class Wrap(IntEnum):
    """What a texture shows outside [0, 1]."""

    REPEAT = 0
    CLAMP = 1
    MIRROR = 2


class Material(NamedTuple):
    """How a surface looks; the defaults are glTF's."""

    base: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    """Linear RGB and alpha, times the texture's and the vertices'."""
    emission: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Linear RGB, times the emission texture's."""
    texture: int = -1
    """Index of the base colour's texture; -1 for none."""
    emission_texture: int = -1
    mode: AlphaMode = AlphaMode.OPAQUE
    cutoff: float = 0.5
    two_sided: bool = False
    """If not, the back is not drawn."""
    lit: bool = True
    """If not, the base colour is what one sees."""
    wrap_u: Wrap = Wrap.REPEAT
    wrap_v: Wrap = Wrap.REPEAT


class MeshPart(NamedTuple):
    """Indexed triangles of one material, in the world's axes: y-up, counter-clockwise in front."""

    positions: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    material: int
    normals: Float[np.ndarray, "v 3"] | None = None
    uvs: Float[np.ndarray, "v 2"] | None = None
    """From the left and from the top of the texture."""
    colors: Float[np.ndarray, "v 4"] | None = None


class ModelContent(NamedTuple):
    """A model file."""

    parts: list[MeshPart]
    materials: list[Material]
    textures: list[Texels]


MATERIAL = np.dtype(
    [
        ("base", np.float32, 4),
        ("emission", np.float32, 3),
        ("texture", np.int64),
        ("emission_texture", np.int64),
        ("mode", np.int64),
        ("cutoff", np.float32),
        ("two_sided", np.bool_),
        ("lit", np.bool_),
        ("wrap_u", np.int64),
        ("wrap_v", np.int64),
    ]
)
"""A `Material`, for compiled code: the fields in the same order."""


class Mesh(NamedTuple):
    """All triangles of a model, corner by corner."""

    corners: Float32[np.ndarray, "t 3 3"]
    normals: Float32[np.ndarray, "t 3 3"]
    """Of unit length."""
    uvs: Float32[np.ndarray, "t 3 2"]
    colors: Float32[np.ndarray, "t 3 4"]
    """Linear RGB and alpha."""
    material: Int32[np.ndarray, " t"]
    materials: Shaped[np.ndarray, " m"]
    """Records of type MATERIAL."""
    textures: tuple[Texels, ...]
    """sRGB and alpha."""


CREASE_COSINE = np.cos(np.deg2rad(40.0))
"""Faces that meet at a smaller angle are smoothed, where a file has no normals."""


def to_mesh(model: ModelContent, smooth: bool) -> Mesh:
    """The triangles of all parts; those without area or with a corner not finite are left out.

    Args:
        smooth: whether normals that the file lacks are made to vary over faces that meet at
            less than CREASE_COSINE, or are those of the faces (as glTF has it).

    Raises:
        InputError: no triangle is left.
    """
    pieces = [_corners_of(part, smooth) for part in model.parts if len(part.faces)]
    if not sum(len(piece.corners) for piece in pieces):
        raise InputError("it has no triangles to draw; export it as a mesh of triangles")
    return Mesh(
        corners=np.concatenate([piece.corners for piece in pieces]),
        normals=np.concatenate([piece.normals for piece in pieces]),
        uvs=np.concatenate([piece.uvs for piece in pieces]),
        colors=np.concatenate([piece.colors for piece in pieces]),
        material=np.concatenate([piece.material for piece in pieces]),
        materials=np.array([tuple(each) for each in model.materials], MATERIAL),
        textures=tuple(model.textures),
    )


def _corners_of(part: MeshPart, smooth: bool) -> Mesh:
    corners = np.asarray(part.positions, np.float64)[part.faces]
    with np.errstate(invalid="ignore", over="ignore"):
        across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        area = np.linalg.norm(across, axis=-1)
    kept: Bool[np.ndarray, " f"] = np.isfinite(area) & (area > 0)
    faces, corners, flat = part.faces[kept], corners[kept], (across[kept].T / area[kept]).T
    if part.normals is not None:
        normals = _unit(np.asarray(part.normals, np.float64)[faces], flat)
    elif smooth:
        normals = _smooth(corners, flat, area[kept])
    else:
        normals = np.repeat(flat[:, None], 3, axis=1)
    uvs = np.zeros((len(faces), 3, 2)) if part.uvs is None else part.uvs[faces]
    colors = np.ones((len(faces), 3, 4)) if part.colors is None else part.colors[faces]
    return Mesh(
        corners.astype(np.float32),
        normals.astype(np.float32),
        np.nan_to_num(uvs).astype(np.float32),
        np.clip(np.nan_to_num(colors), 0, 1).astype(np.float32),
        np.full(len(faces), part.material, np.int32),
        np.empty(0, MATERIAL),
        (),
    )


def _unit(
    normals: Float[np.ndarray, "f 3 3"], flat: Float[np.ndarray, "f 3"]
) -> Float[np.ndarray, "f 3 3"]:
    """The normals at length 1; the face's where a file has nonsense."""
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    usable = np.isfinite(length) & (length > 1e-12)
    return np.where(usable, normals / np.where(usable, length, 1), flat[:, None])


def _smooth(
    corners: Float[np.ndarray, "f 3 3"],
    flat: Float[np.ndarray, "f 3"],
    area: Float[np.ndarray, " f"],
) -> Float[np.ndarray, "f 3 3"]:
    """Means, weighted by area, of the normals of the faces that meet in a point.

    A corner whose own face is creased against the mean keeps its face's normal.
    """
    points, place = np.unique(corners.reshape(-1, 3), axis=0, return_inverse=True)
    total = np.zeros((len(points), 3))
    np.add.at(total, place.reshape(-1), np.repeat(flat * area[:, None], 3, axis=0))
    mean = _unit(total[place.reshape(-1, 3)], flat)
    creased = (mean * flat[:, None]).sum(-1, keepdims=True) < CREASE_COSINE
    return np.where(creased, flat[:, None], mean)
