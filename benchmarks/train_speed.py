"""Compares how fast checkouts of this repository train, in turns.

    python benchmarks/train_speed.py \\
        'OLD: -m o3d_jax.tools.train_unet configs/nano.py --train.batch-size 8' \\
        '.: train.py configs/nano.py --train.part unet --launch.cpu-devices 2 --train.zero 0'

Each command is a checkout, variables of the environment if any, and what its Python is given, with
batches of `--objects`. All run in turns, so that what else the machine does falls on all alike.
Times are read from their progress bars. Printed are objects a second, seconds until the first step
is taken (compilation, for nothing is cached) and the peak memory, and their ratios to the first
command's.
"""

import argparse
import contextlib
import itertools
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

BAR = re.compile(rb"(\d+)/\d+ \[[^\]]*(?:[\d?]it/s|s/it)")
"""A progress bar of steps; bars of other things have units of their own."""


class Speed(NamedTuple):
    """Of one run."""

    objects_per_second: float
    first_step: float
    """Seconds from the start of the process."""
    peak: float
    """GB of memory that was resident."""


class Command(NamedTuple):
    """What is measured."""

    checkout: Path
    variables: tuple[tuple[str, str], ...]
    """Of the environment."""
    arguments: tuple[str, ...]
    """Of Python."""


def parse(text: str) -> Command:
    """Reads 'CHECKOUT: [NAME=VALUE ...] ARGUMENTS'."""
    checkout, _, rest = text.partition(":")
    words = shlex.split(rest)
    settings = list(itertools.takewhile(lambda word: re.match(r"[A-Z_]+=", word), words))
    variables = tuple((name, value) for name, _, value in (s.partition("=") for s in settings))
    return Command(Path(checkout), variables, tuple(words[len(settings) :]))


def run(command: Command, objects: int, steps: int) -> Speed:
    """Trains for a while in a folder of its own, without a cache of compiled programs.

    The time is that of all steps after the first. Bars of old checkouts run ahead of the devices,
    but for the first step and every 50th after it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        words = [sys.executable, *command.arguments, "--run-dir", scratch, "--name", "speed"]
        environment = os.environ | {"PYTHONPATH": ".", "JAX_ENABLE_COMPILATION_CACHE": "false"}
        environment |= dict(command.variables)
        began = time.perf_counter()
        process = subprocess.Popen(
            words,
            cwd=command.checkout,
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        assert process.stderr is not None
        peaks: list[float] = []
        watch = threading.Thread(target=_watch, args=(process, peaks), daemon=True)
        watch.start()

        # A bar may not show every step, and the text comes in blocks that may cut it.
        reached: dict[int, float] = {}
        said = b""
        while block := os.read(process.stderr.fileno(), 4096):
            said = (said + block)[-4000:]
            for found in BAR.findall(block):
                if int(found):
                    reached.setdefault(int(found), time.perf_counter() - began)
            if max(reached, default=0) >= steps:
                break
        process.kill()
        process.wait()
        watch.join()

    first, last = min(reached, default=0), max(reached, default=0)
    if last < max(steps, 2):
        raise SystemExit(f"{command}: {said.decode()}")
    seconds = reached[last] - reached[first]
    return Speed(objects * (last - first) / seconds, reached[first], max(peaks))


def _watch(process: subprocess.Popen, peaks: list[float]) -> None:
    status = Path(f"/proc/{process.pid}/status")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # It ends meanwhile.
        while process.poll() is None:
            found = re.search(r"VmHWM:\s+(\d+)", status.read_text())
            peaks.append(int(found[1]) / 1e6 if found else 0.0)
            time.sleep(0.5)


def main() -> None:
    """Reads the command line and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commands", type=parse, nargs="+")
    parser.add_argument("--objects", type=int, default=8, help="in a batch of each command")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=51)
    chosen = parser.parse_args()

    found: dict[Command, list[Speed]] = {command: [] for command in chosen.commands}
    for _ in range(chosen.rounds):
        for command in chosen.commands:
            speed = run(command, chosen.objects, chosen.steps)
            sys.stderr.write(f"{' '.join(command.arguments)}: {speed}\n")
            found[command].append(speed)

    base = None
    for command, speeds in found.items():
        middle = Speed(*(statistics.median(values) for values in zip(*speeds, strict=True)))
        base = base or middle
        ratios = [m / b for m, b in zip(middle, base, strict=True)]
        cells = [f"{m:.3g} ({r:.2f}x)" for m, r in zip(middle, ratios, strict=True)]
        sys.stdout.write(f"| {' '.join(command.arguments)} | {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()
