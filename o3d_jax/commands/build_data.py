"""Packs rendered orbits for training: `python -m o3d_jax.commands.build_data RENDERED OUT`.

RENDERED is a folder of commands/render_orbits.py, or one in the release's format. Writes the TFDS
dataset OUT/orbit_renders/<version> in array_record files, whole or not at all, which
`--data.rendered OUT` trains on, with the orbits' names in a file names.txt. Needs the extra [data],
not TensorFlow.

Orbits that cannot be read are left out, each with one line that says why; the exit status is then
1. 2: nothing was written.
"""

import sys

import tyro

from o3d_jax.data.orbits.build import Build, build
from o3d_jax.errors import exit_on_input_error


@exit_on_input_error()
def main() -> None:
    """Reads the command line."""
    built = build(tyro.cli(Build, description=__doc__))
    sys.stdout.write(f"{built.folder}: {built.packed} of {built.found} orbits\n")
    raise SystemExit(int(built.packed < built.found))


if __name__ == "__main__":
    main()
