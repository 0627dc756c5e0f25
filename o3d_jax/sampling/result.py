"""The files of a result: pictures, Gaussians, a turntable, and how it was made."""

import dataclasses
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from o3d_jax.config import Config
from o3d_jax.errors import InputError
from o3d_jax.files.atomic import written_whole
from o3d_jax.files.images import save_png
from o3d_jax.geometry.released import as_drawn
from o3d_jax.geometry.upright import Up, upright
from o3d_jax.media.ply import read_ply, write_ply
from o3d_jax.media.sheets import grid
from o3d_jax.media.splat import write_splat
from o3d_jax.media.video import write_gif, write_mp4
from o3d_jax.sampling.curves import CURVES
from o3d_jax.sampling.kept import KEPT_FILES
from o3d_jax.sampling.loop import Level, orbit_cameras, view_azimuths
from o3d_jax.sampling.stages import Stages
from o3d_jax.steps.reconstruct import draw_object
from o3d_jax.types import Gaussians

ORBIT_FRAMES = 48
"""Frames of the turntable; at 20 per second it turns once in 2.4 s."""

SHOWN_FILES = ("input.png", "views.png", "renders.png", "loop.png", "orbit.gif", "orbit.mp4")
OBJECT_FILES = ("gaussians.ply", "gaussians.splat", "mesh.glb")
COMPARISON_FILE = "branch.png"
SAMPLED_FILES = (
    *SHOWN_FILES,
    *OBJECT_FILES,
    *CURVES,
    COMPARISON_FILE,
    *KEPT_FILES,
    "manifest.json",
)
"""All that a result may hold."""

LOOP_TILE = 128
"""Pixels of a tile in loop.png, which has two for each level and shown view."""

draw_turntable = jax.jit(draw_object, static_argnums=(0, 3))
"""Compiled once for all images."""


@dataclasses.dataclass(frozen=True)
class Presentation:
    """How a result is shown."""

    elevation: float
    """Degrees at which the image looks down on the object."""
    orbit_size: int
    """Pixels along a side of the turntable."""
    up: Up
    """Axes of the files of Gaussians."""


def named(folder: Path) -> Path:
    """Returns the folder by a path that ends in its name, which `.` and `..` do not."""
    return folder if folder.name not in ("", "..") else Path(os.path.abspath(folder))


def is_there(folder: Path, settings: dict[str, Any]) -> bool:
    """Returns whether a folder holds a result of these settings.

    Raises:
        InputError: it holds a result of other settings.
    """
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return False
    if others := other_settings(read_manifest(folder), settings):
        raise InputError(
            f"{folder} was made with another {', another '.join(others)}; give --overwrite to "
            "replace it, or another --out"
        )
    return True


def other_settings(there: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Returns the names of those settings that have another value there."""
    return [name for name, value in settings.items() if there.get(name) != value]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns what a result says of itself.

    Raises:
        InputError: there is no result, or its manifest is damaged.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder} holds no result; give OUT/NAME of `o3d sample`") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged; remove {folder}, or give --overwrite") from error
    if not isinstance(manifest, dict):
        raise InputError(f"{path} is damaged; remove {folder}, or give --overwrite")
    return manifest


def write_result(
    folder: Path,
    config: Config,
    levels: Sequence[Level],
    shown: Presentation,
    stages: Stages,
) -> None:
    """Writes all that levels become: pictures, Gaussians and the turntable."""
    # The files show the object upright. The turntable's cameras are still those of the method's
    # world, so it draws the object as it is there.
    gaussians = levels[-1].gaussians
    with stages.timed("pictures"):
        write_pictures(folder, config, levels)
    with stages.timed("files"):
        write_objects(folder, standing(config, gaussians, shown.elevation), shown.up)
    with stages.timed("turntable"):
        write_turntable(folder, config, gaussians, shown)


def write_pictures(folder: Path, config: Config, levels: Sequence[Level]) -> None:
    """Writes views.png and renders.png of the last level, and loop.png of all with an object."""
    last = levels[-1]
    azimuths = [f"{azimuth:g} deg" for azimuth in view_azimuths(config)]
    for name, images in (("views", last.views), ("renders", last.renders)):
        save_png(folder / f"{name}.png", grid([list(images / 255)], column_labels=azimuths))

    shown = range(0, len(last.views), max(1, len(last.views) // 4))
    drawn = [level for level in levels if level.reconstructed]
    rows = [[*level.views[shown] / 255, *level.guide[shown] / 255] for level in drawn]
    names = [f"sigma {level.sigma:.3g}" for level in drawn]
    columns = [f"{what} {azimuths[i]}" for what in ("view", "guide") for i in shown]
    save_png(folder / "loop.png", grid(rows, names, columns, LOOP_TILE, LOOP_TILE))


def write_objects(folder: Path, upright_object: Gaussians, up: Up) -> None:
    """Writes gaussians.ply and gaussians.splat in these axes."""
    write_ply(folder / "gaussians.ply", upright_object, up=up)
    write_splat(folder / "gaussians.splat", upright_object, up=up)


def write_mesh(folder: Path) -> None:
    """Writes mesh.glb of the Gaussians in a result's folder, or says why there is none."""
    from o3d_jax.meshing.colored import mesh_of_gaussians  # numba takes long to import.
    from o3d_jax.meshing.glb import write_glb

    try:
        write_glb(folder / "mesh.glb", mesh_of_gaussians(read_ply(folder / "gaussians.ply")))
    except InputError as error:  # The rest of the result is good without it.
        print(f"no mesh.glb: {error}")


def standing(config: Config, gaussians: Gaussians, elevation: float) -> Gaussians:
    """Returns an object as others are to show it: upright, with rotations that they draw as we do.

    `elevation` is the input's, in degrees.
    """
    return upright(as_drawn(gaussians, config.model.lgm.rotation_norm), elevation)


def write_turntable(
    folder: Path, config: Config, gaussians: Gaussians, shown: Presentation
) -> None:
    """Writes orbit.gif, and orbit.mp4 where there is ffmpeg."""
    azimuths = np.arange(ORBIT_FRAMES) * (360 / ORBIT_FRAMES)
    cameras = orbit_cameras(config, shown.elevation, azimuths)
    size = (shown.orbit_size, shown.orbit_size)
    frames = np.asarray(draw_turntable(config.model.lgm, gaussians, cameras, size).rgb)
    write_gif(folder / "orbit.gif", frames)
    if not write_mp4(folder / "orbit.mp4", frames):
        missing = "there is no ffmpeg with a codec; orbit.gif shows the same"
        sys.stdout.write(f"no orbit.mp4: {missing}\n")


def write_manifest(
    folder: Path, origin: dict[str, str], settings: dict[str, Any], seconds: dict[str, float]
) -> None:
    """Writes how to make this result again; `origin` has the paths that it came from."""
    packages = {p: version(p) for p in ("jax", "jaxlib", "flax", "diffrax", "numpy", "pillow")}
    manifest = {
        **origin,
        **settings,
        "versions": {"python": platform.python_version()} | packages,
        "device": str(jax.devices()[0].device_kind),
        "seconds": seconds,
        "files": _files_in(folder),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def list_files_anew(folder: Path) -> None:
    """Makes the manifest of a result name a file that was added later."""
    manifest = read_manifest(folder)
    with written_whole(folder / "manifest.json") as temporary:
        temporary.write_text(json.dumps(manifest | {"files": _files_in(folder)}, indent=1))


def _files_in(folder: Path) -> list[str]:
    """The files of a result but for the manifest, which may be there or may be written next."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    hidden = (".", "manifest.json")  # Hidden ones are only begun.
    return sorted(path for path in paths if not path.startswith(hidden))
