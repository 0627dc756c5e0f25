"""An object as the files that people take with them, in memory."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from o3d_jax.config import Config
from o3d_jax.media.ply import read_ply
from o3d_jax.meshing.colored import mesh_of_gaussians
from o3d_jax.meshing.extra import check_mesh_packages
from o3d_jax.meshing.glb import glb_bytes
from o3d_jax.sampling.result import write_objects
from o3d_jax.viewing.page import page_of
from o3d_jax.viewing.shown import ShownLevel, ShownResult, upright_cameras

DOWNLOADS = ("ply", "splat", "glb", "html")


class MadeInDemo(NamedTuple):
    """What a sampling in the demo came to."""

    name: str
    config: Config
    elevation: float
    levels: Sequence[ShownLevel]


def file_of(made: MadeInDemo, kind: str) -> bytes:
    """Returns the bytes of a file of one of DOWNLOADS, as `o3d sample` and `view` write them.

    Raises:
        InputError: a mesh was asked for, and its packages are not installed.
    """
    upright_object = made.levels[-1].gaussians
    if kind == "html":
        cameras = upright_cameras(made.config, made.elevation)
        shown = ShownResult(name=made.name, looks=made.levels, cameras=cameras, mesh=None)
        return page_of(shown, with_levels=False, with_cameras=False).encode()
    if kind == "glb":
        check_mesh_packages()
    with tempfile.TemporaryDirectory(prefix="o3d-demo-") as folder:
        write_objects(Path(folder), upright_object, "y-down")
        if kind == "glb":  # From the file, for its rounding, as `o3d sample --mesh` does it.
            return glb_bytes(mesh_of_gaussians(read_ply(Path(folder) / "gaussians.ply")))
        return (Path(folder) / f"gaussians.{kind}").read_bytes()
