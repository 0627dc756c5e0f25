"""Reads glTF 2.0 models, .glb and .gltf: geometry in rest pose, and the colors of surfaces.

Written here, since trimesh's reader rounds colors to 8 bits in linear light, where dark ones are
lost, and passes over texture transforms, wrapping, second texture coordinates, normalized integers,
sparse accessors, skins, and in silence over textures that are missing.
"""

import json
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from o3d_jax.data.meshes.mesh import MeshPart, ModelContent, PerCorner
from o3d_jax.data.meshes.readers.files import ModelFiles
from o3d_jax.data.meshes.readers.gltf_material import (
    Coordinates,
    Looks,
    MaterialCoordinates,
    read_materials,
)
from o3d_jax.errors import InputError

TYPES = {5120: "i1", 5121: "u1", 5122: "i2", 5123: "u2", 5125: "u4", 5126: "f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}

TRIANGLES, STRIP, FAN = 4, 5, 6

ATTRIBUTES = ("POSITION", "NORMAL", "TEXCOORD_", "COLOR_0", "JOINTS_", "WEIGHTS_")
"""How the names of the attributes begin that are looked at."""

MAX_TRIANGLES = 20_000_000
"""The most triangles of a model: nodes that share meshes make more of a small file than fits."""

DRACO = "KHR_draco_mesh_compression"

UNDERSTOOD = {DRACO, "KHR_texture_transform", "KHR_mesh_quantization", "EXT_texture_webp"}
"""Extensions that change what one sees and are read here, besides those that `_check` names."""


_FAULTS = (
    *(LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError),
    struct.error,
)
"""What reading raises where a tree is not as the format says."""


class Container(NamedTuple):
    """The parts of a file."""

    tree: Any
    """The JSON."""
    binary: bytes | None
    """The buffer that is in the same file."""


class Document(NamedTuple):
    """A file that has been read, with what it refers to."""

    tree: Any
    """The JSON."""
    buffers: list[bytes]


class Shape(NamedTuple):
    """A primitive, before it is placed in the world."""

    positions: Float[np.ndarray, "v 3"]
    normals: Float[np.ndarray, "v 3"] | None
    faces: Int[np.ndarray, "f 3"]
    arrays: dict[str, Shaped[np.ndarray, "v _"]]
    """The attributes, by their names in the format."""


def read_gltf(source: ModelFiles) -> ModelContent:
    """Returns the default scene of a glTF file.

    Skins and morph targets are read in their rest pose. Lines and points are left out.

    Raises:
        InputError: damaged, of another version, or it needs an extension that is not read, a file
            that is missing, or one outside its folder.
    """
    try:
        document = _open(source)
        wanted = {
            primitive.get("material", -1)
            for mesh in document.tree.get("meshes", [])
            for primitive in mesh["primitives"]
        }
        looks = read_materials(document.tree, lambda index: _view(document, index), source, wanted)

        # Counted as they come: meshes that nodes share are written out, and fill the memory.
        parts, triangles = [], 0
        for part in _parts(document, looks):
            triangles += len(part.faces)
            if triangles > MAX_TRIANGLES:
                raise InputError(f"it has more than {MAX_TRIANGLES:,} triangles; simplify it")
            parts.append(part)
    except InputError:
        raise
    except _FAULTS as error:
        raise InputError(f"it is damaged: {type(error).__name__} {error}") from error
    return ModelContent(parts, looks.materials, looks.textures)


def read_container(source: ModelFiles) -> Container:
    """Returns the JSON and the buffer of a glTF file, .glb or .gltf.

    Raises:
        InputError: cut short, or of another version; or as `ModelFiles.read`.
        ValueError: damaged; also a KeyError, a TypeError or a struct.error.
    """
    data = source.read()
    binary = None

    # A header of three words, then chunks: each its size, its kind and its bytes.
    if data[:4] == b"glTF":
        version, length = struct.unpack_from("<II", data, 4)
        if version != 2 or length > len(data):
            fault = f"of version {version}" if version != 2 else "cut short"
            raise InputError(f"it is {fault}; export it anew as glTF 2.0")
        size, _ = struct.unpack_from("<II", data, 12)
        text, at = data[20 : 20 + size], 20 + size
        if at + 8 <= length:
            size, _ = struct.unpack_from("<II", data, at)
            binary = data[at + 8 : at + 8 + size]
    else:
        text = data

    # Some programs pad the chunk with zeros, not only with spaces, and break lines within URIs.
    tree = json.loads(text.rstrip(b"\0 \t\r\n"), strict=False)
    if not str(tree["asset"]["version"]).startswith("2"):
        raise InputError(f"it is glTF {tree['asset']['version']}; export it anew as glTF 2.0")
    return Container(tree, binary)


def _open(source: ModelFiles) -> Document:
    tree, binary = read_container(source)
    _check(tree)

    # Only the first may be that in the file; others without a URI are there for extensions.
    buffers = []
    for number, buffer in enumerate(tree.get("buffers", [])):
        inside = binary if number == 0 else None
        buffers.append(source.read_beside(buffer["uri"]) if "uri" in buffer else inside or b"")
    return Document(tree, buffers)


def _check(tree: Any) -> None:
    needed = set(tree.get("extensionsRequired", [])) - UNDERSTOOD
    needed = {name for name in needed if not name.startswith(("KHR_materials_", "KHR_lights_"))}
    if needed:
        raise InputError(
            f"it needs {', '.join(sorted(needed))}, which is not read; export it without"
        )


def _view(document: Document, index: int) -> memoryview:
    view = document.tree["bufferViews"][index]
    start = view.get("byteOffset", 0)
    data = memoryview(document.buffers[view["buffer"]])[start : start + view["byteLength"]]
    if len(data) != view["byteLength"]:
        raise InputError("a buffer of it is cut short; copy it anew")
    return data


def _accessor(document: Document, index: int) -> Shaped[np.ndarray, "n c"]:
    """Returns the values of an accessor; normalized integers as floats in [0, 1] or [-1, 1]."""
    accessor = document.tree["accessors"][index]
    kind, width = np.dtype("<" + TYPES[accessor["componentType"]]), WIDTHS[accessor["type"]]
    count = accessor["count"]

    if "bufferView" in accessor:
        view = document.tree["bufferViews"][accessor["bufferView"]]
        data = _view(document, accessor["bufferView"])
        stride = view.get("byteStride") or kind.itemsize * width
        if stride < kind.itemsize * width:
            raise InputError(f"values of it overlap, {stride} bytes apart; export it anew")
        values = np.ndarray(
            (count, width), kind, data, accessor.get("byteOffset", 0), (stride, kind.itemsize)
        )
    else:
        # Zeros are what a file need not have; but for each of them it has a vertex besides.
        if count > sum(map(len, document.buffers)):
            raise InputError(f"it has an accessor of {count} zeros; export it anew")
        values = np.zeros((count, width), kind)

    # Sparse values replace some rows: first come their numbers, then what they are.
    if sparse := accessor.get("sparse"):
        values = values.copy()
        at, new = sparse["indices"], sparse["values"]
        rows = np.frombuffer(
            _view(document, at["bufferView"]),
            "<" + TYPES[at["componentType"]],
            sparse["count"],
            at.get("byteOffset", 0),
        )
        size = sparse["count"] * width
        data = _view(document, new["bufferView"])
        values[rows] = np.frombuffer(data, kind, size, new.get("byteOffset", 0)).reshape(-1, width)
    return _as_floats(values) if accessor.get("normalized") else values


def _as_floats(values: Shaped[np.ndarray, "n c"]) -> Shaped[np.ndarray, "n c"]:
    if values.dtype.kind == "f":
        return values
    return np.maximum(values.astype(np.float64) / np.iinfo(values.dtype).max, -1)


def _world_matrices(tree: Any) -> dict[int, Float[np.ndarray, "4 4"]]:
    """Returns the matrix from each node in the scene to the world, by the node's number."""
    nodes = tree.get("nodes", [])
    if "scenes" in tree:
        roots = tree["scenes"][tree.get("scene", 0)].get("nodes", [])
    else:
        roots = sorted(set(range(len(nodes))) - {c for n in nodes for c in n.get("children", [])})

    # With a stack, for a file may nest deeper than Python calls may.
    found: dict[int, Float[np.ndarray, "4 4"]] = {}
    stack = [(root, np.eye(4)) for root in reversed(roots)]
    while stack:
        index, parent = stack.pop()
        if index in found:
            raise InputError(f"node {index} of it has two parents; export it anew")
        found[index] = parent @ _matrix(nodes[index])
        stack += [(child, found[index]) for child in reversed(nodes[index].get("children", []))]
    return found


def _matrix(node: Any) -> Float[np.ndarray, "4 4"]:
    """Returns the matrix from a node to its parent."""
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    x, y, z, w = node.get("rotation", (0, 0, 0, 1))
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * np.array(node.get("scale", (1, 1, 1)), np.float64)
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


def _parts(document: Document, looks: Looks) -> Iterator[MeshPart]:
    matrices = _world_matrices(document.tree)
    for index, to_world in matrices.items():
        node = document.tree["nodes"][index]
        if "mesh" not in node:
            continue
        mesh = document.tree["meshes"][node["mesh"]]
        weights = node.get("weights", mesh.get("weights", []))
        for primitive in mesh["primitives"]:
            if primitive.get("mode", TRIANGLES) not in (TRIANGLES, STRIP, FAN):
                continue
            shape = _shape(document, primitive, weights)
            if "skin" in node:
                blends = _skin(document, document.tree["skins"][node["skin"]], shape, matrices)
            else:
                blends = to_world[None]
            material = primitive.get("material", len(looks.materials) - 1)
            yield _placed(shape, blends, material, looks.coordinates[material])


def _shape(document: Document, primitive: Any, weights: Any) -> Shape:
    arrays, faces = _arrays(document, primitive)
    positions = arrays["POSITION"].astype(np.float64)
    normals = arrays["NORMAL"].astype(np.float64) if "NORMAL" in arrays else None
    for weight, target in zip(weights, primitive.get("targets", []), strict=False):
        if weight and "POSITION" in target:
            positions += weight * _accessor(document, target["POSITION"])
        if weight and "NORMAL" in target and normals is not None:
            normals += weight * _accessor(document, target["NORMAL"])
    return Shape(positions, normals, faces, arrays)


def _arrays(
    document: Document, primitive: Any
) -> tuple[dict[str, Shaped[np.ndarray, "n _"]], Int[np.ndarray, "f 3"]]:
    """Returns a primitive's attributes that are looked at, by name, and its triangles."""
    packed = primitive.get("extensions", {}).get(DRACO)
    if packed:
        arrays, corners = _unpacked(document, primitive, packed)
    else:
        arrays = {
            name: _accessor(document, number)
            for name, number in primitive["attributes"].items()
            if name.startswith(ATTRIBUTES)
        }
        if "indices" in primitive:
            corners = _accessor(document, primitive["indices"])[:, 0].astype(np.int64)
        else:
            corners = np.arange(len(arrays["POSITION"]))

    if len(corners) and not 0 <= corners.min() <= corners.max() < len(arrays["POSITION"]):
        raise InputError("a triangle of it has a corner that is not there; export it anew")
    if len({len(values) for values in arrays.values()}) > 1:
        raise InputError("its vertices do not have as many of each attribute; export it anew")

    # Strips and fans share corners between neighbors; a triangle list has three for each.
    mode = primitive.get("mode", TRIANGLES)
    if mode == TRIANGLES:
        return arrays, corners[: len(corners) // 3 * 3].reshape(-1, 3)
    first = np.arange(max(len(corners) - 2, 0))
    if mode == FAN:
        return arrays, corners[np.stack([0 * first, first + 1, first + 2], axis=-1)]
    odd = first % 2  # Every other triangle of a strip runs the other way round.
    return arrays, corners[np.stack([first, first + 1 + odd, first + 2 - odd], axis=-1)]


def _unpacked(
    document: Document, primitive: Any, packed: Any
) -> tuple[dict[str, Shaped[np.ndarray, "n _"]], Int[np.ndarray, " corners"]]:
    """Returns the attributes and the corners of a primitive that Draco has compressed."""
    try:
        import DracoPy  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            "it is compressed by Draco; install the reader by `pip install DracoPy`, or export it "
            "without compression"
        ) from error

    try:
        decoded = DracoPy.decode(bytes(_view(document, packed["bufferView"])))
    except DracoPy.FileTypeException as error:
        raise InputError(f"its Draco data is damaged: {error}") from error

    # Draco numbers attributes; the primitive says which number is which, and whether it is
    # normalized.
    places = {number: name for name, number in packed["attributes"].items()}
    arrays = {}
    for attribute in decoded.attributes:
        if name := places.get(attribute["unique_id"]):
            values = np.asarray(attribute["data"])
            described = document.tree["accessors"][primitive["attributes"][name]]
            values = values.reshape(len(values), -1)
            arrays[name] = _as_floats(values) if described.get("normalized") else values
    return arrays, np.asarray(decoded.faces, np.int64).reshape(-1)


def _skin(
    document: Document, skin: Any, shape: Shape, matrices: dict[int, Float[np.ndarray, "4 4"]]
) -> Float[np.ndarray, "v 4 4"]:
    """Returns the matrix of each vertex, which blends those of its joints."""
    joints = np.stack([matrices[joint] for joint in skin["joints"]])
    if "inverseBindMatrices" in skin:
        inverse = _accessor(document, skin["inverseBindMatrices"]).astype(np.float64)
        joints = joints @ inverse.reshape(-1, 4, 4).swapaxes(1, 2)[: len(joints)]
    blends = np.zeros((len(shape.positions), 4, 4))
    total = np.zeros(len(shape.positions))
    for k in range(4):
        if f"JOINTS_{k}" not in shape.arrays:
            break
        which, share = shape.arrays[f"JOINTS_{k}"], _as_floats(shape.arrays[f"WEIGHTS_{k}"])
        for column in range(which.shape[1]):
            blends += share[:, column, None, None] * joints[which[:, column].astype(np.int64)]
            total += share[:, column]
    return blends / np.where(total > 0, total, 1)[:, None, None]


def _placed(
    shape: Shape,
    blends: Float[np.ndarray, "#v 4 4"],
    material: int,
    coordinates: MaterialCoordinates,
) -> MeshPart:
    """Returns a shape in the world; `blends` has a matrix for each vertex, or one for all."""
    linear = blends[:, :3, :3]
    positions = (linear @ shape.positions[..., None])[..., 0] + blends[:, :3, 3]

    # A mirroring matrix would turn fronts into backs: then corners run the other way round.
    faces, normals, colors = shape.faces, shape.normals, None
    mirrored = np.linalg.det(linear[:1])[0] < 0 if len(linear) else False
    if normals is not None:
        # Cofactors: the inverse's transpose but for its scale, and there for flat scales too.
        cofactors = np.cross(linear[:, [1, 2, 0]], linear[:, [2, 0, 1]])
        normals = (cofactors @ normals[..., None])[..., 0] * (-1 if mirrored else 1)
    if mirrored:
        faces = faces[:, ::-1]

    if "COLOR_0" in shape.arrays:
        stored = _as_floats(shape.arrays["COLOR_0"]).astype(np.float64)
        colors = np.ones((len(stored), 4))
        colors[:, : stored.shape[1]] = stored

    return MeshPart(
        positions=positions,
        faces=faces,
        material=material,
        normals=None if normals is None else PerCorner(normals, faces),
        uvs=_uvs(shape, faces, coordinates.color),
        colors=None if colors is None else PerCorner(colors, faces),
        glow_uvs=_uvs(shape, faces, coordinates.glow) if coordinates.glow else None,
    )


def _uvs(shape: Shape, faces: Int[np.ndarray, "f 3"], coordinates: Coordinates) -> PerCorner | None:
    name = f"TEXCOORD_{coordinates.which}"
    if name not in shape.arrays:
        return None
    return PerCorner(coordinates.apply(shape.arrays[name]), faces)
