"""Fingerprints of arrays: by them a checkpoint whose bytes changed on disk is noticed.

They are computed where the arrays lie, by uint32 arithmetic that wraps around: sums are exact in
any order, so a fingerprint does not depend on how many devices share an array, or how.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt32

UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
"""What elements are read as, by their size in bytes; those of 8 bytes are two words each."""

AT_ONCE = 8
"""Programs that are queued at a time.

XLA lets 32 wait for a CPU device and then blocks the thread that runs them: several devices, which
wait for each other in a sum, would wait for ever.
"""


def fingerprints(tree: Any) -> dict[str, int]:
    """Returns a number in [0, 2^32) for each array, by its path in the tree.

    It differs for certain if one element of at most 4 bytes does, and but for about one chance in
    2^32 if more do. With several processes all must call this, in step.
    """
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    found: dict[str, int] = {}
    for start in range(0, len(flat), AT_ONCE):
        some = {
            path: _fingerprint(_on_device(_one_copy(array)))
            for path, array in flat[start : start + AT_ONCE]
        }
        for path, value in some.items():
            found[jax.tree_util.keystr(path)] = int(jax.device_get(value))
    return found


def _one_copy(array: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
    """Returns one copy of what every device has: the program would else run on each of them."""
    if isinstance(array, jax.Array) and array.is_fully_replicated:
        return array.addressable_data(0)
    return array


def _on_device(array: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
    """Returns what is offloaded to the host's memory, where nothing is computed, on its device."""
    if isinstance(array, jax.Array) and array.sharding.memory_kind == "pinned_host":
        return jax.device_put(array, array.sharding.with_memory_kind("device"))
    return array


@jax.jit
def _fingerprint(array: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """Returns the sum of all words, each scattered together with its position."""
    words = _words(array)
    position = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        position += along * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(_scattered(words ^ _scattered(position)), dtype=jnp.uint32)


def _words(array: Shaped[Array, "..."]) -> UInt32[Array, "..."]:
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    kind = UNSIGNED[array.dtype.itemsize]
    return jax.lax.bitcast_convert_type(array, kind).astype(jnp.uint32)


def _scattered(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Returns words mapped one to one to what looks like chance, with xxHash's multipliers.

    A sum that is only weighted would not see two signs change, which add 2^31 times an odd number.
    """
    x = x * jnp.uint32(0x85EBCA77)
    x = (x ^ (x >> 15)) * jnp.uint32(0x9E3779B1)
    return x ^ (x >> 13)
