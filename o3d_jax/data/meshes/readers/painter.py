"""Makes the materials of OBJ models: finds their libraries and textures, says what is missing."""

import itertools
import os
import re
import urllib.parse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from o3d_jax.data.meshes.mesh import AlphaMode, Material, Texels, TextureUse, Wrap
from o3d_jax.data.meshes.readers.colors import linear_rgba
from o3d_jax.data.meshes.readers.files import ModelFiles, decode_texture
from o3d_jax.data.meshes.readers.mtl import Paint, TextureMap, read_mtl
from o3d_jax.errors import InputError

MOST_WORDS = 32
"""The most words of a line that names libraries: names may have spaces, so all splits are tried."""

MOST_SIGNS = 8
"""The most signs of a comment that may be a part of a name."""


class Painted(NamedTuple):
    """A material, and where its textures are looked up."""

    material: int
    """Number among the materials of a model."""
    color: TextureMap | None = None
    opacity: TextureMap | None = None
    """None if it is looked up where the color is."""


class Painter:
    """Gives the materials of a model their numbers, and reads those textures that they need."""

    def __init__(self, files: ModelFiles, libraries: list[str]) -> None:
        """`libraries` is what follows each mtllib: names of one or more files.

        Raises:
            InputError: a library is missing, damaged or outside the model's folder.
        """
        self.materials: list[Material] = []
        self.textures: list[Texels] = []
        self._files = files
        self._paints: dict[str, Paint] = {}
        for path in dict.fromkeys(p for words in libraries for p in _library_paths(files, words)):
            # The first library that has a material counts, as the format says.
            folder = os.path.relpath(path.parent, files.path.parent.resolve())
            self._paints = read_mtl(files.read_at(path), folder) | self._paints
        self._places: dict[tuple[Path, str], int] = {}
        self._unknown: list[str] = []
        self._flat = False

    def paint(self, name: str | None, has_uvs: bool) -> Painted:
        """Makes the material of a name, a white one if there is none, and returns it.

        Args:
            has_uvs: whether what is painted has texture coordinates; if not, textures are left out.

        Raises:
            InputError: a texture is missing, damaged or outside the model's folder.
        """
        paint = None
        if name is not None:
            found = (self._paints.get(each) for each in (name, *_before_comments(name)))
            paint = next(filter(None, found), None)
            if paint is None:
                self._unknown.append(name)
        paint = paint or Paint()

        if not has_uvs and (paint.color_map or paint.opacity_map):
            self._flat = True
            paint = paint._replace(color_map=None, opacity_map=None)

        # The format does not say which side is the front, so both are drawn.
        opacity = 1.0 if paint.opacity is None else min(max(paint.opacity, 0.0), 1.0)
        red, green, blue, _ = linear_rgba(np.array([paint.color]).clip(0, 1))[0].tolist()
        material = Material(base=(red, green, blue, opacity), two_sided=True)
        if opacity < 1:
            material = material._replace(mode=AlphaMode.BLEND)

        self.materials.append(self._textured(material, paint))
        apart = paint.opacity_map if paint.opacity_map != paint.color_map else None
        return Painted(len(self.materials) - 1, paint.color_map, apart)

    def remarks(self) -> tuple[str, ...]:
        """Returns what the model's owner should know, each part of a sentence."""
        found = []
        if self._unknown:
            names = ", ".join(repr(name[:80]) for name in self._unknown[:3])
            more = f" and {len(self._unknown) - 3} more" if len(self._unknown) > 3 else ""
            many = ("materials", "are") if len(self._unknown) > 1 else ("material", "is")
            found.append(f"{many[0]} {names}{more} {many[1]} in none of its libraries; drawn white")
        if self._flat:
            found.append("it has textures and no coordinates for them; drawn in plain colors")
        return tuple(found)

    def _textured(self, material: Material, paint: Paint) -> Material:
        """Returns a material with the textures that a paint names."""
        color, holes = paint.color_map, paint.opacity_map
        if color:
            # The map replaces the color, as in Blender; alpha counts where it is asked for.
            use = self._use(color, "own alpha" if holes == color else "opaque")
            base = (1.0, 1.0, 1.0, material.base[3])
            material = material._replace(base=base, color=use)
        if holes:
            if holes != color:
                own = color is not None and self._path(holes) == self._path(color)
                use = self._use(holes, "own alpha" if own else "gray as alpha")
                material = material._replace(opacity=use)
            if material.mode == AlphaMode.OPAQUE:
                material = material._replace(mode=AlphaMode.MASK)
        return material

    def _path(self, texture: TextureMap) -> Path:
        """Returns the file of a texture, which is beside its library, or else beside the model."""
        if texture.folder != ".":
            path = self._named(f"{texture.folder}/{texture.file}")
            if os.path.isfile(path):
                return path
        return self._named(texture.file)

    def _named(self, name: str) -> Path:
        for before in _before_comments(name):
            if os.path.isfile(path := self._files.beside(before)):
                return path
        path = self._files.beside(name)
        if "%" in name and not os.path.isfile(path):  # As in a URI.
            path = self._files.beside(urllib.parse.unquote(name))
        return path

    def _use(self, texture: TextureMap, kind: str) -> TextureUse:
        """Returns a texture, which is decoded once for each kind of use."""
        key = (self._path(texture), kind)
        if key not in self._places:
            texels = decode_texture(self._files.read_at(key[0]), texture.file[:80])
            if kind == "gray as alpha":
                texels = _gray_as_alpha(texels)
            elif kind == "opaque":
                texels[..., 3] = 255
            self._places[key] = len(self.textures)
            self.textures.append(texels)
        wrap = Wrap.CLAMP if texture.clamp else Wrap.REPEAT
        return TextureUse(self._places[key], wrap, wrap)


def _gray_as_alpha(texels: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 4"]:
    gray = np.asarray(Image.fromarray(texels).convert("L"))
    return np.dstack([np.full((*gray.shape, 3), 255, np.uint8), gray])


def _library_paths(files: ModelFiles, words: str) -> list[Path]:
    """Returns the files that a line names; a comment may follow."""
    if len(words.split()) > MOST_WORDS:
        raise InputError(f"it names more than {MOST_WORDS} libraries in a line; export it anew")
    for before in _before_comments(words):
        paths = _paths_of(files, before)
        if all(map(os.path.isfile, paths)):
            return paths
    return _paths_of(files, words)


def _paths_of(files: ModelFiles, words: str) -> list[Path]:
    """Returns the files of these names: the longest names that are there, from the left on."""
    parts, found = words.strip('"').split(), []
    while parts:
        paths = [files.beside(" ".join(parts[:count])) for count in range(len(parts), 0, -1)]
        skipped = next((i for i, path in enumerate(paths) if os.path.isfile(path)), None)
        if skipped is None:
            return [*found, paths[0]]  # Missing, as whoever reads it will find.
        found.append(paths[skipped])
        parts = parts[len(parts) - skipped :]
    return found


def _before_comments(words: str) -> list[str]:
    """Returns what may be meant by words with a "#" in them: those before it, the longest first.

    Names may have the sign, too, as those of 3ds Max; what is behind many of them is a comment.
    """
    signs = itertools.islice(re.finditer(r"\s#", words), MOST_SIGNS)
    return [words[: sign.start()].rstrip() for sign in reversed([*signs])]
