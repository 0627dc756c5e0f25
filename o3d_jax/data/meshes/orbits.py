"""From a model file to rendered orbits (Sec. 4.1)."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from o3d_jax.data.meshes.drawing import draw_orbit, prepare_scene
from o3d_jax.data.meshes.mesh import Mesh
from o3d_jax.data.meshes.reading import SAFE_FILL, fit, read_mesh, visible_radius
from o3d_jax.data.orbits.folder import RenderedOrbit
from o3d_jax.errors import InputError
from o3d_jax.geometry.orbits import orbit_poses

LOOK = 2
"""A number that whoever changes how a model comes out raises, so that sets of images don't mix.

Then COMPILED_IN is raised as well, in picture.py and rasterize.py. The pixels that it stands for
are in tests/data/meshes, where a test compares them.
"""


@dataclass(frozen=True)
class OrbitPlan:
    """What is drawn of each model; all that an image depends on besides the model and its name."""

    size: int = 512
    """Pixels along a side of a frame (paper: 512)."""
    orbits: int = 2
    """Orbits of each model (paper: 2)."""
    frames: int = 16
    """Frames of an orbit, at even steps of azimuth from the front on (paper: 16)."""
    elevation: tuple[float, float] = (-5.0, 30.0)
    """Degrees; each orbit's is drawn evenly from this range (paper: -5 to 30)."""
    radius: float = 1.5
    """Radius of the orbits, scene units (LGM: 1.5; release: 1.7417)."""
    fov: float = 49.1
    """Field of view in degrees, both ways (LGM: 49.1; release: 39.6)."""
    fit: Literal["view", "cube"] = "view"
    """How large a model is, around the center of its box. "view": its longest side 1, or less so
    that nothing is cropped; "cube": its longest side 2, to fill [-1, 1]^3, whatever is cropped."""
    up: Literal["y", "z"] = "y"
    """The models' axis that points up; glTF says y, OBJ and PLY leave it open."""
    maps: bool = False
    """Whether depth and position are kept beside the images."""
    seed: int = 0
    """Seed of the elevations, together with each model's name."""

    def __post_init__(self) -> None:
        """Raises an InputError for values that no camera can have."""
        low, high = self.elevation
        bounds = (
            ("size", self.size, 8 <= self.size <= 4096, "8 to 4096"),
            ("orbits", self.orbits, self.orbits >= 1, "1 or more"),
            ("frames", self.frames, self.frames >= 1, "1 or more"),
            (
                "elevation",
                self.elevation,
                -89 <= low <= high <= 89,
                "rising within -89 .. 89",
            ),
            ("fov", self.fov, 1 <= self.fov <= 120, "1 to 120"),
            ("radius", self.radius, 0.1 <= self.radius <= 1e3, "0.1 to 1000"),
        )
        for name, value, fine, allowed in bounds:
            if not fine:
                raise InputError(f"--{name} {value} is not {allowed}")

        if self.fit == "cube" and self.radius < 1.75:
            raise InputError(
                f"--radius {self.radius} is inside the cube's corners, which --fit cube fills; "
                "raise it to 1.75 at least, or use --fit view"
            )

    def elevations(self, name: str) -> Float[np.ndarray, " orbits"]:
        """Returns the elevations of the orbits of the model of a name, degrees."""
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:16], "little"))
        return generator.uniform(*self.elevation, self.orbits)

    def poses(self, name: str) -> Float[np.ndarray, "orbits frames 4 4"]:
        """Returns camera_to_world (OpenCV axes) for the model of a name."""
        azimuths = np.arange(self.frames) * 360 / self.frames
        return np.stack(
            [orbit_poses(float(e), azimuths, self.radius) for e in self.elevations(name)]
        )


class RenderedModel(NamedTuple):
    """What is drawn of a model."""

    orbits: list[RenderedOrbit]
    """The orbits, named `<name>/<number>`."""
    remarks: tuple[str, ...]
    """What its owner should know, each part of a sentence."""


def fitted_mesh(path: Path, plan: OrbitPlan, max_bytes: int) -> Mesh:
    """Returns a model where and as large as it is rendered.

    Raises:
        InputError: it cannot be read, or has no shape.
    """
    mesh = read_mesh(path, max_bytes, plan.up)
    if plan.fit == "view":
        return fit(mesh, 1.0, SAFE_FILL * visible_radius(plan.radius, plan.fov))
    return fit(mesh, 2.0, np.inf)


def render_model(path: Path, name: str, plan: OrbitPlan, max_bytes: int) -> RenderedModel:
    """Returns all orbits of a model.

    Raises:
        InputError: the model cannot be read, or has no shape.
    """
    mesh = fitted_mesh(path, plan, max_bytes)
    scene = prepare_scene(mesh)
    orbits = []
    for number, poses in enumerate(plan.poses(name)):
        drawn = draw_orbit(scene, poses, plan.fov, plan.size)
        if not drawn.rgba[..., 3].any():
            raise InputError("nothing of it shows; all its surfaces are transparent")
        depth, position = (drawn.depth, drawn.position) if plan.maps else (None, None)
        orbits.append(
            RenderedOrbit(f"{name}/{number}", drawn.rgba, poses, plan.fov, depth, position)
        )
    return RenderedModel(orbits, mesh.remarks)
