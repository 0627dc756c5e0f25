"""The surface of a field, as one closed mesh of triangles."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from scipy import ndimage, sparse

from o3d_jax.errors import InputError
from o3d_jax.meshing.extra import needed
from o3d_jax.meshing.field import DensityField

LEAST_PART = 0.03
"""Share of the largest part's volume, below which another part is left out."""
SHRINK, GROW, ROUNDS = 0.5, -0.53, 10
"""Taubin's smoothing (1995): steps toward the neighbors' mean and, so that nothing shrinks, a bit
farther away from it."""
ATTEMPTS = tuple((more, speed) for more in (1.0, 1.5, 2.0, 3.0) for speed in (7.0, 4.0))
"""How often decimation is tried, until nothing is pinched: by how much it may exceed the triangles
asked for, and how fast it goes about it."""


class TriangleSurface(NamedTuple):
    """Triangles, counter-clockwise as seen from outside."""

    vertices: Float[np.ndarray, "k 3"]
    """Scene units."""
    faces: Int[np.ndarray, "f 3"]
    """The vertices of each."""


def extract_surface(field: DensityField, threshold: float, most_faces: int) -> TriangleSurface:
    """Returns where the density is `threshold`, smoothed, in about `most_faces` triangles at most.

    Small parts are left out, and what is empty inside is filled. Where decimation pinches the
    surface, so that four triangles meet in an edge, up to three times as many stay, or even all.

    Raises:
        InputError: the density is nowhere as high; or a package is missing.
    """
    measure = needed("skimage.measure")
    simplify = needed("fast_simplification").simplify
    solid = _main_parts(field.density, threshold)
    vertices, faces, _, _ = measure.marching_cubes(
        solid, threshold, allow_degenerate=False, gradient_direction="ascent"
    )
    whole = TriangleSurface(taubin(vertices.astype(np.float64), faces), faces.astype(np.int64))
    chosen = _decimated(whole, most_faces, simplify)
    return chosen._replace(vertices=field.origin + field.spacing * chosen.vertices)


def _decimated(surface: TriangleSurface, most_faces: int, simplify: Any) -> TriangleSurface:
    """Returns the surface in fewer triangles, if that can be done and leave it closed."""
    if len(surface.faces) <= most_faces:
        return surface
    vertices, faces = surface.vertices.astype(np.float32), surface.faces.astype(np.int32)
    for more, speed in ATTEMPTS:
        count = int(more * most_faces)
        if count < len(faces):
            points, triangles = simplify(vertices, faces, target_count=count, agg=speed)
            if is_closed(triangles):
                return TriangleSurface(points.astype(np.float64), triangles.astype(np.int64))
    return surface


def _main_parts(
    density: Float32[np.ndarray, "x y z"], threshold: float
) -> Float32[np.ndarray, "x y z"]:
    """Returns the density without small parts, and without hollows that nothing leads into."""
    parts = np.zeros(density.shape, np.int32)
    count = ndimage.label(density > threshold, output=parts)
    if not count:
        raise InputError(
            f"the density is nowhere above {threshold:.3g}; give a lower --threshold, or none"
        )
    sizes = np.bincount(parts.ravel())[1:]
    kept = np.concatenate([[True], sizes >= LEAST_PART * sizes.max()])
    solid = np.where(kept[parts], density, 0).astype(np.float32)
    inside: Bool[np.ndarray, "x y z"] = solid > threshold
    hollow = ndimage.binary_fill_holes(inside) & ~inside
    return np.where(hollow, 2 * threshold, solid).astype(np.float32)


def taubin(vertices: Float[np.ndarray, "k 3"], faces: Int[np.ndarray, "f 3"]) -> np.ndarray:
    """Returns smoothed vertices: each moves toward its neighbors' mean and back, ROUNDS times."""
    count, starts, ends = len(vertices), faces.ravel(), faces[:, [1, 2, 0]].ravel()
    edges = sparse.coo_array((np.ones(len(starts)), (starts, ends)), (count, count)).tocsr()
    neighbors = ((edges + edges.T) > 0).astype(np.float64)
    degree = np.asarray(neighbors.sum(axis=1)).reshape(-1, 1)
    for _ in range(ROUNDS):
        for factor in (SHRINK, GROW):
            vertices = vertices + factor * (neighbors @ vertices / degree - vertices)
    return vertices


def is_closed(faces: Int[np.ndarray, "f 3"]) -> bool:
    """Returns whether each edge has one triangle on either side, and these turn alike."""
    starts = np.concatenate([faces[:, 0], faces[:, 1], faces[:, 2]]).astype(np.int64)
    ends = np.concatenate([faces[:, 1], faces[:, 2], faces[:, 0]]).astype(np.int64)
    base = int(faces.max()) + 1
    there, back = np.unique(starts * base + ends), np.unique(ends * base + starts)
    return len(there) == len(starts) and bool((there == back).all())


def vertex_normals(surface: TriangleSurface) -> Float[np.ndarray, "k 3"]:
    """Returns the mean normal of each vertex's triangles, weighted by area, of unit length."""
    vertices, faces = surface
    a, b, c = vertices[faces].swapaxes(0, 1)
    across = np.cross(b - a, c - a)
    total = np.zeros((len(vertices), 3))
    for corner in range(3):
        np.add.at(total, faces[:, corner], across)
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    return np.where(length > 0, total / np.where(length > 0, length, 1), [0, 1, 0])
