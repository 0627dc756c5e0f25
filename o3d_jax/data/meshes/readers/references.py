"""Whether a model refers to files outside its folder, also by what our readers never open.

Other programs, as Blender, follow more references than we do: to normal maps, and to whatever no
material uses.
"""

import struct
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from o3d_jax.data.meshes.readers.files import ModelFiles
from o3d_jax.data.meshes.readers.gltf import read_container
from o3d_jax.errors import InputError

_NOT_FOLLOWED = ("newmtl", "#")
"""How lines of a material file begin that hold no file name, but may hold anything else."""


def check_references(source: ModelFiles) -> None:
    """Refuses a model that refers to anything but files in its folder or below.

    They need not be there: programs pass over what is missing.

    Raises:
        InputError: it does so, or as `ModelFiles.read`.
    """
    suffix = source.path.suffix.lower()
    if suffix in (".glb", ".gltf"):
        _check_gltf(source)
    elif suffix == ".obj":
        _check_obj(source)


def _check_gltf(source: ModelFiles) -> None:
    try:
        uris = list(_uris(read_container(source).tree))
    except (LookupError, TypeError, ValueError, RecursionError, struct.error) as error:
        raise InputError(f"it is damaged: {type(error).__name__} {error}") from error
    for uri in uris:
        if not uri.startswith("data:"):
            source.beside(urllib.parse.unquote(uri))


def _uris(tree: Any) -> Iterator[str]:
    """Yields all URIs of a glTF file, also those in extensions that we do not know."""
    if isinstance(tree, list):
        for item in tree:
            yield from _uris(item)
    if isinstance(tree, dict):
        if "uri" in tree:
            yield str(tree["uri"])
        for key, item in tree.items():
            if key != "extras":  # For whoever made it.
                yield from _uris(item)


def _check_obj(source: ModelFiles) -> None:
    libraries = [source.beside(source.path.with_suffix(".mtl").name)]  # Blender reads it unasked.
    for line in _lines(source.read()):
        if line.lower().startswith("mtllib"):
            libraries += _files(source, line)
    for library in dict.fromkeys(libraries):
        if library.is_file():
            for line in _lines(source.read_at(library)):
                if not line.lower().startswith(_NOT_FOLLOWED):
                    _files(source, line)


def _lines(data: bytes) -> list[str]:
    text = data.decode("utf-8", errors="surrogateescape").replace("\r\n", "\n")
    return [line.strip() for line in text.replace("\\\n", " ").split("\n")]


def _files(source: ModelFiles, line: str) -> list[Path]:
    """Returns where the files may be that a line names, after a keyword and options.

    A name may have spaces, and options may have values. If a path leads outside, one of its parts
    between spaces does too, so there is no need to know where it begins.
    """
    words = line.split()[1:]
    return [source.beside(name.strip('"')) for name in dict.fromkeys([*words, " ".join(words)])]
