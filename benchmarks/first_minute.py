"""How long `sample.py` of two checkouts takes: `python benchmarks/first_minute.py A B`.

    [--runs 5]  of each checkout, in turns
    [--first-runs 5]  how many of them begin without compiled programs

All make the bundled example's object with the bundled model. A first run has an empty compilation
cache, a second one that of the first. Writes results/first_minute.md: medians of seconds on the
clock and of the processors, what the last second run of B says of its stages, and whether all of
gaussians.ply have the same bytes.
"""

import dataclasses
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from o3d_jax.sampling.stages import seconds_table

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    checkouts: Annotated[tuple[Path, Path], tyro.conf.Positional]
    """Folders with a sample.py: before and after."""
    runs: int = 5
    """Second runs of each."""
    first_runs: int = 5
    """First runs of each."""


class Took(NamedTuple):
    wall: float
    processors: float
    digest: str
    """Of gaussians.ply."""
    seconds: dict[str, float]
    """What the manifest says."""


def run(checkout: Path, cache: Path) -> Took:
    with tempfile.TemporaryDirectory() as out:
        environment = os.environ | {"PYTHONPATH": str(checkout), "XDG_CACHE_HOME": str(cache)}
        command = [sys.executable, str(checkout / "sample.py"), "--out", out]
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=checkout,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        if status:
            raise SystemExit(f"{checkout}: sample.py ended with status {status}")
        folder = Path(out) / "rings"
        digest = hashlib.sha256((folder / "gaussians.ply").read_bytes()).hexdigest()
        seconds = json.loads((folder / "manifest.json").read_text())["seconds"]
    return Took(wall, usage.ru_utime + usage.ru_stime, digest, seconds)


def measure(order: Benchmark) -> dict[tuple[str, int], list[Took]]:
    """Runs by kind, first or second, and by checkout, in turns."""
    found: dict[tuple[str, int], list[Took]] = {}
    with tempfile.TemporaryDirectory() as place:
        caches = [Path(place) / str(i) for i in range(2)]
        for turn in range(max(order.runs, order.first_runs)):
            for i, checkout in enumerate(order.checkouts):
                if turn < order.first_runs:
                    caches[i] = Path(place) / f"{i}-{turn}"
                    found.setdefault(("first", i), []).append(run(checkout, caches[i]))
                if turn < order.runs:
                    found.setdefault(("second", i), []).append(run(checkout, caches[i]))
    return found


def report(found: dict[tuple[str, int], list[Took]]) -> str:
    lines = [
        "# The first minute\n",
        "Made by `python benchmarks/first_minute.py A B`, in turns on two shared cores. Medians, "
        "and the range in brackets; seconds on the clock also tell of other jobs.\n",
        "| run | checkout | runs | processor seconds | seconds on the clock |",
        "|---|---|---|---|---|",
    ]
    for kind in ("first", "second"):
        for i, name in enumerate(("A", "B")):
            own = found.get((kind, i), [])
            if own:
                cells = [_cell([took.processors for took in own]), _cell([t.wall for t in own])]
                lines.append(f"| {kind} | {name} | {len(own)} | {' | '.join(cells)} |")

    digests = {took.digest for own in found.values() for took in own}
    lines.append(f"\nFiles `gaussians.ply` with different bytes: {len(digests) - 1}.\n")
    last = found["second", 1][-1].seconds
    lines.append(f"Stages of B's last second run, on the clock:\n\n```\n{seconds_table(last)}\n```")
    return "\n".join(lines) + "\n"


def _cell(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} .. {max(values):.1f})"


def main() -> None:
    text = report(measure(tyro.cli(Benchmark, description=__doc__)))
    (RESULTS / "first_minute.md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
