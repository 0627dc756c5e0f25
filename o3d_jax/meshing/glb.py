"""Writes meshes as .glb, binary glTF 2.0, which Blender, engines and browsers open.

Colors of vertices are linear light in glTF; they are stored in 16 bits, for in 8 bits the dark ones
would be steps that one sees: sRGB's bytes below 13 all become 0 or 1. (trimesh's exporter has 8
bits only, and pygltflib leaves all that follows to its caller.) Textures stay sRGB, as glTF has it.
"""

import io
import json
import os
import struct
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8, UInt16
from PIL import Image

from o3d_jax.files.atomic import written_whole
from o3d_jax.files.images import to_bytes
from o3d_jax.files.srgb import to_light
from o3d_jax.meshing.colored import ColoredMesh

FLOAT, UNSIGNED_SHORT, UNSIGNED_INT = 5126, 5123, 5125
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
"""glTF's numbers of types, and of what a part of the buffer is for."""


def write_glb(path: str | os.PathLike[str], mesh: ColoredMesh) -> None:
    """Writes a mesh, y up, whole or not at all, with normals, and its texture if it has one."""
    content = glb_bytes(mesh)
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def glb_bytes(mesh: ColoredMesh) -> bytes:
    """Returns the file as it is written: a header, a chunk of JSON, and one of numbers."""
    buffer = _Buffer()
    positions = np.asarray(mesh.vertices, "<f4")
    box = {"min": positions.min(axis=0).tolist(), "max": positions.max(axis=0).tolist()}
    attributes = {
        "POSITION": buffer.add(positions, "VEC3", ARRAY_BUFFER, box),
        "NORMAL": buffer.add(np.asarray(mesh.normals, "<f4"), "VEC3", ARRAY_BUFFER),
    }
    # glTF's default is a metal, which is dark.
    material: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    document: dict[str, Any] = {}
    if mesh.texture is None:
        shorts = _linear_shorts(mesh.colors)
        attributes["COLOR_0"] = buffer.add(shorts, "VEC4", ARRAY_BUFFER, {"normalized": True})
    else:
        uvs = np.asarray(mesh.texture.uvs, "<f4")
        attributes["TEXCOORD_0"] = buffer.add(uvs, "VEC2", ARRAY_BUFFER)
        view = buffer.append(_png(to_bytes(mesh.texture.image)))
        document["images"] = [{"bufferView": view, "mimeType": "image/png"}]
        document["textures"] = [{"source": 0}]
        material["baseColorTexture"] = {"index": 0}

    faces = np.asarray(mesh.faces, "<u4").reshape(-1)
    indices = buffer.add(faces, "SCALAR", ELEMENT_ARRAY_BUFFER)
    primitive = {"attributes": attributes, "indices": indices, "material": 0}
    document |= {
        "asset": {"version": "2.0", "generator": "o3d_jax"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "object"}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [{"pbrMetallicRoughness": material}],
    }
    return _file(document, buffer)


def _file(document: dict[str, Any], buffer: "_Buffer") -> bytes:
    document |= {
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": len(buffer.content)}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    chunks = _chunk(b"JSON", text, b" ") + _chunk(b"BIN\0", bytes(buffer.content), b"\0")
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _linear_shorts(colors: Float[np.ndarray, "k 3"]) -> UInt16[np.ndarray, "k 4"]:
    """Returns light, and an alpha of 1, for rows of glTF are multiples of four bytes."""
    light = to_light(np.asarray(colors, np.float64).clip(0, 1))
    rgba = np.pad(light, [(0, 0), (0, 1)], constant_values=1)
    return np.rint(rgba * 65535).astype("<u2")


class _Buffer:
    """The numbers of a file, one array after the other, and where each is."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def append(self, content: bytes, **more: int) -> int:
        """Adds a part, and returns its number."""
        self.content += b"\0" * (-len(self.content) % 4)
        place = {"buffer": 0, "byteOffset": len(self.content), "byteLength": len(content)}
        self.views.append(place | more)
        self.content += content
        return len(self.views) - 1

    def add(
        self, array: np.ndarray, kind: str, target: int, more: dict[str, Any] | None = None
    ) -> int:
        """Adds an array, and returns its number; `kind` is glTF's name of a row."""
        types = {"<f4": FLOAT, "<u2": UNSIGNED_SHORT, "<u4": UNSIGNED_INT}
        accessor = {
            "bufferView": self.append(array.tobytes(), target=target),
            "componentType": types[array.dtype.str],
            "count": len(array),
            "type": kind,
        }
        self.accessors.append(accessor | (more or {}))
        return len(self.accessors) - 1


def _chunk(kind: bytes, content: bytes, filler: bytes) -> bytes:
    content += filler * (-len(content) % 4)
    return struct.pack("<I4s", len(content), kind) + content


def _png(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
