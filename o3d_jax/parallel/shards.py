"""Arrays that devices share out: put there, gathered again, and averaged over all of them."""

import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool

from o3d_jax.parallel.layout import AXES, WHOLE, Layout

Tree = TypeVar("Tree")


def place(tree: Tree, shardings: Tree) -> Tree:
    """Puts arrays that every process has whole where the shardings say, and returns them."""

    def put(array: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            return jax.device_put(array, sharding)
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            data = put(jax.random.key_data(array), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def place_batch(layout: Layout, batch: Tree) -> Tree:
    """Splits a batch over all devices along its first axis; each process gives its `own_rows`."""
    return jax.tree.map(
        lambda a: jax.make_array_from_process_local_data(layout.batch, np.asarray(a)), batch
    )


def place_flag(layout: Layout, flag: bool) -> Bool[Array, " n"]:
    """Puts this process's flag beside the others', for a step that asks whether any is set.

    There is one value a device, so that each process has its part.
    """
    flags = np.full(jax.local_device_count(), flag)
    return jax.make_array_from_process_local_data(layout.batch, flags)


def gather(tree: Tree) -> Tree:
    """Returns the whole arrays, on the host, in every process."""
    return jax.tree.map(
        lambda a: (
            np.asarray(a)
            if a.is_fully_addressable
            else multihost_utils.process_allgather(a, tiled=True)
        ),
        tree,
    )


def reduce_gradient(gradient: Tree, axes: Tree, layout: Layout) -> Tree:
    """Returns the mean over all devices, inside `shard_map`; if shared out, this device's share.

    From stage 3 on it is a share already: the sum over "fsdp" came with the gathering.
    """

    def reduce(array: Array, axis: int) -> Array:
        if axis == WHOLE:
            return jax.lax.pmean(array, AXES)
        if layout.zero < 3:
            array = jax.lax.psum_scatter(array, "fsdp", scatter_dimension=axis, tiled=True)
        return jax.lax.psum(array, "data") / layout.devices

    return jax.tree.map(reduce, gradient, axes)


mean_over_devices = functools.partial(jax.tree.map, lambda a: jax.lax.pmean(a, AXES))
"""Returns the mean of each array over all devices, inside `shard_map`."""


def device_number() -> Array:
    """Returns the number of the device that runs this, inside `shard_map`."""
    return jnp.asarray(jax.lax.axis_index(AXES))
