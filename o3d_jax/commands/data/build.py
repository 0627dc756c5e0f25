"""Packs rendered orbits for training: `o3d data build RENDERED OUT`.

RENDERED is a folder of `o3d data render`, or one in the release's format. Writes the TFDS
dataset OUT/orbit_renders/<version> in array_record files, whole or not at all, which
`--data.rendered OUT` trains on, with the orbits' names in a file names.txt. Needs the extra [data],
not TensorFlow.

Orbits that cannot be read are left out, each with one line that says why; the exit status is then
1. 2: nothing was written.
"""

import sys

from o3d_jax.cli import parse
from o3d_jax.data.orbits.build import Build, build


def main(arguments: list[str], program: str) -> None:
    """Reads the command line."""
    built = build(parse(Build, arguments, prog=program, description=__doc__))
    sys.stdout.write(f"{built.folder}: {built.packed} of {built.found} orbits\n")
    raise SystemExit(int(built.packed < built.found))
