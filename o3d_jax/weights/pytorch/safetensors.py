"""Safetensors files, read and written one tensor at a time: sharded or not, in diffusers' layout.

Reading is that of the format's own library. Writing is not: its `serialize_file` wants all tensors
of a file in memory, which are 5 GB. The format is eight bytes of length, a JSON header, then the
bytes of all tensors.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open

from o3d_jax.errors import InputError

FLOATS = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(jnp.bfloat16),
}
"""The types that parameters may be stored in."""

POINTER = b"version https://git-lfs"
"""What git has in place of a large file that was not fetched."""

CODES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The types by the format's names; other types keep the names of the format."""

SHARD_BYTES = 5_000_000_000
"""The largest size of a file; more is split, as diffusers and transformers did first."""

OWN = "o3d_jax"
"""Our entry in a file's metadata."""


@dataclass(frozen=True)
class Spec:
    """A tensor without its values."""

    name: str
    dtype: str
    """"float32" and so on; a type that is not in `FLOATS` has its file's name."""
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size of the values; only for the types in `FLOATS`."""
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
    """Returns the tensors of a file; only its header is read.

    Raises:
        InputError: no such file, or a damaged one.
    """
    if not path.is_file():
        raise InputError(f"no file {path}; give one that was downloaded whole")
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise InputError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull`")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            specs = [_spec(name, file.get_slice(name)) for name in file.offset_keys()]
    except SafetensorError as error:
        raise InputError(f"{path} is cut off or damaged: {error}; download it again") from error
    _check_names(path)
    return Source(
        where=path,
        tensors=tuple(Tensor(spec, partial(_read, path, spec)) for spec in specs),
        notes=read_json(metadata[OWN].encode(), path) if OWN in metadata else {},
    )


def _check_names(path: Path) -> None:
    """Raises an InputError if two tensors have one name: the library would take the last."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        read_json(file.read(length), path)


def _spec(name: str, found: Any) -> Spec:
    code = str(found.get_dtype())
    return Spec(name, CODES.get(code, code), tuple(found.get_shape()))


def _read(path: Path, spec: Spec) -> Shaped[np.ndarray, "..."]:
    # Opened anew for each tensor: the pages of a file that stays open would all stay mapped.
    try:
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor(spec.name)
    except (SafetensorError, ValueError) as error:  # An axis too long, though without values.
        raise InputError(f"{path} is damaged: {spec.name}: {error}; download it again") from error


def read_json(text: bytes, path: Path) -> dict[str, Any]:
    """Returns the table in a JSON file or header.

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


def read_network(folder: Path, stem: str, variant: str | None = None) -> Source:
    """Returns a network's tensors, in any layout of diffusers.

    That is STEM[.fp16].safetensors, or shards and their index. Where there is a choice, `variant`
    ("fp16", "fp32") makes it, else float32 is taken.

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
    """Returns the tensors of all shards that an index lists.

    Raises:
        InputError: a shard that is missing or damaged, or tensors that are elsewhere or nowhere.
    """
    where = read_json(path.read_bytes(), path).get("weight_map")
    texts = isinstance(where, dict) and all(isinstance(name, str) for name in where.values())
    if not texts or not where:
        raise InputError(f"{path} is no index: it has no weight_map; download it again")

    # Names come from others: none may lead out of the folder.
    files = sorted(set(where.values()))
    lost = [n for n in files if Path(n).name != n or not os.path.isfile(path.parent / n)]
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
    """Returns tensors by type, wide ones first so that all are aligned, and then by name."""
    return sorted(specs, key=lambda s: (-FLOATS[s.dtype].itemsize, s.name))


def file_names(stem: str, specs: Sequence[Spec]) -> list[str]:
    """Returns the names of the files that `write_network` will write."""
    count = len(_shards(specs))
    if count == 1:
        return [f"{stem}.safetensors"]
    shards = [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    return [*shards, f"{stem}.safetensors.index.json"]


def all_file_names(stem: str) -> list[str]:
    """Returns patterns of all that `write_network` may write, in however many shards."""
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
