"""How close a mesh is to the true one of an object: silhouettes, Chamfer distance, F-score.

Let A and B be surfaces and d(a, B) the distance of a point a to B. The Chamfer distance is half the
sum of the means of d(a, B) over A and of d(b, A) over B. The F-score is the harmonic mean of the
shares of A and of B that are at most NEAR_ENOUGH from the other (Knapitsch et al. 2017). Both are
in units of the diagonal of the true mesh's box, and measured between points on each surface.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.spatial import KDTree

from o3d_jax.data.meshes.drawing import draw_orbit, prepare_scene
from o3d_jax.data.meshes.jobs import find_models
from o3d_jax.data.meshes.mesh import Material, MeshPart, ModelContent, to_mesh
from o3d_jax.data.meshes.orbits import OrbitPlan, fitted_mesh
from o3d_jax.data.meshes.rendering import SETTINGS
from o3d_jax.errors import InputError
from o3d_jax.evaluation.data import SeenObject
from o3d_jax.evaluation.scores import NO_SHAPE, ShapeScore
from o3d_jax.geometry.orbits import relative_poses
from o3d_jax.meshing.colored import mesh_of_gaussians
from o3d_jax.meshing.silhouettes import agreement
from o3d_jax.types import Gaussians

NEAR_ENOUGH = 0.01
"""Share of the diagonal within which points count as right."""
SURFACE_POINTS = 20_000
"""Drawn evenly from each surface: on average 1/250 of the diagonal apart."""
MOST_BYTES = 2**31
"""Bytes of the largest model file that is read."""


class TrueShape(NamedTuple):
    """A true mesh, as points on it."""

    points: Float[np.ndarray, "k 3"]
    """In the world that its orbits were rendered in."""
    diagonal: float
    """Length of the diagonal of its box."""


class TrueShapes:
    """The models that a folder of orbits was rendered from."""

    def __init__(self, models: Path, rendered: Path):
        """Finds them.

        Raises:
            InputError: no models there, or nobody knows how they were rendered.
        """
        self._paths = find_models(models).paths
        settings = rendered / SETTINGS
        try:
            self._plan = OrbitPlan(**_plan_fields(json.loads(settings.read_text())))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{settings} does not say how models were rendered, so true meshes have no known "
                "size; render them with `o3d data render`"
            ) from error

    def digest_of(self, names: list[str]) -> str:
        """Returns a digest of the models' files, and of how they were rendered.

        Raises:
            InputError: there is no model of a name.
        """
        if missing := [name for name in names if name not in self._paths]:
            raise InputError(
                f"--true-meshes lacks {len(missing)} of {len(names)} objects: "
                f"{', '.join(missing[:3])}; give the folder that was rendered"
            )
        digest = hashlib.sha256(repr(self._plan).encode())
        for name in names:
            digest.update(self._paths[name].read_bytes())
        return digest.hexdigest()

    def of(self, name: str) -> TrueShape:
        """Returns an object's shape, moved and scaled as it was to be rendered."""
        corners = fitted_mesh(self._paths[name], self._plan, MOST_BYTES).corners
        extent = np.ptp(corners.reshape(-1, 3), axis=0)
        return TrueShape(points_on(corners), float(np.linalg.norm(extent)))


def _plan_fields(settings: dict) -> dict:
    fields = {name: x for name, x in settings.items() if name in OrbitPlan.__dataclass_fields__}
    return fields | {"elevation": tuple(fields["elevation"])}


def shape_of_gaussians(
    gaussians: Gaussians, truth: TrueShape, seen: SeenObject
) -> ShapeScore[float]:
    """Returns how a mesh of Gaussians in the world of the method compares with the true one."""
    try:
        mesh = mesh_of_gaussians(gaussians)
    except InputError:
        return NO_SHAPE
    return shape_score(mesh.vertices, mesh.faces, truth, seen)


def shape_score(
    vertices: Float[np.ndarray, "k 3"],
    faces: Int[np.ndarray, "f 3"],
    truth: TrueShape,
    seen: SeenObject,
) -> ShapeScore[float]:
    """Returns how a mesh in the world of the method, camera 0 on +z, compares with the true one."""
    there = relative_poses(seen.poses)
    to_method = there[0] @ np.linalg.inv(seen.poses[0])
    points = truth.points @ to_method[:3, :3].T + to_method[:3, 3]
    found = surface_score(points_on(vertices[faces]), points, truth.diagonal)
    alpha = draw_alpha(vertices, faces, there, seen.fov, seen.alpha.shape[1])
    return dataclasses.replace(found, silhouette=agreement(alpha > 127, seen.alpha > 127))


def draw_alpha(
    vertices: Float[np.ndarray, "k 3"],
    faces: Int[np.ndarray, "f 3"],
    poses: Float[np.ndarray, "v 4 4"],
    fov: float,
    size: int,
) -> UInt8[np.ndarray, "v {size} {size}"]:
    """Returns the share of each pixel that a mesh covers, in 255ths."""
    part = MeshPart(vertices, faces, material=0)
    mesh = to_mesh(ModelContent([part], [Material(two_sided=True)], []), smooth=False)
    return draw_orbit(prepare_scene(mesh), poses, fov, size).rgba[..., 3]


def surface_score(
    found: Float[np.ndarray, "k 3"], truth: Float[np.ndarray, "m 3"], diagonal: float
) -> ShapeScore[float]:
    """Returns what distances between points on two surfaces say; the silhouette is left open."""
    to_truth = KDTree(truth).query(found)[0] / diagonal
    to_found = KDTree(found).query(truth)[0] / diagonal
    precision, recall = ((x <= NEAR_ENOUGH).mean() for x in (to_truth, to_found))
    both = precision + recall
    return ShapeScore(
        silhouette=float("nan"),
        chamfer=float(50 * (to_truth.mean() + to_found.mean())),
        fscore=float(2 * precision * recall / both) if both else 0.0,
    )


def points_on(
    corners: Float[np.ndarray, "f 3 3"], count: int = SURFACE_POINTS
) -> Float[np.ndarray, "{count} 3"]:
    """Returns points evenly on triangles; the same ones every time."""
    rng = np.random.default_rng(0)
    a, b, c = np.asarray(corners, np.float64).swapaxes(0, 1)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=-1)
    # At even steps of area, so that large triangles have their share exactly.
    steps = (np.arange(count) + rng.uniform(size=count)) / count * area.sum()
    chosen = np.searchsorted(np.cumsum(area), steps).clip(0, len(area) - 1)
    u, v = rng.uniform(size=(2, count, 1))
    root = np.sqrt(u)  # Even on the triangle (Osada et al. 2002).
    return (1 - root) * a[chosen] + root * (1 - v) * b[chosen] + root * v * c[chosen]
