"""Safetensors files, read and written one tensor at a time: sharded or not, in diffusers' layout.

The format is eight bytes of length, a JSON header, then the bytes of all tensors. Its own library
maps files into memory, where what was read stays counted; here one tensor is in memory at a time.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from o3d_jax.errors import InputError

FLOATS = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(jnp.bfloat16),
}
"""What parameters may be stored as."""

BITS = {
    4: ("F4",),
    6: ("F6_E2M3", "F6_E3M2"),
    8: ("BOOL", "I8", "U8", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0"),
    16: ("I16", "U16", "F16", "BF16"),
    32: ("I32", "U32", "F32"),
    64: ("I64", "U64", "F64", "C64"),
}
"""The format's types by the size of a value; one that is not here has a size we don't check."""

HEADER_BYTES = 100_000_000
"""The format's limit: no header is longer."""

CODES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The format's names of these; those of other types stay as they are."""

SHARD_BYTES = 5_000_000_000
"""Files above this size are split, as diffusers and transformers did first."""

OWN = "o3d_jax"
"""Our entry in a file's metadata."""


@dataclass(frozen=True)
class Spec:
    """A tensor without its values."""

    name: str
    dtype: str
    """"float32" and so on; one that is not in `FLOATS` is in the words of its file."""
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the values; only for the types in `FLOATS`."""
        return math.prod(self.shape) * FLOATS[self.dtype].itemsize


@dataclass(frozen=True)
class Tensor:
    """A tensor whose values are read when they are needed; only for the types in `FLOATS`."""

    spec: Spec
    read: Callable[[], Shaped[np.ndarray, "..."]]


@dataclass(frozen=True)
class Source:
    """All tensors of one file, or of the shards of one network."""

    where: Path
    tensors: tuple[Tensor, ...]
    notes: dict[str, Any] = field(default_factory=dict)
    """Fields of the config that the tensors were written for, if the file tells."""


def read_safetensors(path: Path) -> Source:
    """The tensors of a file; only its header is read.

    Raises:
        InputError: no such file, or a damaged one.
    """
    if not path.is_file():
        raise InputError(f"no file {path}; give one that was downloaded whole")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise InputError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull`")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or 8 + length > size or length > HEADER_BYTES:
            raise InputError(f"{path} is cut off or no safetensors file; download it again")
        header = read_json(file.read(length), path)
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InputError(f"{path} is damaged: its metadata is no table of texts; download it again")
    rows = [_row(path, name, row) for name, row in header.items()]
    _check_no_gaps(path, rows, size - 8 - length)
    return Source(
        where=path,
        tensors=tuple(
            Tensor(row.spec, partial(_read, path, 8 + length + row.first, row.spec)) for row in rows
        ),
        notes=read_json(metadata[OWN].encode(), path) if OWN in metadata else {},
    )


def read_json(text: bytes, path: Path) -> dict[str, Any]:
    """The table in a JSON file or header.

    Raises:
        InputError: it is damaged, no table, or has a name twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for name, count in Counter(name for name, _ in pairs).items():
            if count > 1:
                raise ValueError(f"{name} is there {count} times")
        return dict(pairs)

    try:
        values = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}; download it again") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is damaged: no table of names; download it again")
    return values


@dataclass(frozen=True)
class _Row:
    """A tensor of a header, and where it is among the bytes of all."""

    spec: Spec
    first: int
    last: int


def _row(path: Path, name: str, row: Any) -> _Row:
    try:
        code, shape = row["dtype"], tuple(row["shape"])
        first, last = row["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"{path} is damaged: {name} has no place; download it again") from error
    counts = (*shape, first, last)
    if not isinstance(code, str) or any(type(n) is not int or not 0 <= n < 2**63 for n in counts):
        raise InputError(
            f"{path} is damaged: the type of {name} is no text, or its shape or place no numbers "
            "of 0 and above; download it again"
        )
    bits = next((bits for bits, codes in BITS.items() if code in codes), None)
    if last < first or (bits and math.prod(shape) * bits != (last - first) * 8):
        raise InputError(
            f"{path} is damaged: {name} {shape} {code} at {first} to {last}; download it again"
        )
    return _Row(Spec(name, CODES.get(code, code), shape), first, last)


def _check_no_gaps(path: Path, rows: list[_Row], size: int) -> None:
    """The format demands that each tensor begins where another ends, up to the file's end."""
    end = 0
    for row in sorted(rows, key=lambda row: (row.first, row.last)):
        if row.first != end:
            raise InputError(
                f"{path} is damaged: {row.spec.name} begins at byte {row.first}, where {end} is "
                "the next that is free; download it again"
            )
        end = row.last
    if end != size:
        raise InputError(
            f"{path} is damaged: {size} bytes where its header asks for {end}; download it again"
        )


def _read(path: Path, offset: int, spec: Spec) -> Shaped[np.ndarray, "..."]:
    found = np.fromfile(path, np.uint8, count=spec.nbytes, offset=offset)
    return found.view(FLOATS[spec.dtype]).reshape(spec.shape)


def read_network(folder: Path, stem: str, variant: str | None = None) -> Source:
    """A network's tensors in any layout of diffusers: STEM[.fp16].safetensors, or shards and index.

    Where there is a choice, `variant` ("fp16", "fp32") makes it, else float32 is taken.

    Raises:
        InputError: no such file, a damaged one, or an index and shards that disagree.
    """
    half = [f"{stem}.safetensors.index.fp16.json", f"{stem}.fp16.safetensors.index.json"]
    names = {
        "fp32": [f"{stem}.safetensors", f"{stem}.safetensors.index.json"],
        "fp16": [f"{stem}.fp16.safetensors", *half],
    }
    wanted = [n for v in ([variant] if variant else ["fp32", "fp16"]) for n in names[v]]
    path = next((folder / name for name in wanted if (folder / name).is_file()), None)
    if path is None:
        raise InputError(f"{folder} holds none of {', '.join(wanted)}; give the downloaded folder")
    return read_shards(path) if path.suffix == ".json" else read_safetensors(path)


def read_shards(path: Path) -> Source:
    """The tensors of all shards that an index lists.

    Raises:
        InputError: a shard that is missing or damaged, or tensors that are elsewhere or nowhere.
    """
    where = read_json(path.read_bytes(), path).get("weight_map")
    texts = isinstance(where, dict) and all(isinstance(name, str) for name in where.values())
    if not texts or not where:
        raise InputError(f"{path} is no index: it has no weight_map; download it again")
    files = sorted(set(where.values()))
    lost = [n for n in files if Path(n).name != n or not (path.parent / n).is_file()]
    if lost:
        raise InputError(f"{path} lists {', '.join(lost)}, not beside it; download the rest")
    shards = {name: read_safetensors(path.parent / name) for name in files}
    found = {(t.spec.name, name) for name, shard in shards.items() for t in shard.tensors}
    wrong = sorted({name for name, _ in found ^ set(where.items())})
    if wrong:
        raise InputError(
            f"{path} and its shards disagree on {', '.join(wrong)}; download them together"
        )
    return Source(
        where=path,
        tensors=tuple(tensor for name in files for tensor in shards[name].tensors),
        notes=shards[files[0]].notes,
    )


def in_file_order(specs: Iterable[Spec]) -> list[Spec]:
    """Wide types first, so that every tensor is aligned; then by name."""
    return sorted(specs, key=lambda s: (-FLOATS[s.dtype].itemsize, s.name))


def file_names(stem: str, specs: Sequence[Spec]) -> list[str]:
    """What `write_network` will write."""
    count = len(_shards(specs))
    if count == 1:
        return [f"{stem}.safetensors"]
    shards = [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    return [*shards, f"{stem}.safetensors.index.json"]


def all_file_names(stem: str) -> list[str]:
    """Patterns of all that `write_network` may write, in however many shards."""
    number = "[0-9]" * 5
    return [
        f"{stem}.safetensors",
        f"{stem}-{number}-of-{number}.safetensors",
        f"{stem}.safetensors.index.json",
    ]


def write_network(
    folder: Path,
    stem: str,
    specs: Sequence[Spec],
    arrays: Iterator[Shaped[np.ndarray, "..."]],
    notes: dict[str, Any],
) -> None:
    """Writes a network in diffusers' layout; `arrays` come in the order of `specs`."""
    names = file_names(stem, specs)
    shards = _shards(specs)
    metadata = {"format": "pt", OWN: json.dumps(notes)}  # transformers asks for this format.
    for name, shard in zip(names, shards, strict=False):
        with (folder / name).open("wb") as file:
            file.write(_header(shard, metadata))
            for spec, array in zip(shard, arrays, strict=False):
                assert (array.shape, array.dtype) == (spec.shape, FLOATS[spec.dtype]), spec
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    if len(names) > 1:
        total = sum(spec.nbytes for spec in specs)
        where = {s.name: name for name, shard in zip(names, shards, strict=False) for s in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / names[-1]).write_text(json.dumps(index, indent=2) + "\n")


def _shards(specs: Sequence[Spec]) -> list[list[Spec]]:
    shards: list[list[Spec]] = [[]]
    used = 0
    for spec in specs:
        if shards[-1] and used + spec.nbytes > SHARD_BYTES:
            shards.append([])
            used = 0
        shards[-1].append(spec)
        used += spec.nbytes
    return shards


def _header(specs: Sequence[Spec], metadata: dict[str, str]) -> bytes:
    codes = {dtype: code for code, dtype in CODES.items()}
    table: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for spec in specs:
        place = [at, at + spec.nbytes]
        row = {"dtype": codes[spec.dtype], "shape": list(spec.shape), "data_offsets": place}
        table[spec.name] = row
        at += spec.nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # The tensors start aligned.
    return len(text).to_bytes(8, "little") + text
