"""Reads what `dump_script.py` writes: the intermediate arrays of a torch network."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from o3d_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Record:
    """One call of one torch module."""

    name: str
    """The module's torch name; "" is the network itself."""
    shape: tuple[int, ...]
    stride: int
    """How many values of the flat output there are for each one that is kept."""
    path: Path

    def values(self) -> Float[np.ndarray, " kept"]:
        """Returns what is kept of its output.

        Raises:
            InputError: the file is missing, damaged, or of another size.
        """
        array = _read_array(self.path)
        wanted = math.ceil(math.prod(self.shape) / self.stride)
        if array.shape != (wanted,):
            raise InputError(f"{self.path} has shape {array.shape} instead of ({wanted},)")
        return array


class Dump:
    """A folder of recorded outputs, and the inputs that they are for."""

    def __init__(self, folder: Path):
        """Reads the index.

        Raises:
            InputError: no dump there, or a damaged one.
        """
        index = folder / "order.json"
        if not index.is_file():
            raise InputError(
                f"{folder} is no dump: it has no order.json; "
                "the script of `o3d weights dump-script` writes it"
            )
        try:
            about = json.loads(index.read_text())
            self.network: str = str(about["network"])
            self._inputs = [str(name) for name in about["inputs"]]
            self.records = tuple(_record(folder, row) for row in about["order"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{index} is damaged: {error!r}; write the dump again") from error
        self.folder = folder
        self.sizes: dict[str, int] = {}

    def has(self, name: str) -> bool:
        """Returns whether there is an input of that name."""
        return name in self._inputs

    def rank(self, name: str) -> int:
        """Returns how many axes an input has.

        Raises:
            InputError: there is none.
        """
        return self._read(name).ndim

    def input(self, name: str, axes: str) -> Float[np.ndarray, "..."]:
        """Returns an input with these axes.

        Each is a size or a letter, and a letter is one size in all inputs.

        Raises:
            InputError: there is none, or it has other axes.
        """
        array = self._read(name)
        letters = axes.split()
        sizes = dict(self.sizes)
        fits = array.ndim == len(letters) and all(
            size == (int(letter) if letter.isdigit() else sizes.setdefault(letter, size))
            for letter, size in zip(letters, array.shape, strict=True)
        )
        if not fits:
            known = ", ".join(f"{key}={value}" for key, value in self.sizes.items())
            raise InputError(
                f"input {name!r} in {self.folder} has shape {array.shape}; it must be [{axes}]"
                + (f" with {known}" if known else "")
            )
        self.sizes = sizes
        return array

    def _read(self, name: str) -> Float[np.ndarray, "..."]:
        if not self.has(name):
            raise InputError(
                f"{self.folder} has no input {name!r}, only {', '.join(self._inputs)}; "
                "`o3d weights dump-script` lists what each network needs"
            )
        return _read_array(self.folder / f"input.{name}.npy")


def _record(folder: Path, row: dict[str, Any]) -> Record:
    shape = tuple(int(size) for size in row["shape"])
    path = folder / Path(row["file"]).name  # Nothing outside of the folder.
    return Record(name=str(row["name"]), shape=shape, stride=int(row["stride"]), path=path)


def _read_array(path: Path) -> Float[np.ndarray, "..."]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}; write the dump again") from error
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        raise InputError(f"{path} holds no float32 array; write the dump again")
    return array
