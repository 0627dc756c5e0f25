"""From an object's Gaussians to a closed mesh with colors."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from o3d_jax.errors import InputError
from o3d_jax.meshing.extra import check_mesh_packages
from o3d_jax.meshing.field import density_field
from o3d_jax.meshing.silhouettes import best_threshold
from o3d_jax.meshing.surface import extract_surface, vertex_normals
from o3d_jax.meshing.texture import Look, Texture, bake_texture
from o3d_jax.types import Gaussians


@dataclass(frozen=True)
class MeshPlan:
    """How a mesh is made of Gaussians."""

    resolution: int = 128
    """Steps of the grid along the object's longest side."""
    threshold: float | None = None
    """Density at which the surface is; None: where silhouettes agree best with the Gaussians'."""
    faces: int = 20_000
    """Triangles, at most where a decimation of the mesh stays closed."""
    texture: int = 0
    """Pixels along a side of a texture; 0: each vertex has a color instead."""

    def __post_init__(self) -> None:
        bounds = (
            ("resolution", self.resolution, 16 <= self.resolution <= 512, "16 to 512; try 128"),
            ("faces", self.faces, 100 <= self.faces <= 10_000_000, "100 to 10000000; try 20000"),
            ("texture", self.texture, self.texture in range(64, 8193) or not self.texture,
             "0 or 64 to 8192; try 1024"),
            ("threshold", self.threshold, self.threshold is None or 0 < self.threshold < 1e6,
             "above 0; leave it out, or try 0.3"),
        )  # fmt: skip
        for name, value, fine, allowed in bounds:
            if not fine:
                raise InputError(f"--{name} {value} is not {allowed}")


class ColoredMesh(NamedTuple):
    """Triangles, counter-clockwise as seen from outside."""

    vertices: Float[np.ndarray, "k 3"]
    """Scene units."""
    faces: Int[np.ndarray, "f 3"]
    """The vertices of each."""
    normals: Float[np.ndarray, "k 3"]
    """Outward, of unit length."""
    colors: Float[np.ndarray, "k 3"]
    """RGB in [0, 1], as in image files."""
    texture: Texture | None
    """In place of `colors`. Vertices on its seams are there once for each side."""
    threshold: float
    """Density of Gaussians at which the surface is."""


def mesh_of_gaussians(gaussians: Gaussians, plan: MeshPlan | None = None) -> ColoredMesh:
    """Returns the closed surface of one object, in the world of its Gaussians.

    Raises:
        InputError: a package is missing, or there is nothing to see.
    """
    plan = plan or MeshPlan()
    check_mesh_packages(with_texture=plan.texture > 0)
    field = density_field(gaussians, plan.resolution)
    threshold = plan.threshold or best_threshold(gaussians, field)
    surface = extract_surface(field, threshold, plan.faces)
    if not plan.texture:
        colors = field.color_at(surface.vertices)
        return ColoredMesh(*surface, vertex_normals(surface), colors, None, threshold)
    look = Look(gaussians, field, threshold)
    texture, origin, faces = bake_texture(look, surface, plan.texture)
    vertices, normals = surface.vertices[origin], vertex_normals(surface)[origin]
    return ColoredMesh(vertices, faces, normals, field.color_at(vertices), texture, threshold)
