"""How numba compiles what draws toys and meshes.

Between such a decorator and its function stands `no_type_check`, for test runs: numba cannot
compile what the shape checker wraps.
"""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numba.core.config

from o3d_jax.caches import cache_folder, is_usable

_settings: Any = numba.core.config


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function, and keeps that on disk; threads run it side by side."""
    cache = _keeps(Path(inspect.getfile(function)).parent)
    return numba.njit(cache=cache, nogil=True, error_model="numpy")(function)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function into its callers: a call would cost as much as passing a dozen arrays."""
    cache = _keeps(Path(inspect.getfile(function)).parent)
    return numba.njit(cache=cache, nogil=True, error_model="numpy", inline="always")(function)


@functools.cache
def _keeps(folder: Path) -> bool:
    """Returns whether numba can keep what it compiles of a folder's files; it raises if not."""
    chosen = _settings.CACHE_DIR
    if not chosen and is_usable(folder / "__pycache__"):
        return True
    place = cache_folder("numba", Path(chosen) if chosen else None)
    if place is not None:
        _settings.CACHE_DIR = str(place)
    return place is not None
