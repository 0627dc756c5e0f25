"""A golden file, and the rows that compare an output of it with ours."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

Arrays = Mapping[str, np.ndarray]


class UnknownFileError(ValueError):
    """The file is not a golden of a known kind."""


@dataclasses.dataclass(frozen=True)
class Limit:
    value: float
    relative: bool
    """Whether it bounds the relative L2 error rather than the largest absolute one."""

    source: str
    slices: int | None = None
    """If given, it bounds the largest absolute error of each slice, by the slice's largest value;
    these leading axes number slices."""


@dataclasses.dataclass(frozen=True)
class Row:
    kind: str
    name: str
    largest: float
    relative: float
    error: float
    """What the limit bounds: one of the above, or that of the worst slice."""
    limit: Limit

    @property
    def passed(self) -> bool:
        return bool(self.error <= self.limit.value)  # False for NaN.

    def __str__(self) -> str:
        sliced = self.limit.slices is not None
        what = "rel L2" if self.limit.relative else "of each" if sliced else "max abs"
        what = f"{what} {self.error:.1e}" if sliced else what
        return (
            f"{self.kind:13} {self.name:40} "
            f"max abs {self.largest:8.1e}  rel L2 {self.relative:8.1e}"
            f"  {what} <= {self.limit.value:.1e} ({self.limit.source})"
            f"  {'PASS' if self.passed else 'FAIL'}"
        )


def compare(kind: str, name: str, ours: np.ndarray, golden: np.ndarray, limit: Limit) -> Row:
    """The errors of one output; relative to 1 where the golden is zero."""
    ours, golden = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    if ours.shape != golden.shape:
        raise UnknownFileError(f"{name} has shape {golden.shape}, ours has {ours.shape}")
    error = ours - golden
    norm = float(np.linalg.norm(golden)) or 1.0
    largest = float(np.max(np.abs(error), initial=0.0))
    relative = float(np.linalg.norm(error)) / norm
    if limit.slices is not None:
        bounded = worst_slice(error, golden, limit.slices)
    else:
        bounded = relative if limit.relative else largest
    return Row(kind, name, largest, relative, bounded, limit)


def worst_slice(error: np.ndarray, golden: np.ndarray, axes: int) -> float:
    """The largest error of a slice over the largest value of it; relative to 1 where that is 0."""
    inner = tuple(range(axes, golden.ndim))
    size = np.abs(golden).max(axis=inner)
    return float((np.abs(error).max(axis=inner) / np.where(size == 0, 1, size)).max())


@dataclasses.dataclass(frozen=True)
class Golden:
    """Inputs and outputs of original code: FILE.npz, and what FILE.json beside it says of it."""

    file: pathlib.Path
    arrays: Arrays
    about: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return str(self.about["kind"])

    @property
    def config(self) -> Mapping[str, Any]:
        return self.about["config"]

    def given(self, name: str) -> np.ndarray:
        """An input, by its name without `in.`."""
        if f"in.{name}" not in self.arrays:
            raise UnknownFileError(f"it has no input {name}, which its kind, {self.kind}, needs")
        return self.arrays[f"in.{name}"]

    def has(self, name: str) -> bool:
        """Whether the file holds this array; `name` is whole, as `out.sample`."""
        return name in self.arrays

    def seed(self, model: str) -> int:
        """Of the weights of one of the file's models."""
        return int(self.about["params"][model]["weights_seed"])

    def manifest(self, model: str) -> Mapping[str, tuple[int, ...]] | None:
        """Names and shapes of a model's torch parameters, where the file tells them."""
        shapes = self.about["params"][model].get("manifest")
        if not isinstance(shapes, Mapping):
            return None
        return {name: tuple(shape) for name, shape in shapes.items()}

    def limit(self, name: str) -> Limit:
        """What an output is held to: five times the original's own noise, where that is known."""
        noise = float(self.about["noise_max_abs"].get(name.split(".", 1)[1], 0.0))
        if noise > 0:
            return Limit(5 * noise, False, "5 x the file's float32 noise")
        largest = float(np.abs(np.asarray(self.arrays[name], np.float64)).max(initial=1e-30))
        return Limit(ROUNDING * largest, False, f"float32, {ROUNDING:.0e} of the largest value")

    def rows(self, ours: Mapping[str, Any], limits: Mapping[str, Limit]) -> Iterator[Row]:
        """A row for each output of the file; `ours` has them under the file's own names.

        `limits` are those of outputs that cannot be held to the usual one.

        Raises:
            UnknownFileError: the file has an output that we don't compute.
        """
        outputs = [name for name in self.arrays if name.startswith(("out.", "out_d025."))]
        if not outputs:
            raise UnknownFileError("it has no outputs, out.*")
        unknown = [name for name in outputs if name not in ours]
        if unknown:
            raise UnknownFileError(f"outputs unknown to kind {self.kind}: {', '.join(unknown)}")
        for name in outputs:
            limit = limits.get(name) or self.limit(name)
            label = f"{self.file.stem} {name.removeprefix('out.')}"
            yield compare(self.kind, label, ours[name], self.arrays[name], limit)


ROUNDING = 2e-6
"""Of the largest value: 30 roundings of a float32 (6e-8); formulas have about ten operations."""


quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Compiles twice as fast; small networks run once."""


def channels_last(x: np.ndarray) -> np.ndarray:
    """torch's `... c h w` as `... h w c`."""
    return np.moveaxis(x, -3, -1)


def channels_first(x: Any) -> np.ndarray:
    """The way back."""
    return np.moveaxis(np.asarray(x), -1, -3)


def merged(x: np.ndarray) -> np.ndarray:
    """The first two axes as one."""
    return x.reshape(-1, *x.shape[2:])
