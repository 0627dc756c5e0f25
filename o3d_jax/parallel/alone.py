"""A process whose others never come: how it ends, and what it can say of them."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from o3d_jax.config import LaunchConfig

COUNTS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
"""Variables by which launchers say how many processes there are."""

RANKS = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
"""And which of them this is."""

LISTENS, CONNECTED = "0A", "01"
"""States of a socket in /proc/net/tcp."""

LAST = 2.0
"""Seconds that process 0 stays after its line: when it goes, JAX aborts the others with a trace."""


@contextlib.contextmanager
def ending_alone(launch: LaunchConfig) -> Iterator[None]:
    """Ends this process with a line and status 2 if the block takes longer than `launch.timeout`.

    JAX waits for the others in C++, where no exception reaches it, and in the end aborts.
    """
    timer = threading.Timer(launch.timeout, _give_up, [launch])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _give_up(launch: LaunchConfig) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"error: {what_happened(launch)}\n")
    sys.stderr.flush()
    time.sleep(LAST if connected_processes() else 0)
    os._exit(2)


def what_happened(launch: LaunchConfig) -> str:
    """Who is waiting, how many came, and what to check."""
    there, count = connected_processes(), launch.processes or _number(COUNTS)
    of_all = "" if count is None else f" of {count}"
    where = "" if launch.coordinator is None else f" at {launch.coordinator}"
    came = "not all others" if there is None else f"itself counted, {there}{of_all}"
    return (
        f"{who_is(launch)} has waited {launch.timeout} s{where}, and {came} came; see that all "
        "were started, with the same launch.coordinator and launch.processes, and that they reach "
        "that port through firewalls, or raise launch.timeout"
    )


def who_is(launch: LaunchConfig) -> str:
    """The subject of a message: "process 1 of 3", as far as it is known."""
    rank, count = _rank(launch), launch.processes or _number(COUNTS)
    if rank is None:
        return "this process"
    return f"process {rank}" + ("" if count is None else f" of {count}")


def connected_processes() -> int | None:
    """Returns how many have a connection to the port that this process listens on, on Linux.

    That is process 0, itself among them. None where it listens on none, or that cannot be seen.
    """
    try:
        own = {os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
    except OSError:
        own = set()
    rows = [row for row in _sockets() if f"socket:[{row[9]}]" in own]
    ports = {_port(row) for row in rows if row[3] == LISTENS}
    if not ports:
        return None
    return sum(row[3] == CONNECTED and _port(row) in ports for row in rows)


def _sockets() -> Iterator[list[str]]:
    """Rows of the kernel's tables: 1 is the own address, 3 the state, 9 the inode."""
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (Path("/proc/net") / name).read_text().splitlines()[1:]:
                yield line.split()


def _port(row: list[str]) -> str:
    return row[1].rpartition(":")[2]


def _rank(launch: LaunchConfig) -> int | None:
    return launch.process_id if launch.process_id is not None else _number(RANKS)


def _number(names: tuple[str, ...]) -> int | None:
    found = (os.environ.get(name, "") for name in names)
    return next((int(value) for value in found if value.isdigit()), None)
