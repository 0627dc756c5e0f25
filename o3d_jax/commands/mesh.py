"""A closed triangle mesh of an object that was sampled: `o3d mesh OUT/NAME ...`.

    [--texture 1024]    a texture, baked from renders; without, each vertex has a color
    [--resolution 128]  steps of the grid on which the surface is found

Writes mesh.glb (y up, as glTF has it) into each folder. A .ply or .splat file of Gaussians may
stand for a folder; its mesh goes beside it, as NAME.glb. The surface is where the Gaussians are so
dense that its silhouettes agree best with theirs. Needs the extra: pip install 'o3d_jax[mesh]'.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from o3d_jax.cli import parse, use_compilation_cache
from o3d_jax.errors import InputError
from o3d_jax.geometry.upright import Up
from o3d_jax.media.ply import read_ply
from o3d_jax.media.splat import read_splat
from o3d_jax.meshing.colored import MeshPlan, mesh_of_gaussians
from o3d_jax.meshing.extra import check_mesh_packages
from o3d_jax.meshing.glb import write_glb
from o3d_jax.sampling.result import list_files_anew
from o3d_jax.types import Gaussians


@dataclass(frozen=True)
class MeshArguments:
    """Closed triangle meshes of objects."""

    objects: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="OUT ...")]
    """Folders that sample.py wrote, or .ply or .splat files of Gaussians."""
    plan: Annotated[MeshPlan, tyro.conf.arg(name="")] = field(default_factory=MeshPlan)
    up: Up | None = None
    """Axes of the files; by default those that a .ply names, or y-down."""
    drop_bad: tyro.conf.FlagCreatePairsOff[bool] = False
    """Leave out Gaussians that are not finite, as some programs write them."""


def main(arguments: list[str], program: str) -> None:
    """Reads the command line."""
    order = parse(MeshArguments, arguments, prog=program, description=__doc__)
    check_mesh_packages(with_texture=order.plan.texture > 0)
    if not order.objects:
        raise InputError(f"no object; give one that sample.py wrote, as `{program} out/rings`")
    use_compilation_cache()
    files = [_gaussians_of(path) for path in order.objects]
    for file in files:
        mesh = mesh_of_gaussians(_read(file, order), order.plan)
        target = file.with_name("mesh.glb" if file.name == "gaussians.ply" else f"{file.stem}.glb")
        write_glb(target, mesh)
        if target.name == "mesh.glb" and (target.parent / "manifest.json").is_file():
            list_files_anew(target.parent)
        sys.stdout.write(
            f"{target}: {len(mesh.faces)} triangles, at density {mesh.threshold:.3g}\n"
        )


def _gaussians_of(path: Path) -> Path:
    """Returns the file of Gaussians that a path means.

    Raises:
        InputError: there is none.
    """
    if path.is_file() and path.suffix.lower() in (".ply", ".splat"):
        return path
    if path.is_file():
        raise InputError(f"{path} is no folder, .ply or .splat; give what sample.py wrote")
    if (path / "gaussians.ply").is_file():
        return path / "gaussians.ply"
    inside = sorted(found.parent for found in path.glob("*/gaussians.ply"))
    meant = f"; did you mean {inside[0]}?" if inside else "; give a folder that sample.py wrote"
    raise InputError(f"there is no {path / 'gaussians.ply'}{meant}")


def _read(file: Path, order: MeshArguments) -> Gaussians:
    if file.suffix.lower() == ".ply":
        return read_ply(file, order.drop_bad, order.up)
    return read_splat(file, order.drop_bad, order.up or "y-down")
