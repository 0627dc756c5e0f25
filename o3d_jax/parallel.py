"""Devices: the mesh, and where state and batches lie on it. The only file that knows devices.

Mesh axes: "data" holds copies of the state, "fsdp" shards it; batches are split over both.
"""

import math
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")

SMALLEST_SHARDED = 2**18
"""Elements below which an array is replicated: a megabyte is cheaper to keep than to gather."""


def make_mesh(fsdp: int) -> Mesh:
    """A mesh of all devices, `fsdp` of which share one copy of the state.

    Raises:
        ValueError: the number of devices is not a multiple of `fsdp`.
    """
    count = jax.device_count()
    if count % fsdp:
        raise ValueError(f"train.fsdp {fsdp} does not divide the {count} devices present")
    return jax.make_mesh((count // fsdp, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def state_sharding(mesh: Mesh, state: Tree) -> Tree:
    """A sharding per array: its largest divisible axis over "fsdp", small arrays replicated."""

    count = mesh.shape["fsdp"]

    def place(array: jax.Array | np.ndarray | jax.ShapeDtypeStruct) -> NamedSharding:
        if count > 1 and math.prod(array.shape) >= SMALLEST_SHARDED:
            for axis in sorted(range(array.ndim), key=lambda i: -array.shape[i]):
                if array.shape[axis] % count == 0:
                    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "fsdp"))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(place, state)


def place_state(mesh: Mesh, state: Tree) -> Tree:
    """Puts the state on the mesh."""
    return jax.device_put(state, state_sharding(mesh, state))


def keep_state(mesh: Mesh | None, state: Tree) -> Tree:
    """The state as `place_state` places it, inside a compiled step.

    Left alone, XLA splits small arrays beside large ones, and the next step is compiled anew.
    """
    if mesh is None:
        return state
    return jax.lax.with_sharding_constraint(state, state_sharding(mesh, state))


def place_batch(mesh: Mesh, batch: Tree) -> Tree:
    """Splits a batch over all devices along its first axis.

    Raises:
        ValueError: the batch is not a multiple of the number of devices.
    """
    size = jax.tree.leaves(batch)[0].shape[0] * jax.process_count()
    if size % mesh.size:
        raise ValueError(
            f"train.batch_size {size} is not a multiple of the {mesh.size} devices it is split over"
        )
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, a), batch)
