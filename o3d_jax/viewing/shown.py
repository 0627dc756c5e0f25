"""A result as a viewer shows it: upright, with the cameras of its views, level by level."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from o3d_jax.config import Config
from o3d_jax.errors import InputError
from o3d_jax.files.images import load_image, to_bytes
from o3d_jax.geometry.upright import turn_about_x
from o3d_jax.media.gaussians import MIN_OPACITY
from o3d_jax.media.ply import read_ply
from o3d_jax.media.sheets import row_of
from o3d_jax.sampling.kept import load_levels
from o3d_jax.sampling.loop import Level, orbit_cameras, view_azimuths
from o3d_jax.sampling.result import read_manifest, standing
from o3d_jax.types import Cameras, Gaussians
from o3d_jax.weights.checkpoint import config_from_dict


class ShownLevel(NamedTuple):
    """What there is to see of one noise level."""

    title: str
    gaussians: Gaussians
    """Upright: y up, and the input view in front, which is +z."""
    views: UInt8[np.ndarray, "v h w 3"]
    renders: UInt8[np.ndarray, "v h w 3"]


@dataclasses.dataclass(frozen=True)
class ShownResult:
    """A result, read to be looked at."""

    name: str
    looks: Sequence[ShownLevel]
    """The noise levels from high to low; the last one is the result."""
    cameras: Cameras
    """The cameras of the views, around the upright object."""
    mesh: bytes | None
    """A .glb file."""


def read_shown(folder: Path) -> ShownResult:
    """Returns the result in a folder, with its noise levels where these were kept.

    Raises:
        InputError: there is no result, or it is damaged.
    """
    manifest = read_manifest(folder)
    try:
        config = config_from_dict(manifest["config"])
        elevation, up = float(manifest["elevation"]), manifest["up"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder} is of an older version, or damaged; make it once more with --overwrite"
        ) from error

    # Without kept levels there is the last one alone, in the files for people.
    levels = [level for level in load_levels(folder / "levels") if level.reconstructed]
    looks = [look_at(config, level, elevation) for level in levels]
    if not looks:
        views, renders = (_sheet(folder / f"{n}.png", config) for n in ("views", "renders"))
        gaussians = read_ply(folder / "gaussians.ply", up=up)
        looks = [ShownLevel("result", gaussians, views, renders)]

    mesh = folder / "mesh.glb"
    return ShownResult(
        name=folder.absolute().name,
        looks=looks,
        cameras=upright_cameras(config, elevation),
        mesh=mesh.read_bytes() if mesh.is_file() else None,
    )


def look_at(config: Config, level: Level, elevation: float) -> ShownLevel:
    """Returns what there is to see of a noise level; `elevation` is the input's, in degrees."""
    gaussians = standing(config, level.gaussians, elevation)
    seen = np.asarray(gaussians.opacities) >= MIN_OPACITY  # As in the files.
    return ShownLevel(
        title=f"sigma {level.sigma:.3g}",
        gaussians=jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[seen]), gaussians),
        views=level.views,
        renders=level.renders,
    )


def upright_cameras(config: Config, elevation: float) -> Cameras:
    """Returns the cameras of the views, around the upright object."""
    cameras = orbit_cameras(config, elevation, view_azimuths(config))
    turn = np.eye(4, dtype=np.float32)
    turn[:3, :3] = turn_about_x(-elevation)
    poses = jnp.asarray(turn @ np.asarray(cameras.camera_to_world))
    return dataclasses.replace(cameras, camera_to_world=poses)


def _sheet(path: Path, config: Config) -> UInt8[np.ndarray, "v h w 3"]:
    sheet = load_image(path)[..., :3]
    return to_bytes(np.stack(row_of(sheet, config.model.num_views)))
