"""Reads PLY models: polygons, with colors of vertices or faces, or with textures.

Written here, since trimesh, the reader at hand, fills the notches of polygons, refuses binary files
with faces of several kinds, and shows colors of 16 bits as white. Colors are taken for sRGB, as
they are in files of scanners, and both sides of every face are drawn: the format does not say which
one is meant.
"""

import numpy as np
from jaxtyping import Float64, Int64

from o3d_jax.data.meshes.mesh import (
    Material,
    MeshPart,
    ModelContent,
    PerCorner,
    TextureUse,
    some_of,
)
from o3d_jax.data.meshes.readers.colors import fractions, linear_rgba
from o3d_jax.data.meshes.readers.files import ModelFiles, decode_texture
from o3d_jax.data.meshes.readers.ply_tables import PlyList, PlyTable, read_ply_tables
from o3d_jax.data.meshes.readers.polygons import Triangles, cut_polygons
from o3d_jax.errors import InputError
from o3d_jax.files.ply_header import PlyHeader, read_ply_header

FACE_LISTS = ("vertex_indices", "vertex_index")
"""The names that programs have for the corners of a face."""

COLOR_COLUMNS = (
    ("red", "green", "blue", "alpha"),
    ("diffuse_red", "diffuse_green", "diffuse_blue", "diffuse_alpha"),
    ("r", "g", "b", "a"),
)
"""The names that programs have for colors; the last one may lack."""

UV_COLUMNS = (("texture_u", "texture_v"), ("u", "v"), ("s", "t"))
"""The names that programs have for the texture coordinates of a vertex."""


def read_ply_mesh(files: ModelFiles) -> ModelContent:
    """Returns a PLY model, with the colors of its vertices or faces, or a texture.

    Raises:
        InputError: damaged, without faces, or a texture is missing or outside its folder.
    """
    content, name = files.read(), files.path.name
    header = read_ply_header(content, name)
    tables = read_ply_tables(content, header, name)
    positions = _columns(tables.get("vertex"), "x", "y", "z")
    if positions is None:
        raise InputError(f"{name} has no vertices with x, y and z; export it as a mesh")

    # Faces may have any number of corners; colors and textures may be theirs or the vertices'.
    corners = _corners(tables.get("face"), len(positions))
    cut = cut_polygons(positions, corners.values, corners.sizes)
    faces = corners.values[cut.corners]

    vertex, face = tables["vertex"], tables["face"]
    normals = _columns(vertex, "nx", "ny", "nz")
    part = MeshPart(
        positions=positions,
        faces=faces,
        material=0,
        normals=None if normals is None else PerCorner(normals, faces),
        uvs=_uvs(vertex, face, corners, faces, cut),
        colors=_colors(vertex, face, faces, cut),
    )
    return _textured(files, header, part, face, cut)


def _columns(table: PlyTable | None, *names: str) -> Float64[np.ndarray, "rows c"] | None:
    """Returns some columns of a table side by side; None if one of them is not there."""
    if table is None or not all(name in table.columns for name in names):
        return None
    return np.stack([table.columns[name].astype(np.float64) for name in names], axis=-1)


def _corners(face: PlyTable | None, count: int) -> PlyList:
    """Returns the numbers of the corners of all faces; `count` is how many vertices there are."""
    lists = {} if face is None else face.lists
    named = [lists[name] for name in FACE_LISTS if name in lists]
    named = named or (list(lists.values()) if len(lists) == 1 else [])
    if not named or not len(named[0].values):
        raise InputError(
            "it has no triangles to draw: points and Gaussians by themselves have no surface; "
            "export it as a mesh of triangles"
        )
    corners = named[0].values
    if not ((corners >= 0) & (corners < count)).all():
        raise InputError("a triangle of it has a corner that is not there; export it anew")
    return PlyList(corners.astype(np.int64), named[0].sizes)


def _colors(
    vertex: PlyTable, face: PlyTable, faces: Int64[np.ndarray, "t 3"], cut: Triangles
) -> PerCorner | None:
    """Returns the colors of the vertices, or else of the faces."""
    for table, rows in ((vertex, faces), (face, np.repeat(cut.polygons[:, None], 3, axis=1))):
        for names in COLOR_COLUMNS:
            there = [name for name in names if name in table.columns]
            if there[:3] == list(names[:3]):
                columns = fractions([table.columns[name] for name in there])
                return PerCorner(linear_rgba(columns), rows)
    return None


def _uvs(
    vertex: PlyTable,
    face: PlyTable,
    corners: PlyList,
    faces: Int64[np.ndarray, "t 3"],
    cut: Triangles,
) -> PerCorner | None:
    """Returns texture coordinates from the left and the top: the faces', or else the vertices'."""
    uvs, rows = None, cut.corners
    if "texcoord" in face.lists and len(face.lists["texcoord"].values):
        values, sizes = face.lists["texcoord"]
        if not np.array_equal(sizes, 2 * corners.sizes):
            raise InputError("not each corner of it has two texture coordinates; export it anew")
        uvs = values.astype(np.float64).reshape(-1, 2)
    else:
        rows = faces
        for names in UV_COLUMNS:
            uvs = _columns(vertex, *names) if uvs is None else uvs
    return None if uvs is None else PerCorner(np.stack([uvs[:, 0], 1 - uvs[:, 1]], -1), rows)


def _textured(
    files: ModelFiles, header: PlyHeader, part: MeshPart, face: PlyTable, cut: Triangles
) -> ModelContent:
    """Returns some triangles as a model: a part for each texture, and one for what has none."""
    key = "texturefile"
    names = [c[len(key) :].strip() for c in header.comments if c.lower().startswith(key)]
    plain = Material(two_sided=True)
    if not names or part.uvs is None:
        remark = "it has a texture and no coordinates for it; drawn in plain colors"
        return ModelContent([part], [plain], [], (remark,) if names else ())

    # Without a number, as with a single texture, it is the first one's.
    numbers = face.columns.get("texnumber", np.zeros(cut.polygons.max(initial=0) + 1))[cut.polygons]
    model = ModelContent([], [plain], [])
    for number, name in enumerate(names):
        if (chosen := numbers == number).any():
            texels = decode_texture(files.read_at(files.beside(name)), name[:80])
            texels[..., 3] = 255
            model.materials.append(plain._replace(color=TextureUse(len(model.textures))))
            model.textures.append(texels)
            material = len(model.materials) - 1
            model.parts.append(some_of(part, chosen)._replace(material=material))

    rest = ~np.isin(numbers, np.arange(len(names)))
    return model._replace(parts=[*model.parts, some_of(part, rest)])
