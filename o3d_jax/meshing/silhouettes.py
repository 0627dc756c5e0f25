"""Looks at Gaussians and at their density from all around, to choose how dense a surface is."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32

from o3d_jax.errors import InputError
from o3d_jax.geometry.orbits import orbit_poses, pinhole
from o3d_jax.meshing.compiled import cast_rays
from o3d_jax.meshing.field import DensityField
from o3d_jax.splat import render
from o3d_jax.types import Cameras, Gaussians

DIRECTIONS = 11
"""Directions, evenly on a sphere."""
SILHOUETTE_SIZE = 128
"""Pixels along a side of a silhouette."""
THRESHOLDS = np.geomspace(0.02, 8.0, 121)
"""Densities among which the best is taken; neighbors differ by 5 %."""
AS_GOOD = 0.005
"""Intersection over union by which a threshold may be worse than the best and still be taken."""
FOV = 30.0
"""Degrees, both ways."""
FILL = 0.95
"""Share of the picture that the ball around the grid fills."""

LEAST_DRAWN = 2048
"""Gaussians that are drawn at once, at least."""

_drawn = jax.jit(render, static_argnums=2)


class Surround(NamedTuple):
    """Cameras all around a ball."""

    poses: Float[np.ndarray, "v 4 4"]
    """camera_to_world, OpenCV axes."""
    middle: Float[np.ndarray, "3"]
    radius: float
    """Radius of the ball."""


class Seen(NamedTuple):
    """Gaussians from all around."""

    rgb: Float[np.ndarray, "v h w 3"]
    """Before black."""
    alpha: Float[np.ndarray, "v h w"]


class Cast(NamedTuple):
    """A field from all around."""

    peak: Float32[np.ndarray, "v h w"]
    """The greatest density along the ray of each pixel."""
    depth: Float32[np.ndarray, "v h w"]
    """Along the camera's z, of the surface, scene units; 0 where there is none."""


def surround(field: DensityField, views: int = DIRECTIONS) -> Surround:
    """Returns cameras in `views` directions, on a golden spiral, that see the whole grid."""
    extent = field.spacing * (np.array(field.density.shape) - 1)
    middle, radius = field.origin + extent / 2, float(np.linalg.norm(extent)) / 2
    distance = radius / (FILL * np.sin(np.deg2rad(FOV) / 2))
    k = np.arange(views) + 0.5
    elevations = np.rad2deg(np.arcsin(1 - 2 * k / views))
    azimuths = 180 * (1 + 5**0.5) * k
    poses = np.concatenate(
        [orbit_poses(e, np.array([a]), distance) for e, a in zip(elevations, azimuths, strict=True)]
    )
    poses[:, :3, 3] += middle
    return Surround(poses, middle, radius)


def draw_gaussians(gaussians: Gaussians, around: Surround, size: int) -> Seen:
    """Returns the Gaussians from these cameras, `size` pixels along a side.

    They are drawn in a world where the ball has radius 1, for `render` draws nothing near a camera,
    and with some of opacity 0 beside them, so that objects share few compiled programs.
    """
    scale = 1 / around.radius
    moved = dataclasses.replace(
        gaussians,
        means=jnp.asarray((np.asarray(gaussians.means) - around.middle) * scale, jnp.float32),
        scales=jnp.asarray(np.asarray(gaussians.scales) * scale, jnp.float32),
    )
    count = len(gaussians.means)
    room = max(LEAST_DRAWN, 1 << (count - 1).bit_length()) - count
    moved = jax.tree.map(lambda a: jnp.pad(a, [(0, room), *[(0, 0)] * (a.ndim - 1)]), moved)
    poses = around.poses.copy()
    poses[:, :3, 3] = (poses[:, :3, 3] - around.middle) * scale
    cameras = Cameras(
        camera_to_world=jnp.asarray(poses, jnp.float32),
        intrinsics=jnp.asarray(np.tile(pinhole(FOV), (len(poses), 1, 1)), jnp.float32),
    )
    drawn = _drawn(moved, cameras, (size, size), jnp.zeros(3))
    return Seen(np.asarray(drawn.rgb), np.asarray(drawn.alpha)[..., 0])


def cast_field(field: DensityField, around: Surround, size: int, threshold: float) -> Cast:
    """Returns the field from these cameras, its surface being where the density is `threshold`."""
    pictures = np.zeros((len(around.poses), 2, size, size), np.float32)
    focal = 0.5 * size / np.tan(np.deg2rad(FOV) / 2)
    for pose, picture in zip(around.poses, pictures, strict=True):
        eye = (pose[:3, 3] - field.origin) / field.spacing
        rotation = np.ascontiguousarray(pose[:3, :3])
        cast_rays(field.density, eye, rotation, float(focal), threshold, picture)
    return Cast(pictures[:, 0], pictures[:, 1] * np.float32(field.spacing))


def best_threshold(gaussians: Gaussians, field: DensityField) -> float:
    """Returns the density whose surface has the silhouettes of the Gaussians as well as can be.

    A pixel is in a surface's silhouette where the greatest density along its ray is above the
    threshold, and in that of the Gaussians where they hide more than half of what is behind. So one
    look through the grid serves all thresholds. Silhouettes hardly tell how dense a thin hard shell
    is; then it is the middle of what they allow.

    Raises:
        InputError: the Gaussians hide nothing, so that they have no silhouette.
    """
    around = surround(field)
    opaque = draw_gaussians(gaussians, around, SILHOUETTE_SIZE).alpha > 0.5
    if not opaque.any():
        raise InputError(
            "the object is nowhere more than half opaque, so it has no silhouette; give a "
            "--threshold of density, as --threshold 0.1"
        )
    peak = cast_field(field, around, SILHOUETTE_SIZE, np.inf).peak
    scores = np.array([agreement(peak > threshold, opaque) for threshold in THRESHOLDS])
    good = THRESHOLDS[scores >= scores.max() - AS_GOOD]
    return float(np.sqrt(good.min() * good.max()))


def agreement(one: Bool[np.ndarray, "*b"], other: Bool[np.ndarray, "*b"]) -> float:
    """Returns the intersection over union of two silhouettes; 1 if both are empty."""
    union = int((one | other).sum())
    return float((one & other).sum()) / union if union else 1.0
