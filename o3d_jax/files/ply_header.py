"""The header of PLY files, of meshes and of Gaussians alike: what tables follow, and how."""

import re
from typing import NamedTuple

from o3d_jax.errors import InputError
from o3d_jax.files.letters import text_of

PLY_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"int64": "i8", "uint64": "u8"},
    **{"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"},
}
"""numpy's names of types, by both sets of names that PLY files use."""

_BYTE_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


class PlyProperty(NamedTuple):
    """A column of a table."""

    name: str
    kind: str
    """numpy's name of the type, without byte order."""
    count_kind: str = ""
    """The type of the number before a list's values, which says how many come; "" if no list."""


class PlyElement(NamedTuple):
    """A table of the file."""

    name: str
    count: int
    """How many rows it has."""
    properties: list[PlyProperty]

    def has_lists(self) -> bool:
        """Returns whether rows differ in length."""
        return any(each.count_kind for each in self.properties)


class PlyHeader(NamedTuple):
    """All that is said before the data."""

    byte_order: str
    """numpy's sign for the byte order; "" for a file in text."""
    elements: list[PlyElement]
    comments: list[str]
    start: int
    """Where the data begins, in bytes."""


def read_ply_header(content: bytes, name: str) -> PlyHeader:
    """Returns the header of a file, which messages call `name`.

    Raises:
        InputError: it is not a PLY file, or a line of its header is damaged.
    """
    is_ply = content.startswith((b"ply\n", b"ply\r\n"))
    end = re.search(rb"^end_header\r?\n", content, re.MULTILINE) if is_ply else None
    if end is None:
        raise InputError(f"{name} is not a .ply file, or damaged in its header; export it anew")

    order = None
    elements: list[PlyElement] = []
    comments: list[str] = []

    # The format comes first; each property belongs to the element before it.
    for line in map(text_of, content[: end.start()].split(b"\n")[1:]):
        match line.split():
            case ["comment", *_]:
                comments.append(line.strip().removeprefix("comment").strip())
            case [] | ["obj_info", *_]:
                pass
            case ["format", kind, "1.0"] if kind in _BYTE_ORDERS and order is None:
                order = _BYTE_ORDERS[kind]
            case ["element", table, count] if order is not None and re.fullmatch(
                "[0-9]{1,15}", count
            ):
                elements.append(PlyElement(table, int(count), []))
            case ["property", "list", count_kind, kind, column] if (
                elements and count_kind in PLY_TYPES and kind in PLY_TYPES
            ):
                kinds = PLY_TYPES[kind], PLY_TYPES[count_kind]
                elements[-1].properties.append(PlyProperty(column, *kinds))
            case ["property", kind, column] if elements and kind in PLY_TYPES:
                elements[-1].properties.append(PlyProperty(column, PLY_TYPES[kind]))
            case _:
                raise InputError(f"{name} is a damaged .ply: its header says {line.strip()!r}")

    return PlyHeader(order or "", elements, comments, end.end())
