"""Damaged files are refused by every reader in one line, soon and without much memory.

Some seconds' worth; `support/fuzz.py` says how to give a reader 100,000 of them.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COUNT = 250
READERS = ("gltf", "obj", "ply", "gaussians", "splat", "safetensors", "orbit", "ids")
READERS += ("image", "protocol", "config.json", "config.py")


def fuzz(*options):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, "-m", "support.fuzz", *options]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory by Linux's counters")
def test_damaged_files_are_refused_in_one_line_soon_and_without_much_memory():
    result = fuzz("--count", str(COUNT))
    assert result.returncode == 0, result.stdout + result.stderr
    lines = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert tuple(lines) == READERS
    for name, said in lines.items():
        words = said.split()  # COUNT inputs, X refused, Y read, ...
        # Enough of both kinds: what is never read or never refused tests nothing.
        assert int(words[2]) > 0.1 * COUNT and int(words[4]) > 0.01 * COUNT, (name, said)


def test_a_reader_that_raises_hangs_or_swells_is_found():
    result = fuzz("--count", "4", "--reader", "planted", "--seconds", "0.5")
    assert result.returncode == 1
    for words in ("ZeroDivisionError: planted", "more than", "MiB for files of", "says 'a\\nb'"):
        assert words in result.stdout, result.stdout
