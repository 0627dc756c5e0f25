"""Reads 3D models and moves them into view."""

from pathlib import Path
from typing import Literal

import numpy as np

from o3d_jax.data.meshes.mesh import Mesh, to_mesh
from o3d_jax.data.meshes.readers.files import ModelFiles
from o3d_jax.data.meshes.readers.gltf import read_gltf
from o3d_jax.data.meshes.readers.obj import read_obj_mesh
from o3d_jax.data.meshes.readers.ply import read_ply_mesh
from o3d_jax.errors import InputError

READERS = {".glb": read_gltf, ".gltf": read_gltf, ".obj": read_obj_mesh, ".ply": read_ply_mesh}
"""The reader of each suffix."""

SAFE_FILL = 0.96
"""How much a model may fill of the ball that a camera sees whole, by its radius."""


def read_mesh(path: Path, max_bytes: int, up: Literal["y", "z"] = "y") -> Mesh:
    """Returns the triangles of a model file, y-up.

    Args:
        max_bytes: the largest size of the file, and of each file that it refers to.
        up: the file's axis that points up; glTF says y, OBJ and PLY say nothing.

    Raises:
        InputError: damaged, empty, too large, of an unknown suffix, without triangles, or it
            refers to what is missing or outside its folder.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path.suffix} is none of {', '.join(READERS)}")
    with np.errstate(over="ignore", invalid="ignore"):  # What is not finite is left out.
        model = reader(ModelFiles(path, max_bytes))
        mesh = to_mesh(model, smooth=reader is not read_gltf)
    if up == "z":
        turn = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])  # Times a row: (x, z, -y).
        normals = mesh.normals @ turn.astype(np.float32)
        mesh = mesh._replace(corners=mesh.corners @ turn, normals=normals)
    return mesh


def visible_radius(radius: float, fov: float) -> float:
    """Returns the radius of the ball that a camera at a distance sees whole; `fov` in degrees."""
    return radius * float(np.sin(np.deg2rad(fov) / 2))


def fit(mesh: Mesh, side: float, ball: float) -> Mesh:
    """Returns the mesh with its box's center at the origin, as large as both limits allow.

    Args:
        side: length of the box's longest side, scene units.
        ball: radius of a ball around the origin that holds it.

    Raises:
        InputError: the mesh has no extent, or one beyond all measure.
    """
    points = mesh.corners.reshape(-1, 3)
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = points.min(axis=0), points.max(axis=0)
        points = points - (low + high) / 2
        longest = float((high - low).max())
        farthest = float(np.linalg.norm(points, axis=-1).max())
    if not (np.isfinite(farthest) and longest > 1e-12):
        raise InputError(f"its longest side is {longest:g}; it has no shape to draw")
    points *= min(side / longest, ball / farthest)
    return mesh._replace(corners=points.reshape(mesh.corners.shape))
