"""Devices: the mesh, and where state and batches lie on it. The only file that knows devices.

Mesh axes: "data" holds copies of the state, "fsdp" shards it; batches are split over both.
"""

import math
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from o3d_jax.errors import InputError

Tree = TypeVar("Tree")

SMALLEST_SHARDED = 2**18
"""Elements below which an array is replicated: a megabyte is cheaper to keep than to gather."""


def make_mesh(fsdp: int, batch_size: int) -> Mesh:
    """A mesh of all devices, `fsdp` of which share one copy of the state.

    Raises:
        InputError: the number of devices is not a multiple of `fsdp`, or `batch_size` objects
            cannot be split over them.
    """
    count = jax.device_count()
    fsdp = fsdp or count
    if count % fsdp:
        raise InputError(f"train.fsdp {fsdp} does not divide the {count} devices present; lower it")
    if batch_size % count:
        raise InputError(
            f"train.batch_size {batch_size} is not a multiple of the {count} devices it is split "
            "over; change it"
        )
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
    """Splits a batch, this process's part of it, over all devices along its first axis."""
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, a), batch)
