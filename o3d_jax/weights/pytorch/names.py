"""One rule between our parameters and torch's, for names, shapes and arrays, in both directions.

A flax path `("a_0", "b", "kernel")` is torch's `a.0.b.weight`: `_0` at the end of a component is
an index, and `kernel`, `scale` and `embedding` are all called `weight`. Kernels have their input
and output axes last in flax and reversed first in torch; all else is the same.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Shaped

Path = tuple[str, ...]

LITERAL = ("linear_1", "linear_2")  # diffusers' TimestepEmbedding: no index, part of the name.
TABLES = ("position_embedding",)  # Modules whose two-axis weight is looked up, not multiplied.
WEIGHTS = ("kernel", "scale", "embedding")


def torch_name(path: Path) -> str:
    """Returns the torch name of the parameter at a flax path."""
    *modules, leaf = path
    parts = [m if m in LITERAL else re.sub(r"_(\d+)$", r".\1", m) for m in modules]
    return ".".join([*parts, "weight" if leaf in WEIGHTS else leaf])


def flax_path(name: str, ndim: int) -> Path:
    """Returns the flax path of the parameter with a torch name and this many axes."""
    path: list[str] = []
    for part in name.split("."):
        if part.isdigit() and path:
            path[-1] += f"_{part}"
        else:
            path.append(part)
    if path[-1] == "weight":
        table = len(path) > 1 and path[-2] in TABLES
        path[-1] = "scale" if ndim == 1 else "embedding" if table else "kernel"
    return tuple(path)


def torch_axes(path: Path, ndim: int) -> tuple[int, ...]:
    """Returns our axes in torch's order: kernels have output, input, then space; others ours."""
    if path[-1] != "kernel":
        return tuple(range(ndim))
    return (ndim - 1, ndim - 2, *range(ndim - 2))


def torch_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape that torch gives to a parameter of ours."""
    return tuple(shape[axis] for axis in torch_axes(path, len(shape)))


def to_torch(path: Path, array: Shaped[Array | np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Returns a parameter of ours with its axes as in torch."""
    return np.transpose(np.asarray(array), torch_axes(path, array.ndim))


def from_torch(name: str, array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Returns a torch parameter with its axes as in flax; its place is `flax_path(name, ndim)`."""
    path = flax_path(name, array.ndim)
    return np.transpose(array, np.argsort(torch_axes(path, array.ndim)))


def manifest(params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the torch shapes of all parameters by torch name; they may be shapes themselves.

    Raises:
        ValueError: two parameters have the same torch name.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        path = tuple(key.key for key in keys)
        name = torch_name(path)
        if name in shapes:
            raise ValueError(f"two parameters are called {name} in torch; one is at {path}")
        shapes[name] = torch_shape(path, leaf.shape)
    return shapes
