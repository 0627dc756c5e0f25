"""Reads Wavefront OBJ models: polygons, their texture coordinates, normals and materials.

Written here, with mtl.py, since trimesh, the reader at hand, loses in silence what people's files
have: materials after a byte-order mark or a letter of Latin-1, a second library, options of
textures, names in another case. It gives a material that is not there another one's picture, fills
the notches of polygons, and fails for want of a package that it does not ask for. What is read:

    v X Y Z [R G B]      vt U [V]      vn X Y Z       R G B in sRGB
    f CORNER CORNER CORNER ...         CORNER: v, v/vt, v//vn or v/vt/vn, the numbers counted from
                                       1, or backwards from the last one so far if negative
    usemtl MATERIAL      mtllib FILE ...

That must be as it is here, or the file is refused; all other statements are passed over. Colors
are taken for sRGB, and both sides of every face are drawn: the format does not say which is meant.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int, Int32

from o3d_jax.data.meshes.mesh import MeshPart, ModelContent, PerCorner
from o3d_jax.data.meshes.readers.colors import linear_rgba
from o3d_jax.data.meshes.readers.files import ModelFiles
from o3d_jax.data.meshes.readers.mtl import TextureMap
from o3d_jax.data.meshes.readers.painter import Painter
from o3d_jax.data.meshes.readers.polygons import cut_polygons
from o3d_jax.data.meshes.readers.statements import Statement, statements
from o3d_jax.errors import InputError
from o3d_jax.files.letters import text_of

_COMMENT = re.compile(rb"(?<!\.)#")  # But for that of 1.#IND.

_NO_NUMBER = re.compile(rb"^[+-]?(nan\([^)]*\)|1\.#\w+)$", re.IGNORECASE)
"""What C's libraries print for what is not a number, or for infinity, besides nan and inf."""


def read_obj_mesh(files: ModelFiles) -> ModelContent:
    """Returns a Wavefront OBJ model with its materials: color or map, opacity or opacity map.

    Raises:
        InputError: damaged, or its materials or a texture are missing or outside its folder.
    """
    found = _Found()
    for block in statements(files.read()):
        found.add(block)
    painter = Painter(files, found.libraries)
    parts = list(_parts(found.shape(), list(found.materials), painter))
    return ModelContent(parts, painter.materials, painter.textures, painter.remarks())


class _Shape(NamedTuple):
    """All of a file's triangles."""

    positions: Float64[np.ndarray, "v 3"]
    colors: Float64[np.ndarray, "v 4"] | None
    uvs: Float64[np.ndarray, "vt 2"]
    """Texture coordinates from the left and from the top; the last row stands for none."""
    normals: Float64[np.ndarray, "vn 3"]
    """Normals, the last of which stands for none."""
    corners: Int32[np.ndarray, "t 3 3"]
    """Numbers of each corner's position, texture coordinates and normal; -1 for none."""
    owners: Int32[np.ndarray, " t"]
    """The material of each triangle, as in `_Found`."""


@dataclass
class _Lines:
    """The lines of some statements, sorted by kind and taken apart into words."""

    vertices: list[list[bytes]] = field(default_factory=list)
    uvs: list[list[bytes]] = field(default_factory=list)
    normals: list[list[bytes]] = field(default_factory=list)
    polygons: list[list[bytes]] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    """The material of each polygon."""

    def counts(self) -> tuple[int, int, int]:
        """Returns how many positions, texture coordinates and normals there are."""
        return len(self.vertices), len(self.uvs), len(self.normals)


@dataclass
class _Found:
    """What has been read so far, block by block."""

    vertices: list[Float64[np.ndarray, "_ 3"]] = field(default_factory=list)
    colors: list[Float64[np.ndarray, "_ 3"]] = field(default_factory=list)
    """The vertices' colors in sRGB; NaN for none."""
    uvs: list[Float64[np.ndarray, "_ 2"]] = field(default_factory=list)
    normals: list[Float64[np.ndarray, "_ 3"]] = field(default_factory=list)
    corners: list[Int32[np.ndarray, "_ 3"]] = field(default_factory=list)
    """Corners as in `_Shape`, but counted from 1, with 0 for none."""
    sizes: list[Int32[np.ndarray, " _"]] = field(default_factory=list)
    """How many corners each polygon has."""
    owners: list[Int32[np.ndarray, " _"]] = field(default_factory=list)
    """The material of each polygon: 0 for none, else a number of `materials`."""
    materials: dict[str, int] = field(default_factory=dict)
    """The materials that are named, in order, with their numbers from 1 on."""
    libraries: list[str] = field(default_factory=list)
    """What follows each mtllib."""
    counts: tuple[int, int, int] = (0, 0, 0)
    """How many positions, texture coordinates and normals there are so far."""
    material: int = 0
    """The material of the polygons that come next."""

    def add(self, block: list[Statement]) -> None:
        """Takes in some statements.

        Raises:
            InputError: one of them is damaged.
        """
        lines = self._sorted(block)
        width = 6 if max(map(len, lines.vertices), default=0) >= 6 else 3
        table = _numbers("v", lines.vertices, 3, width)
        self.vertices.append(table[:, :3])
        bare = np.broadcast_to(np.nan, (len(table), 3))
        self.colors.append(table[:, 3:] if width == 6 else bare)
        self.uvs.append(_numbers("vt", lines.uvs, 1, 2))
        self.normals.append(_numbers("vn", lines.normals, 3, 3))
        self.corners.append(_corners(lines.polygons))
        self.sizes.append(np.array(list(map(len, lines.polygons)), np.int32))
        self.owners.append(np.array(lines.owners, np.int32))
        self.counts = _sum(self.counts, lines.counts())

    def _sorted(self, block: list[Statement]) -> _Lines:
        lines = _Lines()
        for written, words in block:
            keyword = written.lower()
            if keyword == b"v":
                lines.vertices.append(_words(words))
            elif keyword == b"vt":
                lines.uvs.append(_words(words))
            elif keyword == b"vn":
                lines.normals.append(_words(words))

            # Indices may count from the end of what is there by then.
            elif keyword in (b"f", b"fo"):
                polygon = _words(words)
                if b"-" in words:
                    polygon = _forwards(polygon, _sum(self.counts, lines.counts()))
                lines.polygons.append(polygon)
                lines.owners.append(self.material)

            elif keyword == b"usemtl":
                self.material = self.materials.setdefault(text_of(words), len(self.materials) + 1)
            elif keyword == b"mtllib":
                self.libraries.append(text_of(words))
        return lines

    def shape(self) -> _Shape:
        """Returns all that was read, as triangles.

        Raises:
            InputError: a corner is not there, or there are no faces.
        """
        if not sum(map(len, self.corners)):
            raise InputError("it has no triangles to draw; export it as a mesh of triangles")

        corners = _checked(np.concatenate(self.corners), self.counts)
        positions = np.concatenate(self.vertices)
        cut = cut_polygons(positions, corners[:, 0], np.concatenate(self.sizes))
        colors = None
        if any(np.isfinite(block).any() for block in self.colors):
            colors = linear_rgba(np.concatenate(self.colors))

        # The format counts from the bottom, textures in memory from the top.
        uvs = np.nan_to_num(np.concatenate([*self.uvs, np.zeros((1, 2))]))
        uvs[:, 1] = 1 - uvs[:, 1]
        return _Shape(
            positions,
            colors,
            uvs,
            np.concatenate([*self.normals, np.full((1, 3), np.nan)]),
            corners[cut.corners],
            np.concatenate(self.owners)[cut.polygons],
        )


def _sum(a: tuple[int, int, int], b: tuple[int, int, int]) -> tuple[int, int, int]:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def _words(words: bytes) -> list[bytes]:
    """Returns the words before a comment."""
    return _COMMENT.split(words, maxsplit=1)[0].split() if b"#" in words else words.split()


def _damaged(keyword: str, words: Sequence[bytes]) -> InputError:
    line = text_of(b" ".join(words))[:60]
    return InputError(f"it is damaged: it has the line '{keyword} {line}'; export it anew")


def _numbers(
    keyword: str, lines: list[list[bytes]], least: int, width: int
) -> Float64[np.ndarray, "n {width}"]:
    """Returns the numbers of some lines; NaN where one is short, which it may be down to `least`.

    Raises:
        InputError: a line is shorter, or has a word that is no number.
    """
    for line in lines:
        if len(line) < least:
            raise _damaged(keyword, line)
    if any(len(line) != width for line in lines):
        lines = [[*line[:width], *[b"nan"] * (width - len(line))] for line in lines]
    try:
        return np.array(list(chain.from_iterable(lines)), np.float64).reshape(-1, width)
    except ValueError as error:
        known = [[_NO_NUMBER.sub(b"nan", word) for word in line] for line in lines]
        if known != lines:
            return _numbers(keyword, known, least, width)
        wrong = next((line for line in lines if not all(map(_is_number, line))), lines[0])
        raise _damaged(keyword, wrong) from error


def _is_number(word: bytes) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _forwards(polygon: list[bytes], counts: tuple[int, int, int]) -> list[bytes]:
    """Returns corners with negative numbers, counted backwards from the last one, made positive.

    `counts` says how many positions, texture coordinates and normals there are; a number of what
    there is nothing of becomes none.
    """
    corners = []
    try:
        for corner in polygon:
            numbers = corner.split(b"/")
            for i, (number, count) in enumerate(zip(numbers, counts, strict=False)):
                if number.startswith(b"-"):
                    numbers[i] = b"%d" % (count + 1 + int(number)) if count or not i else b""
            corners.append(b"/".join(numbers))
    except ValueError as error:
        raise _damaged("f", polygon) from error
    return corners


def _corners(polygons: list[list[bytes]]) -> Int32[np.ndarray, "c 3"]:
    """Returns the numbers of position, texture coordinates and normal of corners; 0 for none.

    Raises:
        InputError: a corner is none of v, v/vt, v//vn and v/vt/vn.
    """
    words = list(chain.from_iterable(polygons))
    plain = b" ".join(words).replace(b"//", b"/0/").replace(b"/", b" ").split()
    kinds = {word.count(b"/") for word in words}

    # Mostly all corners are of one kind, and then one call reads them all.
    try:
        if len(kinds) == 1 and len(plain) == len(words) * (1 + max(kinds)):
            numbers = np.array(plain, np.int64).reshape(len(words), -1)  # All of one kind.
        else:
            numbers = np.array([_corner(word) for word in words], np.int64).reshape(-1, 3)
        if numbers.shape[1] > 3 or np.abs(numbers).max(initial=0) > np.iinfo(np.int32).max:
            raise ValueError("a corner has too many numbers, or too large ones")
    except (ValueError, OverflowError) as error:
        wrong = next((p for p in polygons if not all(map(_is_corner, p))), polygons[0])
        raise _damaged("f", wrong) from error

    corners = np.zeros((len(words), 3), np.int32)
    corners[:, : numbers.shape[1]] = numbers
    return corners


def _corner(word: bytes) -> list[int]:
    numbers = [int(number or b"0") for number in word.split(b"/")]
    if len(numbers) > 3:
        raise ValueError("a corner has three numbers at most")
    return [*numbers, 0, 0][:3]


def _is_corner(word: bytes) -> bool:
    try:
        return max(map(abs, _corner(word))) <= np.iinfo(np.int32).max
    except ValueError:
        return False


def _checked(
    corners: Int32[np.ndarray, "c 3"], counts: tuple[int, int, int]
) -> Int32[np.ndarray, "c 3"]:
    """Returns corners counted from 0, with -1 for none and for what the file has nothing of.

    Raises:
        InputError: a corner refers to what is not there.
    """
    kinds = ("position", "texture coordinate", "normal")
    for column, (kind, count) in enumerate(zip(kinds, counts, strict=True)):
        if column and not count:
            corners[:, column] = 0
        wrong = (corners[:, column] < (0 if column else 1)) | (corners[:, column] > count)
        if wrong.any():
            raise InputError(
                f"it is damaged: a face has the {kind} {corners[wrong][0, column]} of {count}; "
                "export it anew"
            )
    return corners - 1


def _parts(shape: _Shape, materials: list[str], painter: Painter) -> Iterator[MeshPart]:
    """Yields the triangles of each material."""
    order = np.argsort(shape.owners, kind="stable")
    numbers, starts = np.unique(shape.owners[order], return_index=True)
    for number, start, end in zip(numbers, starts, [*starts[1:], len(order)], strict=False):
        rows = order[start:end]
        faces, uv_faces, normal_faces = np.moveaxis(shape.corners[rows], -1, 0)
        name = materials[number - 1] if number else None
        painted = painter.paint(name, has_uvs=bool((uv_faces >= 0).any()))
        yield MeshPart(
            positions=shape.positions,
            faces=faces,
            material=painted.material,
            normals=PerCorner(shape.normals, normal_faces) if normal_faces.max() >= 0 else None,
            uvs=_uvs(shape, uv_faces, painted.color),
            colors=None if shape.colors is None else PerCorner(shape.colors, faces),
            opacity_uvs=_uvs(shape, uv_faces, painted.opacity),
        )


def _uvs(
    shape: _Shape, faces: Int[np.ndarray, "t 3"], moved: TextureMap | None
) -> PerCorner | None:
    """Returns where a texture is looked up."""
    if moved is None:
        return None
    if moved.scale == (1, 1) and moved.offset == (0, 0):
        return PerCorner(shape.uvs, faces)
    rows = shape.uvs[faces.reshape(-1)] * moved.scale
    rows += (moved.offset[0], 1 - moved.scale[1] - moved.offset[1])  # 1 - (s (1 - v) + o).
    return PerCorner(rows, np.arange(len(rows)).reshape(-1, 3))
