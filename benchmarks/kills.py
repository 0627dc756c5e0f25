"""Runs that are killed while they sample, and go on: `python benchmarks/kills.py`.

    [--kills 10]  how many

Each run of `sample.py --keep-levels` gets SIGKILL a random while after a random level was kept, and
is finished by `--resume`. All its files must then have the bytes of those of a run that nobody
killed. So must a branch at level 0 with the same seed. Writes results/kills.md. About half a
processor minute a kill.
"""

import dataclasses
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import tyro

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
SAMPLE = (sys.executable, str(ROOT / "sample.py"))
LEVELS = 16
KEPT = ("--keep-levels", "--levels", str(LEVELS))
ONE_LEVEL = 0.5
"""Seconds within which the next level is surely not kept."""
NAMED = ("branch.png", "curves.png", "curves.svg")
"""Files of a branch in which runs have names, or that others do not have."""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    kills: int = 10
    """How many runs are killed."""
    seed: int = 0
    """Of the levels and moments at which they are."""


class Kill(NamedTuple):
    level: int
    """The last one that was kept."""
    moment: float
    """Seconds after it."""
    kept: int
    """Levels that were whole when the process was gone."""
    differing: list[str]
    """Files that another run would have had otherwise."""


def run(*words: str | Path) -> None:
    subprocess.run([*SAMPLE, *map(str, words)], check=True, capture_output=True)


def kill(out: Path, level: int, moment: float) -> int:
    """Starts a run, kills it, and returns how many levels it had kept."""
    words = [*SAMPLE, *KEPT, "--out", str(out)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    levels = out / "rings.unfinished" / "levels"
    while not (levels / f"{level:02}.npz").is_file():
        if process.poll() is not None:
            raise RuntimeError(f"the run ended by itself before level {level}")
        time.sleep(0.002)
    time.sleep(moment)
    process.kill()
    process.wait()
    return len(list(levels.glob("[0-9]*.npz")))


def differing(folder: Path, whole: Path, without: tuple[str, ...] = ()) -> list[str]:
    """Names of files whose bytes are others; a manifest may differ in its clock and its place."""

    def content(root: Path, path: str) -> bytes:
        if not (root / path).is_file():
            return b""
        if path != "manifest.json":
            return (root / path).read_bytes()
        manifest = json.loads((root / path).read_text())
        left_out = ("seconds", "files", "branch") if without else ("seconds",)
        return json.dumps({k: v for k, v in manifest.items() if k not in left_out}).encode()

    paths = {
        path.relative_to(root).as_posix()
        for root in (folder, whole)
        for path in root.rglob("*")
        if path.is_file() and path.name not in without
    }
    return sorted(path for path in paths if content(folder, path) != content(whole, path))


def report(kills: list[Kill], branch: list[str], whole: Path) -> str:
    files = len([path for path in whole.rglob("*") if path.is_file()])
    same = sum(not each.differing for each in kills)
    lines = [
        "# Runs that were killed\n",
        f"Made by `python benchmarks/kills.py` with the bundled model, {LEVELS} noise levels and "
        f"`--keep-levels`: {same} of {len(kills)} runs that got SIGKILL and went on by `--resume` "
        f"have the bytes of an unbroken one in all {files} files (of the manifest, all but its "
        "seconds). A branch at level 0 with the same seed "
        + ("is the original, too.\n" if not branch else f"differs in {', '.join(branch)}.\n"),
        "| killed after level | seconds after it | whole levels | files that differ |",
        "|---|---|---|---|",
    ]
    for each in kills:
        names = ", ".join(each.differing) or "none"
        lines.append(f"| {each.level} | {each.moment:.3f} | {each.kept} | {names} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    order = tyro.cli(Benchmark, description=__doc__)
    chance, kills = random.Random(order.seed), []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run(*KEPT, "--out", folder / "whole")
        whole = folder / "whole" / "rings"
        run("--branch", whole, "--level", "0", "--seed", "0")
        branch = differing(whole.with_name("rings-level0-seed0"), whole, NAMED)
        for number in range(order.kills):
            level, moment = chance.randrange(LEVELS - 1), chance.uniform(0, ONE_LEVEL)
            out = folder / str(number)
            kept = kill(out, level, moment)
            run("--resume", out / "rings")
            kills.append(Kill(level, moment, kept, differing(out / "rings", whole)))
            # What is found so far, since it takes long.
            (RESULTS / "kills.md").write_text(report(kills, branch, whole))


if __name__ == "__main__":
    main()
