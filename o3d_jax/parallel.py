"""Devices: the mesh, and where state and batches lie on it. The only file that knows devices.

Mesh axes: "data" holds copies of the state, "fsdp" shares one out; batches are split over both.
What is shared out is a matter of ZeRO's stages (Rajbhandari et al. 2020), `TrainConfig.zero`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import math
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool

from o3d_jax.config import Config, LaunchConfig, TrainConfig, to_dict
from o3d_jax.errors import InputError
from o3d_jax.types import Frozen, TrainState

Tree = TypeVar("Tree")

AXES = ("data", "fsdp")
"""Of the mesh, and of the first axis of a batch."""

HOST_BYTES = 64
"""Of a host's name in the process map."""

WHOLE = -1
"""In place of the axis along which an array is shared out: it is not."""


class ProcessInfo(NamedTuple):
    """One of the processes of a run."""

    index: int
    host: str
    devices: int
    """How many it drives."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh, and what lies how on it; hashable, a static argument of `jax.jit`."""

    mesh: Mesh
    zero: int = 2
    """Stage: 0 nothing is shared out, 1 optimizer state and average, 2 gradients, 3 parameters."""
    smallest: int = 2**18
    """Elements of the smallest array that is shared out."""

    @property
    def devices(self) -> int:
        """How many share a batch."""
        return self.mesh.size

    @property
    def batch(self) -> NamedSharding:
        """Of a batch: its first axis over all devices."""
        return NamedSharding(self.mesh, PartitionSpec(AXES))

    @property
    def whole(self) -> NamedSharding:
        """Of what every device has a copy of."""
        return NamedSharding(self.mesh, PartitionSpec())

    def axes(self, tree: Tree, stage: int) -> Tree:
        """The axis along which each array is shared out from `stage` on; WHOLE for none.

        The largest that "fsdp" divides, of arrays with at least `smallest` elements.
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
        """A PartitionSpec for each array, as `axes` says."""

        def spec(axis: int) -> PartitionSpec:
            return PartitionSpec() if axis == WHOLE else PartitionSpec(*(None,) * axis, "fsdp")

        return jax.tree.map(spec, self.axes(tree, stage))

    def shardings(self, tree: Tree, stage: int) -> Tree:
        """A sharding for each array, as `axes` says."""
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), self.specs(tree, stage))

    def of_state(self, state: TrainState) -> TrainState:
        """Shardings of a training state's arrays."""
        parts = (
            self.whole,
            self.shardings(state.params, stage=3),
            self.shardings(state.ema, stage=1),
            self.shardings(state.opt_state, stage=1),
        )
        # Unflattening skips the check that leaves are arrays.
        return jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(parts))

    def of_frozen(self, frozen: Frozen) -> Frozen:
        """Shardings of the parameters that never train."""
        return self.shardings(frozen, stage=3)


def make_layout(train: TrainConfig, devices: Sequence[Any] | None = None) -> Layout:
    """The layout of a configuration on these `jax.Device`s, by default all there are.

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
    shape, types = (count // fsdp, fsdp), (AxisType.Auto,) * 2
    try:
        mesh = jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
    except NotImplementedError:  # No arrangement of a TPU's torus has these axes along its links.
        mesh = Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=types)
    return Layout(mesh=mesh, zero=train.zero, smallest=train.smallest_shared)


def own_rows(layout: Layout, batch_size: int) -> tuple[int, ...]:
    """The rows of a batch that lie on this process's devices, rising.

    On TPUs these need not be neighbours: a mesh follows the links between chips.
    """
    places = layout.batch.addressable_devices_indices_map((batch_size,)).values()
    parts = [place[0] for place in places if place is not None]
    return tuple(sorted({row for part in parts for row in range(batch_size)[part]}))


def place(tree: Tree, shardings: Tree) -> Tree:
    """Arrays that every process has whole, put where the shardings say."""

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
    """Splits a batch, this process's `own_rows` of it, over all devices along its first axis."""
    return jax.tree.map(
        lambda a: jax.make_array_from_process_local_data(layout.batch, np.asarray(a)), batch
    )


def place_flag(layout: Layout, flag: bool) -> Bool[Array, " n"]:
    """A flag of this process beside those of the others, for a step that asks whether any is set.

    One value a device, so that each process has its part.
    """
    flags = np.full(jax.local_device_count(), flag)
    return jax.make_array_from_process_local_data(layout.batch, flags)


def gather(tree: Tree) -> Tree:
    """The whole arrays, on the host, in every process."""
    return jax.tree.map(
        lambda a: (
            np.asarray(a)
            if a.is_fully_addressable
            else multihost_utils.process_allgather(a, tiled=True)
        ),
        tree,
    )


def reduce_gradient(gradient: Tree, axes: Tree, layout: Layout) -> Tree:
    """The mean over all devices, inside `shard_map`; of arrays with an axis, this device's share.

    From stage 3 on it is a share already: the sum over "fsdp" came with the gathering.
    """

    def reduce(array: Array, axis: int) -> Array:
        if axis == WHOLE:
            return jax.lax.pmean(array, AXES)
        if layout.zero < 3:
            array = jax.lax.psum_scatter(array, "fsdp", scatter_dimension=axis, tiled=True)
        return jax.lax.psum(array, "data") / layout.devices

    return jax.tree.map(reduce, gradient, axes)


def start_processes(launch: LaunchConfig) -> None:
    """Joins the other processes of a run, before anything else is asked of JAX.

    What TPU pods, SLURM, Open MPI 4 and Kubernetes say in the environment is found by JAX;
    elsewhere `launch` says it. A process by itself goes on alone.

    Raises:
        InputError: the others were not to be reached in time.
    """
    # Its handler of SIGTERM would take the place of io.interruption's.
    jax.config.update("jax_enable_preemption_service", False)
    if launch.process_id:
        _wait_for_coordinator(launch)
    if launch.coordinator is None and _is_alone():
        return
    try:
        jax.distributed.initialize(
            launch.coordinator,
            launch.processes,
            launch.process_id,
            initialization_timeout=launch.timeout,
        )
    except ValueError as error:
        if "coordinator_address" not in str(error) or launch.coordinator is not None:
            raise InputError(f"cannot join the run's processes: {error}") from error
    except jax.errors.JaxRuntimeError as error:
        who, where = "this process", ""
        if launch.coordinator is not None:
            who = f"process {launch.process_id} of {launch.processes}"
            where = f" at {launch.coordinator}"
        raise InputError(
            f"{who} could not join the others{where} within {launch.timeout} s; see that all run "
            f"and reach it, or raise launch.timeout ({str(error).splitlines()[0]})"
        ) from error
    _check_found_all()


def _check_found_all() -> None:
    """Else each process would train by itself, and write what the others write.

    JAX 0.10 knows Open MPI by a variable that its version 5 does not set any more.
    """
    count = os.environ.get("OMPI_COMM_WORLD_SIZE", "1")
    if count != "1" and not jax.distributed.is_initialized():
        raise InputError(
            f"mpirun has started {count} processes, but JAX does not find the others (Open MPI 5); "
            "give --launch.coordinator HOST:PORT, that of process 0, --launch.processes "
            f"{count} and --launch.process-id $OMPI_COMM_WORLD_RANK"
        )


@contextlib.contextmanager
def leaving_others_on_error() -> Iterator[None]:
    """A process that fails by itself ends at once; at JAX's own end it waits for the others.

    These wait for it in a sum or a barrier, and notice only when it has gone. Process 0 ends last,
    because JAX aborts the others when it goes: they may have something to say.
    """
    try:
        yield
    except BaseException as error:
        asked = isinstance(error, SystemExit) and error.code in (0, 130, None)  # All of them.
        if asked or not jax.distributed.is_initialized():
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stderr.flush()
        sys.stdout.flush()
        time.sleep(2 * (jax.process_index() == 0))
        os._exit(error.code if isinstance(error, SystemExit) and type(error.code) is int else 1)


def _is_alone() -> bool:
    """Whether JAX would see several processes where there is one, or none where there are several.

    Raises:
        InputError: on Kubernetes, without the package by which JAX finds the others there.
    """
    environment = os.environ
    if environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS")) == "1":
        return True  # Else JAX would give it the first of its GPUs only.
    in_job = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    on_tpu = "TPU_WORKER_HOSTNAMES" in environment
    if in_job and not on_tpu and importlib.util.find_spec("kubernetes") is None:
        raise InputError(
            "this is one pod of a Kubernetes job, but the others are not found without a package: "
            "pip install 'jax[k8s]', or give launch.coordinator, launch.processes and "
            "launch.process_id"
        )
    return False


def _wait_for_coordinator(launch: LaunchConfig) -> None:
    """Where nobody answers in time, JAX would abort the process with a trace of its own."""
    host, _, port = str(launch.coordinator).rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"launch.coordinator {launch.coordinator!r} is not HOST:PORT")
    end = time.monotonic() + launch.timeout
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise InputError(
                    f"process {launch.process_id} found no process 0 at {launch.coordinator} "
                    f"within {launch.timeout} s ({error}); see that it runs and that the port is "
                    "open, or raise launch.timeout"
                ) from error
            time.sleep(0.2)


def process_map() -> tuple[ProcessInfo, ...]:
    """All processes of the run, by index; a collective call."""
    name = socket.gethostname().encode()[:HOST_BYTES].ljust(HOST_BYTES, b"\0")
    row = np.array([*name, jax.local_device_count()], np.int32)
    rows = multihost_utils.process_allgather(row).reshape(-1, HOST_BYTES + 1)
    return tuple(
        ProcessInfo(i, bytes(r[:-1].astype(np.uint8)).rstrip(b"\0").decode(), int(r[-1]))
        for i, r in enumerate(rows)
    )


def check_same_config(config: Config) -> None:
    """All processes must run the same experiment; a collective call.

    Raises:
        InputError: they don't.
    """
    values = to_dict(dataclasses.replace(config, launch=LaunchConfig()))
    digest = hashlib.blake2b(repr(sorted(values.items())).encode(), digest_size=4).digest()
    mine = np.frombuffer(digest, np.uint32)
    all_of_them = np.ravel(multihost_utils.process_allgather(mine))
    if (all_of_them != mine).any():
        odd = [i for i, value in enumerate(all_of_them) if value != all_of_them[0]]
        raise InputError(
            f"processes {odd} have another config than process 0; start all with the same file "
            "and options"
        )


mean_over_devices = functools.partial(jax.tree.map, lambda a: jax.lax.pmean(a, AXES))
"""The mean of each array over all devices, inside `shard_map`."""


def device_number() -> Array:
    """Which of the devices runs this, inside `shard_map`."""
    return jnp.asarray(jax.lax.axis_index(AXES))
