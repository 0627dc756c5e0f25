"""The processes of a run: how they find each other, what they must agree on, how one fails."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from o3d_jax.config import Config, LaunchConfig, to_dict
from o3d_jax.errors import InputError
from o3d_jax.parallel.alone import ending_alone, who_is

JAX_WAITS = 3600
"""Seconds that JAX would wait for the others after `launch.timeout`."""

HOST_BYTES = 64
"""Bytes for a host's name in the process map."""


class ProcessInfo(NamedTuple):
    """One of the processes of a run."""

    index: int
    host: str
    devices: int
    """How many devices it drives."""


def start_processes(launch: LaunchConfig) -> None:
    """Joins the other processes of a run, before anything else is asked of JAX.

    What TPU pods, SLURM, Open MPI 4 and Kubernetes say in the environment is found by JAX;
    elsewhere `launch` says it. A process by itself goes on alone.

    A process whose others do not come ends with one line and status 2, from wherever it is called.

    Raises:
        InputError: process 0 was not to be reached in time.
    """
    # Its handler of SIGTERM would take the place of run.interruption's.
    jax.config.update("jax_enable_preemption_service", False)

    if launch.process_id:
        _wait_for_coordinator(launch)
    if launch.coordinator is None and _is_alone():
        return

    # JAX names what it could not find out in its ValueErrors; a process that found nothing at all
    # to go by, and was told nothing, is alone.
    try:
        with ending_alone(launch):
            jax.distributed.initialize(
                launch.coordinator,
                launch.processes,
                launch.process_id,
                # JAX must not be the first to give up: it aborts in C++, with a trace of its own.
                initialization_timeout=launch.timeout + JAX_WAITS,
            )
    except ValueError as error:
        if "coordinator_address" not in str(error) or launch.coordinator is not None:
            raise InputError(f"cannot join the run's processes: {error}") from error
    except jax.errors.JaxRuntimeError as error:
        raise InputError(
            f"{who_is(launch)} could not join the others: {str(error).splitlines()[0]}; see that "
            "all run and reach each other"
        ) from error
    _check_found_all()


def _check_found_all() -> None:
    """Raises an InputError if mpirun started several processes that have not found each other.

    Each would train by itself, and write what the others write. JAX 0.10 knows Open MPI by a
    variable that its version 5 does not set any more.
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
    """Makes a process that fails by itself end at once, where JAX would wait for the others.

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
        time.sleep(5 * (jax.process_index() == 0))
        os._exit(error.code if isinstance(error, SystemExit) and type(error.code) is int else 1)


def _is_alone() -> bool:
    """Returns whether this is one process that JAX would take for several.

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
    """Waits until process 0 can be reached.

    Where nobody answers in time, JAX would abort the process with a trace of its own.
    """
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
    """Returns all processes of the run, by index; all must call it together."""
    name = socket.gethostname().encode()[:HOST_BYTES].ljust(HOST_BYTES, b"\0")
    row = np.array([*name, jax.local_device_count()], np.int32)
    rows = multihost_utils.process_allgather(row).reshape(-1, HOST_BYTES + 1)
    return tuple(
        ProcessInfo(i, bytes(r[:-1].astype(np.uint8)).rstrip(b"\0").decode(), int(r[-1]))
        for i, r in enumerate(rows)
    )


def check_same_config(config: Config) -> None:
    """Checks that all processes run the same experiment; all must call it together.

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
