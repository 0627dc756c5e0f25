"""The mesh of devices, and where state and batches lie on it.

Mesh axes: "data" holds copies of the state, "fsdp" shares one out; batches are split over both.
What is shared out is a matter of ZeRO's stages (Rajbhandari et al. 2020), `TrainConfig.zero`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from o3d_jax.config import TrainConfig
from o3d_jax.errors import InputError
from o3d_jax.types import Frozen, TrainState

Tree = TypeVar("Tree")


AXES = ("data", "fsdp")
"""The axes of the mesh; a batch's first axis is split over both."""

WHOLE = -1
"""Stands for the axis of an array that is not shared out: every device has all of it."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh, and what lies how on it; hashable, a static argument of `jax.jit`."""

    mesh: Mesh
    zero: int = 2
    """ZeRO's stage: 0 shares out nothing, 1 optimizer state and average, 2 gradients too, 3
    parameters too."""
    smallest: int = 2**18
    """Elements of the smallest array that is shared out, or offloaded."""
    offload_optimizer: bool = False
    """Whether the optimizer's state lies in the host's memory between its updates."""

    @property
    def devices(self) -> int:
        """How many devices share a batch."""
        return self.mesh.size

    @property
    def batch(self) -> NamedSharding:
        """How a batch lies: its first axis is split over all devices."""
        return NamedSharding(self.mesh, PartitionSpec(AXES))

    @property
    def whole(self) -> NamedSharding:
        """How an array lies of which every device has a copy."""
        return NamedSharding(self.mesh, PartitionSpec())

    def axes(self, tree: Tree, stage: int) -> Tree:
        """Returns the axis along which each array is shared out from `stage` on; WHOLE for none.

        It is the largest that "fsdp" divides, in arrays of at least `smallest` elements.
        """
        count = self.mesh.shape["fsdp"]

        def axis_of(array: Any) -> int:
            shape = array.shape
            if count == 1 or self.zero < stage or math.prod(shape) < self.smallest:
                return WHOLE
            divisible = (i for i in range(len(shape)) if shape[i] % count == 0)
            return max(divisible, key=lambda i: (shape[i], -i), default=WHOLE)

        return jax.tree.map(axis_of, tree)

    def specs(self, tree: Tree, stage: int) -> Tree:
        """Returns a PartitionSpec for each array, as `axes` says."""

        def spec(axis: int) -> PartitionSpec:
            return PartitionSpec() if axis == WHOLE else PartitionSpec(*(None,) * axis, "fsdp")

        return jax.tree.map(spec, self.axes(tree, stage))

    def shardings(self, tree: Tree, stage: int) -> Tree:
        """Returns a sharding for each array, as `axes` says."""
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), self.specs(tree, stage))

    def of_state(self, state: TrainState) -> TrainState:
        """Returns the shardings of a training state's arrays."""
        parts = (
            self.whole,
            self.shardings(state.params, stage=3),
            self.shardings(state.ema, stage=1),
            self.of_optimizer(state.opt_state, at_rest=True),
        )
        # Unflattening skips the check that leaves are arrays.
        return jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(parts))

    def of_optimizer(self, opt_state: Tree, at_rest: bool) -> Tree:
        """Returns the shardings of the optimizer's arrays, at rest or during its update.

        At rest, large ones are in the host's memory if that was asked for.
        """

        def place(array: Any, sharding: NamedSharding) -> NamedSharding:
            on_host = at_rest and math.prod(array.shape) >= self.smallest
            return sharding.with_memory_kind("pinned_host" if on_host else "device")

        shardings = self.shardings(opt_state, stage=1)
        if not self.offload_optimizer:
            return shardings
        return jax.tree.map(place, opt_state, shardings)

    def of_frozen(self, frozen: Frozen) -> Frozen:
        """Returns the shardings of the parameters that never train."""
        return self.shardings(frozen, stage=3)


def make_layout(train: TrainConfig, devices: Sequence[Any] | None = None) -> Layout:
    """Returns the layout of a configuration on these `jax.Device`s, by default all there are.

    Raises:
        InputError: the number of devices is no multiple of `train.fsdp`, or the batch cannot be
            split over them into `train.accumulate` parts.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    fsdp = train.fsdp or count
    if count % fsdp:
        raise InputError(f"train.fsdp {fsdp} does not divide the {count} devices present; lower it")
    if train.batch_size % (count * train.accumulate):
        raise InputError(
            f"train.batch_size {train.batch_size} is not a multiple of the {count} devices it is "
            f"split over, times train.accumulate {train.accumulate}; change it"
        )

    # "fsdp" is the inner axis: its devices exchange more, so they should be neighbors.
    shape, types = (count // fsdp, fsdp), (AxisType.Auto,) * 2
    try:
        mesh = jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
    except NotImplementedError:  # No arrangement of a TPU's torus has these axes along its links.
        mesh = Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=types)
    return Layout(mesh, train.zero, train.smallest_shared, train.offload_optimizer)


def own_rows(layout: Layout, batch_size: int) -> tuple[int, ...]:
    """Returns the rows of a batch that lie on this process's devices, rising.

    On TPUs these need not be neighbors: a mesh follows the links between chips.
    """
    places = layout.batch.addressable_devices_indices_map((batch_size,)).values()
    parts = [place[0] for place in places if place is not None]
    return tuple(sorted({row for part in parts for row in range(batch_size)[part]}))
