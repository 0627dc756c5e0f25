"""Compares how fast checkouts of this repository train: `python benchmarks/train_speed.py A B`.

Each runs its own train.py on the same config, in turns, so that what else the machine does falls on
all alike. Printed are objects a second, seconds until the first step is taken (compilation, for
nothing is cached) and the process's peak memory, and their ratios to the first checkout's.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

WARM = 2
"""Log lines that do not count: the first steps touch memory for the first time."""


class Speed(NamedTuple):
    """Of one run."""

    objects_per_second: float
    first_step: float
    """Seconds from the start of the process."""
    peak: float
    """GB."""


def run(checkout: Path, options: list[str], lines: int) -> Speed:
    """Trains from nothing, in a folder and with a cache of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "train.py", *options, "--run-dir", scratch, "--name", "speed"]
        command += ["--train.log-every", "1", "--train.steps", str(WARM + lines)]
        command += ["--train.eval-every", "1000000", "--train.save-every", "1000000"]
        environment = os.environ | {"PYTHONPATH": ".", "JAX_ENABLE_COMPILATION_CACHE": "false"}
        began = time.time()
        process = subprocess.Popen(
            command, cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        rows, first = [], None
        while process.poll() is None and len(rows) < WARM + lines:
            time.sleep(0.2)
            for log in Path(scratch).rglob("log.jsonl"):
                rows = [json.loads(line) for line in log.read_text().splitlines()]
                first = first or (time.time() - began if rows else None)
        process.terminate()
        said = process.communicate()[0]
    if first is None:
        raise SystemExit(f"{checkout}: {said.decode()[-2000:]}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    rates = [row["objects_per_second"] for row in rows[WARM:]]
    return Speed(statistics.median(rates), first, peak)


def main() -> None:
    """Reads the command line and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", type=Path, nargs="+")
    parser.add_argument("--config", default="configs/nano.py")
    parser.add_argument("--option", action="append", default=[], help="for train.py; repeat it")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--lines", type=int, default=8, help="steps that are measured")
    chosen = parser.parse_args()

    found: dict[Path, list[Speed]] = {checkout: [] for checkout in chosen.checkouts}
    for _ in range(chosen.rounds):
        for checkout in chosen.checkouts:
            found[checkout].append(run(checkout, [chosen.config, *chosen.option], chosen.lines))

    base = None
    for checkout, speeds in found.items():
        middle = Speed(*(statistics.median(values) for values in zip(*speeds, strict=True)))
        base = base or middle
        ratios = [m / b for m, b in zip(middle, base, strict=True)]
        cells = [f"{m:.3g} ({r:.2f}x)" for m, r in zip(middle, ratios, strict=True)]
        sys.stdout.write(f"| {checkout} | {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()
