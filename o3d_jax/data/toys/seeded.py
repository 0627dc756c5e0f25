"""Endless toy objects with exact truth: a seed gives an object, and an orbit of views of it.

Everything follows from the seed, bit for bit on one machine. Lights are fixed to the object, and
surfaces are matt, so that colors agree between views.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from o3d_jax.config import CameraConfig
from o3d_jax.data.toys.assembly import Toy, assemble
from o3d_jax.data.toys.palette import Kit, draw_kit
from o3d_jax.data.toys.parts import Part
from o3d_jax.data.toys.templates import creatures, things, vehicles
from o3d_jax.data.toys.tracing import Eye, Image, draw_toy
from o3d_jax.geometry.orbits import orbit, orbit_poses, pinhole
from o3d_jax.types import Cameras

TOYS_VERSION = 1
"""A number that whoever changes what any seed looks like raises: other caches are drawn anew.

The pixels that it stands for are in tests/data/toys, where a test compares them.
"""

TEMPLATES: tuple[Callable[[Kit], list[Part]], ...] = (
    creatures.snowman,
    creatures.quadruped,
    creatures.quadruped,
    creatures.bird,
    creatures.robot,
    creatures.mushroom,
    creatures.tree,
    creatures.cactus,
    creatures.flower,
    creatures.pumpkin,
    creatures.fish,
    creatures.caterpillar,
    things.table,
    things.chair,
    things.lamp,
    vehicles.rocket,
    vehicles.castle_tower,
    vehicles.house,
    vehicles.car,
    vehicles.airplane,
    vehicles.boat,
    things.dish,
    things.chess_piece,
    things.ring_tower,
    things.treat,
    things.gift,
    things.trophy,
    things.planet,
    things.composition,
    things.composition,
    things.composition,
)
"""The kinds of objects, all equally likely; some stand here twice."""


SMALLEST, LARGEST = 0.52, 0.6
"""Bounding radii of objects, scene units. At radius 1.5 and 49.1 degrees a ball of 0.623 fits."""


def make_toy(seed: int) -> Toy:
    """Returns the object of a seed."""
    rng = np.random.default_rng((seed, 0))
    template = TEMPLATES[rng.integers(len(TEMPLATES))]
    return assemble(template(draw_kit(rng)), radius=rng.uniform(SMALLEST, LARGEST))


@dataclass(frozen=True)
class Orbit:
    """All views of one object, from cameras evenly spaced on a circle, with exact truth."""

    rgba: UInt8[np.ndarray, "v h w 4"]
    """Straight alpha; edges are antialiased."""
    depth: Float[np.ndarray, "v h w 1"]
    """Depth along the camera's z at pixel centers, scene units; 0 where empty."""
    position: Float[np.ndarray, "v h w 3"]
    """The surface's place in the world, scene units; 0 where empty."""
    cameras: Cameras
    """In the object's own world: y up, the object around the origin."""


def orbit_elevation(seed: int, elevation_range: tuple[float, float]) -> float:
    """Returns the elevation of an object's orbit in degrees, uniform in the range (Sec. 4.1)."""
    return float(np.random.default_rng((seed, 1)).uniform(*elevation_range))


def orbit_azimuths(seed: int, frames: int) -> Float[np.ndarray, " {frames}"]:
    """Returns the azimuths of an object's frames in degrees, evenly spaced from a random one on."""
    start = float(np.random.default_rng((seed, 2)).uniform(0.0, 360.0))
    return start + 360.0 / frames * np.arange(frames)


def render_orbit(
    seed: int,
    size: int,
    *,
    frames: int = 16,
    camera: CameraConfig,
    elevation_range: tuple[float, float] = (-5.0, 30.0),
) -> Orbit:
    """Returns an object's orbit; `size` is the width and height of a view in pixels.

    Raises:
        ValueError: the camera is in the ball that objects fill, or a size or range is impossible.
    """
    check_orbit(size, frames, camera, elevation_range)
    toy = make_toy(seed)
    elevation, azimuths = orbit_elevation(seed, elevation_range), orbit_azimuths(seed, frames)
    focal = float(pinhole(camera.fov)[0, 0])
    made = Orbit(
        rgba=np.zeros((frames, size, size, 4), np.uint8),
        depth=np.zeros((frames, size, size, 1), np.float32),
        position=np.zeros((frames, size, size, 3), np.float32),
        cameras=orbit(elevation, azimuths, camera.radius, camera.fov),
    )
    for i, pose in enumerate(orbit_poses(elevation, azimuths, camera.radius)):
        eye = Eye(pose[:3, 3].copy(), np.ascontiguousarray(pose[:3, :3]), focal, toy.ball)
        draw_toy(toy.solid, eye, Image(made.rgba[i], made.depth[i], made.position[i]))
    return made


def check_orbit(
    size: int, frames: int, camera: CameraConfig, elevation_range: tuple[float, float]
) -> None:
    """Raises a ValueError for what cannot be rendered."""
    low, high = elevation_range
    if not -90 < low <= high < 90:
        raise ValueError(f"elevation range {elevation_range} must rise within (-90, 90) degrees")
    if camera.radius <= LARGEST:
        raise ValueError(
            f"camera.radius {camera.radius} must exceed {LARGEST}, the objects' radius"
        )
    if not 0 < camera.fov < 180:
        raise ValueError(f"camera.fov {camera.fov} must be between 0 and 180 degrees")
    if size < 1 or frames < 1:
        raise ValueError(f"an orbit of {frames} frames of {size} pixels is empty")
