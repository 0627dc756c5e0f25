"""Renders models to orbits (Sec. 4.1): `o3d data render MODELS OUT`.

Every .glb, .gltf, .obj and .ply below MODELS is moved into view and drawn from 2 circles of 16
cameras, in the release's folder format: OUT/<name>/<orbit>/meta.json and render_0000.png, ...; a
name is the path below MODELS without suffix, with "__" for "/". OUT/train.txt lists the orbits,
OUT/failures.txt what could not be rendered, OUT/contact_sheet.png shows some. To go on after a
break, run it again.
"""

from o3d_jax.cli import parse
from o3d_jax.data.meshes.rendering import RenderOrbits, render_orbits


def main(arguments: list[str], program: str) -> None:
    """Reads the command line."""
    order = parse(RenderOrbits, arguments, prog=program, description=__doc__)
    raise SystemExit(render_orbits(order))
