"""Renders models to orbits (Sec. 4.1): `python -m o3d_jax.commands.render_orbits MODELS OUT`.

Every .glb, .gltf, .obj and .ply below MODELS is moved into view and drawn from 2 circles of 16
cameras, in the release's folder format: OUT/<name>/<orbit>/meta.json and render_0000.png, ...; a
name is the path below MODELS without suffix, with "__" for "/". OUT/train.txt lists the orbits,
OUT/failures.txt what could not be rendered, OUT/contact_sheet.png shows some. To go on after a
break, run it again.
"""

import sys

from o3d_jax.cli import parse
from o3d_jax.data.meshes.rendering import RenderOrbits, render_orbits
from o3d_jax.errors import exit_on_input_error


@exit_on_input_error()
def main() -> None:
    """Reads the command line."""
    order = parse(RenderOrbits, sys.argv[1:], prog="render_orbits", description=__doc__)
    raise SystemExit(render_orbits(order))


if __name__ == "__main__":
    main()
