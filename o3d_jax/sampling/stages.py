"""Where the seconds of a run go: stage by stage, for its manifest and for `--profile`."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tqdm import tqdm

from o3d_jax.sampling.loop import Found

STAGE_TITLES = {
    "start": "start and imports",
    "model": "model, read",
    "input": "input, cut out",
    "sampling": "sampling",
    "programs": "  programs, compiled or loaded",
    "level": "  each level, mean",
    "pictures": "pictures",
    "files": "files of Gaussians",
    "turntable": "turntable",
    "mesh": "mesh",
    "kept": "curves and kept levels",
}
"""All stages in their order, and how a table calls them; what is indented is part of `sampling`."""


class Stages:
    """Seconds by stage, of one result."""

    def __init__(self, before: Mapping[str, float]) -> None:
        """Begins to count; `before` are stages that were over already."""
        self.seconds = dict(before)
        self._begun = time.perf_counter() - sum(before.values())

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Notes how many seconds the block took, and says so."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        sys.stdout.write(f"{name}: {self.seconds[name]:.1f} s\n")

    def watched(self, found: Iterator[Found], levels: int, first: int = 0) -> Iterator[Found]:
        """Yields what noise levels find, moves a bar, and notes what programs and levels took.

        The first level to come waits for the compiled programs, the others do not: that is how the
        two are told apart. `levels` is the number of all, `first` that of those done before.
        """
        took: list[float] = []
        with tqdm(desc="noise levels", total=levels, unit="level", initial=first) as bar:
            since = time.perf_counter()
            for each in found:
                took.append(time.perf_counter() - since)
                bar.update()
                yield each
                since = time.perf_counter()

        if len(took) > 1:
            self.seconds["level"] = sum(took[1:]) / (len(took) - 1)
            self.seconds["programs"] = took[0] - self.seconds["level"]

    def so_far(self) -> dict[str, float]:
        """Returns the seconds of all stages, and `all`: what went by until now."""
        in_all = {"all": time.perf_counter() - self._begun}
        return {name: round(value, 3) for name, value in (self.seconds | in_all).items()}


def seconds_since_start() -> float:
    """Returns for how long this process has been running.

    Where Linux's /proc is missing, it is how long its processors worked, which is about the same as
    long as it only imports.
    """
    try:
        # The 22nd field of proc(5), the 20th behind the name, which may have spaces in it.
        started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        ticks = os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(started) / ticks
    except (OSError, AttributeError):
        return time.process_time()


def seconds_table(seconds: Mapping[str, float]) -> str:
    """Returns a manifest's seconds as lines, with what belongs to no stage as the rest."""
    rows = [(title, seconds[name]) for name, title in STAGE_TITLES.items() if name in seconds]
    known = sum(value for title, value in rows if title[0] != " ")
    rows += [("rest", seconds["all"] - known), ("in all", seconds["all"])]
    return "\n".join(f"{title:32}{value:8.2f} s" for title, value in rows)
