"""Finds what is wrong with rendered orbits: `o3d data inspect RENDERED`.

Prints a table of all orbits below RENDERED, then a line for each problem: poses that are not
finite, mirrored, sheared, off the sphere or turned away, missing, damaged or opaque frames, empty
or cropped silhouettes, maps that do not fit. Exit status 0: none; 1: some; 2: nothing to inspect.

With `--out FOLDER`, also draws each orbit into FOLDER/<name>.png: cameras as frustums, seen from
above and from the side, and the box of the object over every frame.
"""

import sys

from o3d_jax.cli import parse
from o3d_jax.data.orbits.inspection import Inspect, inspect, inspection_report


def main(arguments: list[str], program: str) -> None:
    """Reads the command line."""
    rows = inspect(parse(Inspect, arguments, prog=program, description=__doc__))
    sys.stdout.write(inspection_report(rows))
    raise SystemExit(int(any(row.problems for row in rows)))
