"""Two scenes to time a rasterizer on, made by numpy from a seed.

`uniform` fills the cube [-1, 1]^3 with small Gaussians of every opacity: much overdraw, little
hidden. `surface` is what a reconstruction network with one Gaussian a pixel (LGM) lays out: four
views of a bumpy blob, opaque where a ray hits it and nearly transparent where none does.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from o3d_jax.geometry.orbits import orbit_poses, pinhole
from o3d_jax.types import Cameras, Gaussians

Kind = Literal["uniform", "surface"]
KINDS: tuple[Kind, ...] = ("uniform", "surface")

FOV = 49.1  # degrees, as LGM's cameras
RADIUS = 1.5  # scene units, of all orbits
ELEVATION = 5.0  # degrees
SURFACE_VIEWS = 4  # that lay Gaussians
MARCH_STEPS, MARCH_START, MARCH_RATE = 60, 0.7, 0.7
HIT = 0.01  # scene units from the surface

Points = Float[np.ndarray, "n 3"]


class Scene(NamedTuple):
    """Float32, with no axis of objects."""

    gaussians: Gaussians
    cameras: Cameras


def build_scene(kind: Kind, count: int, views: int, seed: int = 0) -> Scene:
    """`count` Gaussians seen from `views` cameras around them, the first at azimuth 0.

    The surface needs `count` to be 4 times a square.
    """
    random = np.random.default_rng(seed)
    gaussians = _uniform(count, random) if kind == "uniform" else _surface(count, random)
    poses = orbit_poses(ELEVATION, np.arange(views) * 360 / views, RADIUS)
    return Scene(
        gaussians=gaussians,
        cameras=Cameras(
            camera_to_world=jnp.asarray(poses, jnp.float32),
            intrinsics=jnp.asarray(np.tile(pinhole(FOV), (views, 1, 1)), jnp.float32),
        ),
    )


def within_clamp(gaussians: Gaussians, most: float) -> Gaussians:
    """The same with no opacity above `most`, so that no renderer clamps an alpha."""
    return dataclasses.replace(gaussians, opacities=jnp.minimum(gaussians.opacities, most))


def _uniform(count: int, random: np.random.Generator) -> Gaussians:
    """Scales log-uniform in 0.005 ... 0.03, opacities uniform in 0.05 ... 1."""
    return _gaussians(
        means=random.uniform(-1, 1, (count, 3)),
        scales=np.exp(random.uniform(np.log(0.005), np.log(0.03), (count, 3))),
        quats=random.normal(size=(count, 4)),
        opacities=random.uniform(0.05, 1, count),
        colors=random.uniform(0, 1, (count, 3)),
    )


def _surface(count: int, random: np.random.Generator) -> Gaussians:
    """One Gaussian a pixel of each of four views; scales log-normal around 0.009."""
    side = round((count / SURFACE_VIEWS) ** 0.5)
    if SURFACE_VIEWS * side**2 != count:
        raise ValueError(f"{count} Gaussians are not {SURFACE_VIEWS} times a square")
    means, opacities = [], []
    for pose in orbit_poses(0.0, np.arange(SURFACE_VIEWS) * 360 / SURFACE_VIEWS, RADIUS):
        rays = _pixel_rays(pose, side)
        points = _march(pose[:3, 3], rays)
        hit = np.abs(_distance(points)) < HIT
        rough = points + random.normal(size=points.shape) * 0.004
        anywhere = pose[:3, 3] + rays * random.uniform(0.8, 2.2, (len(rays), 1))
        solid = np.clip(random.normal(0.85, 0.15, len(rays)), 0.05, 0.999)
        faint = np.exp(random.uniform(np.log(1e-4), np.log(0.02), len(rays)))
        means.append(np.where(hit[:, None], rough, anywhere))
        opacities.append(np.where(hit, solid, faint))
    clipped = np.clip(np.concatenate(means), -1, 1)
    return _gaussians(
        means=clipped,
        scales=np.exp(random.normal(np.log(0.009), 0.45, (count, 3))).clip(0.002, 0.05),
        quats=random.normal(size=(count, 4)),
        opacities=np.concatenate(opacities),
        colors=0.5 + 0.5 * np.sin(4 * clipped + np.arange(3)),
    )


def _pixel_rays(pose: Float[np.ndarray, "4 4"], side: int) -> Points:
    """Unit vectors in the world through the centers of side x side pixels, row by row."""
    at = np.tan(np.deg2rad(FOV) / 2) * ((np.arange(side) + 0.5) / side * 2 - 1)
    x, y = np.meshgrid(at, at)
    rays = np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3)
    return rays / np.linalg.norm(rays, axis=1, keepdims=True) @ pose[:3, :3].T


def _march(eye: Float[np.ndarray, "3"], rays: Points) -> Points:
    """Where each ray meets the blob; somewhere else if it does not."""
    traveled = np.full(len(rays), MARCH_START)
    for _ in range(MARCH_STEPS):
        traveled = traveled + MARCH_RATE * _distance(eye + rays * traveled[:, None])
    return eye + rays * traveled[:, None]


def _distance(points: Points) -> Float[np.ndarray, " n"]:
    """About the signed distance from an ellipsoid with waves on it, scene units."""
    x, y, z = points.T
    waves = 0.06 * np.sin(6 * x + 2) * np.sin(7 * y) * np.sin(5 * z + 1)
    return np.linalg.norm(points * np.array([1, 0.8, 1.1]), axis=1) - 0.45 - waves


def _gaussians(**fields: Float[np.ndarray, "..."]) -> Gaussians:
    return Gaussians(**{name: jnp.asarray(x, jnp.float32) for name, x in fields.items()})
