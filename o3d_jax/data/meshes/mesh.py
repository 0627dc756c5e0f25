"""What the readers of model files give and what the rasterizer takes.

Colors are linear light in [0, 1]; textures keep the sRGB bytes of their files.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Int32, Shaped, UInt8

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


class TextureUse(NamedTuple):
    """A texture that a material shows, and how."""

    texture: int = -1
    """Its index; -1 for none."""
    wrap_u: Wrap = Wrap.REPEAT
    wrap_v: Wrap = Wrap.REPEAT


class Material(NamedTuple):
    """How a surface looks; the defaults are glTF's."""

    base: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    """Linear RGB and alpha; they multiply those of the texture and of the vertices."""
    emission: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Linear RGB; it multiplies the emission texture's."""
    color: TextureUse = TextureUse()
    """The texture that multiplies the base color, at a part's `uvs`."""
    opacity: TextureUse = TextureUse()
    """The one whose alpha multiplies the base's, at `opacity_uvs`; without one, the color's."""
    glow: TextureUse = TextureUse()
    """The one that multiplies the emission, at a part's `glow_uvs`."""
    mode: AlphaMode = AlphaMode.OPAQUE
    cutoff: float = 0.5
    two_sided: bool = False
    """Whether the back is drawn, too."""
    lit: bool = True
    """Whether light falls on it; if not, the base color is what one sees."""


class PerCorner(NamedTuple):
    """What each corner of some triangles has: rows of values, shared by corners."""

    rows: Float[np.ndarray, "n c"]
    faces: Int[np.ndarray, "f 3"]
    """Which row each corner has."""


class MeshPart(NamedTuple):
    """Triangles of one material, in the world's axes: y-up, counter-clockwise in front."""

    positions: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    """Which position each corner has."""
    material: int
    normals: PerCorner | None = None
    uvs: PerCorner | None = None
    """Where the color's texture is looked up, from its left and from its top."""
    colors: PerCorner | None = None
    """Linear RGB and alpha."""
    opacity_uvs: PerCorner | None = None
    """Where the opacity's texture is looked up; None where that is at `uvs`."""
    glow_uvs: PerCorner | None = None


class ModelContent(NamedTuple):
    """A model file."""

    parts: list[MeshPart]
    materials: list[Material]
    textures: list[Texels]
    remarks: tuple[str, ...] = ()
    """What its owner should know though it can be drawn, each part of a sentence."""


_USE = np.dtype([("texture", np.int64), ("wrap_u", np.int64), ("wrap_v", np.int64)])

MATERIAL = np.dtype(
    [
        ("base", np.float32, 4),
        ("emission", np.float32, 3),
        ("color", _USE),
        ("opacity", _USE),
        ("glow", _USE),
        ("mode", np.int64),
        ("cutoff", np.float32),
        ("two_sided", np.bool_),
        ("lit", np.bool_),
    ]
)
"""The record that compiled code takes for a `Material`, with its fields in the same order."""


class Mesh(NamedTuple):
    """All triangles of a model, corner by corner."""

    corners: Float64[np.ndarray, "t 3 3"]
    """In float64 until `fit` has moved them to the origin: at map coordinates of 5,000,000 m,
    float32 has steps of half a meter."""
    normals: Float32[np.ndarray, "t 3 3"]
    """Normals of unit length."""
    uvs: Float32[np.ndarray, "t 3 2"]
    colors: Float32[np.ndarray, "t 3 4"]
    """Linear RGB and alpha."""
    opacity_uvs: Float32[np.ndarray, "t 3 2"]
    """The same array as `uvs` where no part has its own."""
    glow_uvs: Float32[np.ndarray, "t 3 2"]
    """The same array as `uvs` where no part has its own."""
    material: Int32[np.ndarray, " t"]
    materials: Shaped[np.ndarray, " m"]
    """Records of type MATERIAL."""
    textures: tuple[Texels, ...]
    """sRGB and alpha."""
    remarks: tuple[str, ...] = ()
    """What its owner should know, as in `ModelContent`."""


CREASE_COSINE = np.cos(np.deg2rad(40.0))
"""Faces that meet at a smaller angle are smoothed, where a file has no normals."""

BRIGHTEST_GLOW = 1e6
"""The most light that a channel may emit; 1 is already white."""

SLAB = 2**17
"""Triangles that are worked on at a time, so that what is only needed on the way stays small."""


def to_mesh(model: ModelContent, smooth: bool) -> Mesh:
    """Returns the triangles of all parts that have an area, and corners that are finite.

    Args:
        smooth: whether normals that the file lacks are made to vary over faces that meet at
            less than CREASE_COSINE, or are those of the faces (as glTF has it).

    Raises:
        InputError: no triangle is left.
    """
    parts = [part for part in model.parts if len(part.faces)]
    mesh, count = _room(parts, model), 0
    for part in parts:
        means = smooth and part.normals is None
        part = part._replace(normals=_means(part)) if means else part
        for start in range(0, len(part.faces), SLAB):
            slab = some_of(part, slice(start, start + SLAB))
            count = _fill(mesh, count, slab, means)
    if not count:
        raise InputError("it has no triangles to draw; export it as a mesh of triangles")
    return _first(mesh, count)


def _first(mesh: Mesh, count: int) -> Mesh:
    """Returns the first triangles of a mesh."""
    uvs = mesh.uvs[:count]
    return mesh._replace(
        corners=mesh.corners[:count],
        normals=mesh.normals[:count],
        uvs=uvs,
        colors=mesh.colors[:count],
        opacity_uvs=uvs if mesh.opacity_uvs is mesh.uvs else mesh.opacity_uvs[:count],
        glow_uvs=uvs if mesh.glow_uvs is mesh.uvs else mesh.glow_uvs[:count],
        material=mesh.material[:count],
    )


def _room(parts: list[MeshPart], model: ModelContent) -> Mesh:
    """Returns a mesh with room for all triangles of some parts."""
    count = sum(len(part.faces) for part in parts)
    uvs = np.empty((count, 3, 2), np.float32)
    opacity = any(part.opacity_uvs is not None for part in parts)
    glow = any(part.glow_uvs is not None for part in parts)
    return Mesh(
        corners=np.empty((count, 3, 3)),
        normals=np.empty((count, 3, 3), np.float32),
        uvs=uvs,
        colors=np.empty((count, 3, 4), np.float32),
        opacity_uvs=np.empty_like(uvs) if opacity else uvs,
        glow_uvs=np.empty_like(uvs) if glow else uvs,
        material=np.empty(count, np.int32),
        materials=_usable(model.materials),
        textures=tuple(model.textures),
        remarks=model.remarks,
    )


def _usable(materials: list[Material]) -> Shaped[np.ndarray, " m"]:
    """Returns materials as records, with light that is finite and not negative."""
    records = np.array([tuple(each) for each in materials], MATERIAL)
    records["base"] = np.nan_to_num(records["base"]).clip(0, 1)
    records["emission"] = np.nan_to_num(records["emission"]).clip(0, BRIGHTEST_GLOW)
    return records


def some_of(part: MeshPart, rows: slice | Bool[np.ndarray, " f"]) -> MeshPart:
    """Returns some of the triangles of a part."""
    values = {
        name: each._replace(faces=each.faces[rows])
        for name, each in part._asdict().items()
        if isinstance(each, PerCorner)
    }
    return part._replace(faces=part.faces[rows], **values)


class _Flat(NamedTuple):
    """Triangles, each with corners of its own."""

    corners: Float64[np.ndarray, "f 3 3"]
    across: Float64[np.ndarray, "f 3"]
    """Vectors along the normals, twice as long as the areas."""
    kept: Bool[np.ndarray, " f"]
    """Which triangles have an area, and one that is finite."""


def _flat(part: MeshPart) -> _Flat:
    corners = np.asarray(part.positions, np.float64)[part.faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(across, axis=-1)
    return _Flat(corners, across, np.isfinite(area) & (area > 0))


def _fill(mesh: Mesh, count: int, part: MeshPart, means: bool) -> int:
    """Adds the triangles of a part to the `count` that a mesh has; returns how many it has then.

    Args:
        means: whether the part's normals are `_means`.
    """
    corners, across, kept = _flat(part)
    corners, across = corners[kept], across[kept]
    flat = across / np.linalg.norm(across, axis=-1, keepdims=True)

    # The file's normals where it has some, or their means; else those of the faces.
    rows = slice(count, count + len(corners))
    mesh.corners[rows], mesh.material[rows] = corners, part.material
    mesh.normals[rows] = flat[:, None]
    if part.normals is not None:
        normals = _unit(np.asarray(part.normals.rows, np.float64)[part.normals.faces[kept]], flat)

        # A corner whose own face is creased against the mean keeps its face's normal.
        creased = means & ((normals * flat[:, None]).sum(-1, keepdims=True) < CREASE_COSINE)
        mesh.normals[rows] = np.where(creased, flat[:, None], normals)

    mesh.colors[rows] = np.clip(_values(part.colors, kept, (1.0, 1.0, 1.0, 1.0)), 0, 1)
    mesh.uvs[rows] = _values(part.uvs, kept, (0.0, 0.0))
    if mesh.opacity_uvs is not mesh.uvs:
        mesh.opacity_uvs[rows] = _values(part.opacity_uvs or part.uvs, kept, (0.0, 0.0))
    if mesh.glow_uvs is not mesh.uvs:
        mesh.glow_uvs[rows] = _values(part.glow_uvs or part.uvs, kept, (0.0, 0.0))
    return rows.stop


def _values(
    each: PerCorner | None, kept: Bool[np.ndarray, " f"], default: tuple[float, ...]
) -> Float[np.ndarray, "k 3 c"]:
    """Returns the values of the triangles that are kept; 0 where a file has nonsense."""
    if each is None:
        return np.broadcast_to(np.array(default), (int(kept.sum()), 3, len(default)))
    values = np.asarray(each.rows, np.float64)[each.faces[kept]]
    limit = float(np.finfo(np.float32).max)
    return np.nan_to_num(values, posinf=limit, neginf=-limit).clip(-limit, limit)


def _unit(
    normals: Float[np.ndarray, "f 3 3"], flat: Float[np.ndarray, "f 3"]
) -> Float[np.ndarray, "f 3 3"]:
    """Returns the normals at length 1, or the face's where a file has nonsense."""
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    usable = np.isfinite(length) & (length > 1e-12)
    return np.where(usable, normals / np.where(usable, length, 1), flat[:, None])


def _means(part: MeshPart) -> PerCorner:
    """Returns for each point the mean normal of the faces that meet in it, weighted by area.

    Vertices in the same place are one point.
    """
    used, compact = np.unique(part.faces, return_inverse=True)
    points, place = np.unique(
        np.asarray(part.positions, np.float64)[used], axis=0, return_inverse=True
    )
    faces = place.reshape(-1)[compact].reshape(-1, 3)
    total = np.zeros((len(points), 3))
    for start in range(0, len(faces), SLAB):
        rows = slice(start, start + SLAB)
        _, across, kept = _flat(part._replace(faces=part.faces[rows]))
        for corner in range(3):
            np.add.at(total, faces[rows][kept, corner], across[kept])
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    return PerCorner(total / np.where(length > 0, length, 1), faces)
