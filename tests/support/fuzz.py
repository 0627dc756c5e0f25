"""Gives readers damaged files, and reports what they do but refuse them in one line.

    PYTHONPATH=.:tests python -m support.fuzz [--reader gltf] [--count 100000] [--first 0] [--drawn]

Input number N is the same in every run. Not as a test of its own process, since it looks at what
users run: without the tests' checks of shapes, and with its own memory.
"""

import argparse
import collections
import faulthandler
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from o3d_jax.errors import InputError
from support import fuzzed_readers
from support.mutations import mutant

MEGABYTES, TIMES = 200, 10
"""A reader may take of memory, besides so many times the files' size."""


CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class Fault(NamedTuple):
    """Something that a reader did but should not."""

    number: int
    what: str


class TooLong(BaseException):
    """No reader may swallow it."""


def megabytes_more(read: Callable[[], str]) -> tuple[str, float]:
    """What a function says, and how much more memory it held at some time than before it."""
    CLEAR.write_text("5")  # From now on, the peak is that of now.
    before = _peak()
    said = read()
    return said, _peak() - before


def _peak():
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def write_input(reader, number: int, folder: Path) -> Path:
    """Writes the files of an input, of which one or more are damaged."""
    rng = np.random.default_rng([number, 7])
    files = reader.sets[rng.integers(len(reader.sets))]
    names = list(files)
    damaged = {names[0] if rng.random() < 0.6 else names[rng.integers(len(names))]}
    for name, content in files.items():
        others = [other[name] for other in reader.sets if name in other]
        path = folder / name
        path.write_bytes(mutant(rng, name, content, others) if name in damaged else content)
    return folder / names[0]


def run_one(reader, path: Path, seconds: float) -> str:
    """What is wrong with how a reader takes an input; "refused" or "read" if nothing is."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        reader.read(path)
    except InputError as error:
        return "refused" if "\n" not in str(error) and str(error) else f"says {str(error)!r}"
    except TooLong:
        return f"more than {seconds:g} s"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:150]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "read"


class Found(NamedTuple):
    """What came out."""

    counts: collections.Counter
    """Of inputs that were read, and refused."""
    faults: list[Fault]
    slowest: float
    """Seconds."""
    megabytes: float
    """That an input took at most."""


def fuzz(reader, numbers: range, folder: Path, seconds: float) -> Found:
    """Gives a reader all inputs of these numbers."""
    counts, faults, slowest, most = collections.Counter(), [], 0.0, 0.0
    for files in reader.sets:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        # What is not damaged is read; and then all is imported and compiled.
        said = run_one(reader, folder / next(iter(files)), 600.0)
        assert said == "read", f"{reader.name} {next(iter(files))}: {said}"
    for number in numbers:
        shutil.rmtree(folder)
        folder.mkdir()
        path = write_input(reader, number, folder)
        start = time.perf_counter()
        what, megabytes = megabytes_more(partial(run_one, reader, path, seconds))
        slowest, most = max(slowest, time.perf_counter() - start), max(most, megabytes)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
        if megabytes > MEGABYTES + TIMES * size:
            faults.append(Fault(number, f"{megabytes:.0f} MiB for files of {size:.3f} MiB"))
        if what in ("refused", "read"):
            counts[what] += 1
        else:
            faults.append(Fault(number, what))
    return Found(counts, faults, slowest, most)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reader", default="")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5.0, help="that a reader may take")
    parser.add_argument("--drawn", action="store_true", help="draw the meshes, too")
    order = parser.parse_args()
    fuzzed_readers.DRAWN = order.drawn
    faulthandler.enable()
    warnings.simplefilter("ignore", UserWarning)  # Of what is read, but not as it is.
    warnings.simplefilter("error", RuntimeWarning)  # Numpy's, which says nothing to users.

    def ring(number, frame):
        raise TooLong

    signal.signal(signal.SIGALRM, ring)
    wrong = 0
    numbers = range(order.first, order.first + order.count)
    chosen = [r for r in fuzzed_readers.readers() if order.reader in ("", r.name)]
    for reader in chosen or [fuzzed_readers.planted()]:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "input"
            folder.mkdir()
            start = time.perf_counter()
            found = fuzz(reader, numbers, folder, order.seconds)
            seconds = time.perf_counter() - start
        wrong += len(found.faults)
        sys.stdout.write(
            f"{reader.name}: {order.count} inputs, {found.counts['refused']} refused, "
            f"{found.counts['read']} read, {len(found.faults)} faults; {seconds:.0f} s, "
            f"the slowest {found.slowest:.2f} s; {found.megabytes:.0f} MiB\n"
        )
        for fault in found.faults[:20]:
            sys.stdout.write(f"  {fault.number}: {fault.what}\n")
        sys.stdout.flush()
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
