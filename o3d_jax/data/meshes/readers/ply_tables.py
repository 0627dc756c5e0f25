"""The tables of PLY files, in text or binary, with lists of any length."""

import struct
from array import array
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from o3d_jax.errors import InputError
from o3d_jax.files.ply_header import PlyElement, PlyHeader, PlyProperty

_BLOCK = 2**21
"""Bytes of text that are taken apart at a time, for single words take ten times the room."""

_STRUCT = {
    **{"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "i8": "q", "u8": "Q"},
    **{"f4": "f", "f8": "d"},
}
"""What Python's `struct` calls numpy's types."""


class PlyList(NamedTuple):
    """A column of lists."""

    values: Shaped[np.ndarray, " _"]
    """The values of all rows, one after the other."""
    sizes: Int64[np.ndarray, " rows"]


class PlyTable(NamedTuple):
    """A table, by the names of its columns."""

    columns: dict[str, Shaped[np.ndarray, " rows"]]
    """Columns of single values, each of the type that the header says."""
    lists: dict[str, PlyList]


def read_ply_tables(content: bytes, header: PlyHeader, name: str) -> dict[str, PlyTable]:
    """Returns all tables of a file, by the names of the elements; `name` is the file's in messages.

    Raises:
        InputError: there is less data than the header says, or more, or what is no number.
    """
    for each in ([e.name for e in header.elements], *map(_names, header.elements)):
        if len(set(each)) < len(each):
            raise InputError(f"{name} is damaged: its header has a name twice; export it anew")

    if header.byte_order:
        data = _Data(content, header.byte_order, name)
        tables, end = _tables(data, header.start, header.elements)
    else:
        # The numbers of a text are read as a binary file would be that has float64 throughout.
        numbers = _numbers(content[header.start :], name)
        data = _Data(numbers.tobytes(), "=", name)
        tables, end = _tables(data, 0, [_in_float64(element) for element in header.elements])
        tables = {e.name: _as_declared(tables[e.name], e) for e in header.elements}

    if data.content[end:].strip():
        raise InputError(f"{name} is damaged: it has more data than its header says")
    return tables


class _Data(NamedTuple):
    """The bytes that tables are read from."""

    content: bytes
    order: str
    """numpy's sign for the byte order."""
    name: str
    """The file's name, for messages."""

    def cut_short(self) -> InputError:
        """Returns the error for a file that ends before its header says so."""
        return InputError(f"{self.name} is cut short: its header says more; copy it anew")


def _names(element: PlyElement) -> list[str]:
    return [each.name for each in element.properties]


def _numbers(text: bytes, name: str) -> Float64[np.ndarray, " n"]:
    """Returns all numbers of a text."""
    pieces, start = [np.zeros(0)], 0
    while start < len(text):
        end = text.find(b"\n", start + _BLOCK)
        end = len(text) if end < 0 else end
        try:
            pieces.append(np.array(text[start:end].split(), np.float64))
        except ValueError as error:
            raise InputError(f"{name} is damaged: {error}; export it anew") from error
        start = end
    return np.concatenate(pieces)


def _in_float64(element: PlyElement) -> PlyElement:
    columns = [PlyProperty(p.name, "f8", p.count_kind and "f8") for p in element.properties]
    return element._replace(properties=columns)


def _as_declared(table: PlyTable, element: PlyElement) -> PlyTable:
    """Returns a table that was read as float64 in the types that the header says."""
    kinds = {each.name: each.kind for each in element.properties}
    columns = {name: _cast(values, kinds[name]) for name, values in table.columns.items()}
    lists = {
        name: each._replace(values=_cast(each.values, kinds[name]))
        for name, each in table.lists.items()
    }
    return PlyTable(columns, lists)


def _cast(values: Float64[np.ndarray, " n"], kind: str) -> Shaped[np.ndarray, " n"]:
    if kind[0] != "f":
        limits = np.iinfo(kind)
        low, high = max(limits.min, -(2**53)), min(limits.max, 2**53)  # Exact in float64.
        values = np.nan_to_num(values).clip(low, high)
    return values.astype(kind)


def _tables(data: _Data, at: int, elements: list[PlyElement]) -> tuple[dict[str, PlyTable], int]:
    """Returns the tables from a byte on, and where they end."""
    tables = {}
    for element in elements:
        least = element.count * sum(
            np.dtype(each.count_kind or each.kind).itemsize for each in element.properties
        )
        if at + least > len(data.content):
            raise data.cut_short()
        rows = _even_rows(data, at, element)
        if rows is not None:
            tables[element.name] = _even_table(rows, element)
            at += rows.nbytes
        else:
            tables[element.name], at = _uneven_table(data, at, element)
    return tables, at


def _even_rows(data: _Data, at: int, element: PlyElement) -> Shaped[np.ndarray, " rows"] | None:
    """Returns a table's rows, with columns by number; None if its lists differ in length."""
    first, _ = _scan(data, at, element, min(element.count, 1))
    fields: list[tuple[str, str, tuple[int, ...]]] = []
    for number, each in enumerate(element.properties):
        shape = ()
        if each.count_kind:
            fields.append((f"{number} count", data.order + each.count_kind, ()))
            shape = tuple(first[number].sizes[:1]) or (0,)
        fields.append((f"{number}", data.order + each.kind, shape))
    kind = np.dtype(fields)
    if not kind.itemsize or at + element.count * kind.itemsize > len(data.content):
        return None
    rows = np.frombuffer(data.content, kind, element.count, at)
    lists = [name for name in kind.names or () if name.endswith("count")]
    even = all((rows[name] == rows[name][:1]).all() for name in lists)
    return rows if even else None


def _even_table(rows: Shaped[np.ndarray, " rows"], element: PlyElement) -> PlyTable:
    table = PlyTable({}, {})
    for number, each in enumerate(element.properties):
        values = rows[f"{number}"]
        if each.count_kind:
            sizes = np.full(len(rows), values.shape[1], np.int64)
            table.lists[each.name] = PlyList(values.reshape(-1), sizes)
        else:
            table.columns[each.name] = values
    return table


class _Places(NamedTuple):
    """Where a column's values are."""

    starts: array
    """Where each row's values begin, in bytes."""
    sizes: array
    """How many values each row has."""


def _scan(data: _Data, at: int, element: PlyElement, rows: int) -> tuple[list[_Places], int]:
    """Returns where each column's values are in the first rows, and where these end.

    Raises:
        InputError: the data ends before, or a list has a length that is no number from 0 on.
    """
    steps = []
    for each in element.properties:
        count = struct.Struct(data.order + _STRUCT[each.count_kind]) if each.count_kind else None
        steps.append((count, np.dtype(each.kind).itemsize, _Places(array("q"), array("q"))))

    # A list says its length before its values, so each row begins where the one before ends.
    end = len(data.content)
    for _ in range(rows):
        for count, width, places in steps:
            size = 1
            if count:
                if at + count.size > end:
                    raise data.cut_short()
                (length,) = count.unpack_from(data.content, at)
                if not length >= 0 or length % 1:
                    raise InputError(f"{data.name} is damaged: a list of it has length {length}")
                if length > end:
                    raise data.cut_short()
                size, at = int(length), at + count.size

            places.starts.append(at)
            places.sizes.append(size)
            at += size * width
            if at > end:
                raise data.cut_short()
    return [places for *_, places in steps], at


def _uneven_table(data: _Data, at: int, element: PlyElement) -> tuple[PlyTable, int]:
    found, end = _scan(data, at, element, element.count)
    table = PlyTable({}, {})
    for each, places in zip(element.properties, found, strict=True):
        sizes = np.array(places.sizes, np.int64)
        kind = np.dtype(data.order + each.kind)
        values = _gathered(data.content, np.array(places.starts, np.int64), sizes, kind)
        if each.count_kind:
            table.lists[each.name] = PlyList(values, sizes)
        else:
            table.columns[each.name] = values
    return table, end


_AT_ONCE = 2**18
"""How many values are gathered at a time."""


def _gathered(
    content: bytes,
    starts: Int64[np.ndarray, " rows"],
    sizes: Int64[np.ndarray, " rows"],
    kind: np.dtype,
) -> Shaped[np.ndarray, " n"]:
    """Returns the values of all rows, each row's from its start on."""
    raw, width = np.frombuffer(content, np.uint8), kind.itemsize
    before = np.cumsum(sizes) - sizes
    where = np.repeat(starts - width * before, sizes) + width * np.arange(sizes.sum())
    values = np.empty(len(where), kind)
    for first in range(0, len(where), _AT_ONCE):
        some = where[first : first + _AT_ONCE, None] + np.arange(width)
        values[first : first + _AT_ONCE] = raw[some].reshape(-1).view(kind)
    return values
