"""The substance of Gaussians on a grid of points: how dense it is there, and of which color."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32
from scipy.ndimage import map_coordinates

from o3d_jax.errors import InputError
from o3d_jax.geometry.quaternions import rotation_matrices
from o3d_jax.meshing.compiled import scatter_density
from o3d_jax.types import Gaussians

REACH = 3.0
"""Standard deviations; beyond, a Gaussian has at most 1.2 % of its density."""
LEAST_DEVIATION = 0.5
"""The least of a Gaussian along each axis, in steps of the grid: a thinner one would fall between
its points. It keeps its peak."""
SEEN_OPACITY = 0.05
"""Gaussians of less opacity do not make the grid larger, for stray ones of all scenes are faint."""
MARGIN = 2
"""Steps that are empty around it all, so that a surface in it is closed."""


class DensityField(NamedTuple):
    """Values at the points origin + spacing * (i, j, k)."""

    density: Float32[np.ndarray, "x y z"]
    """Sum over Gaussians of opacity times exp(-d^2 / 2), d being the distance in deviations."""
    weighted_colors: Float32[np.ndarray, "x y z 3"]
    """The same sum with each one's color as a factor."""
    origin: Float[np.ndarray, "3"]
    """Scene units."""
    spacing: float
    """Scene units."""

    def color_at(self, points: Float[np.ndarray, "k 3"]) -> Float[np.ndarray, "k 3"]:
        """Returns the mean color of the Gaussians at some points, weighted by density there.

        Where there are none, it is the mean color of all.
        """
        where = ((points - self.origin) / self.spacing).T

        def sampled(values: Float[np.ndarray, "x y z"]) -> Float[np.ndarray, " k"]:
            return map_coordinates(values, where, order=1, mode="nearest")

        weight = sampled(self.density)
        sums = np.stack([sampled(self.weighted_colors[..., c]) for c in range(3)], axis=-1)
        mean = self.weighted_colors.sum((0, 1, 2), np.float64) / self.density.sum(dtype=np.float64)
        there = weight[:, None] > 1e-6
        return np.where(there, sums / np.where(there, weight[:, None], 1), mean)


def density_field(gaussians: Gaussians, resolution: int) -> DensityField:
    """Returns the field of one object on a grid of `resolution` steps along its longest side.

    Raises:
        InputError: there are no Gaussians that one could see.
    """
    means, deviations, turns = shapes = _shapes(gaussians)
    origin, spacing, size = _grid(shapes, np.asarray(gaussians.opacities), resolution)

    # A thin one is widened, so that it does not fall between the points.
    wide = np.maximum(deviations, LEAST_DEVIATION * spacing)
    sums = np.zeros((*size, 4), np.float32)
    scatter_density(
        (means - origin) / spacing,
        _half_boxes(turns, wide) / spacing,
        np.einsum("nij,nj,nkj->nik", turns, (wide / spacing) ** -2, turns),
        np.asarray(gaussians.opacities, np.float64),
        np.asarray(gaussians.colors, np.float64),
        sums,
    )

    # Faint ones may reach the border, where a surface would have a hole.
    for axis in range(3):
        np.moveaxis(sums, axis, 0)[[0, -1]] = 0
    return DensityField(sums[..., 0].copy(), sums[..., 1:], origin, spacing)


class _Grid(NamedTuple):
    origin: Float[np.ndarray, "3"]
    spacing: float
    size: tuple[int, int, int]
    """Points along each axis."""


class _Shapes(NamedTuple):
    means: Float[np.ndarray, "n 3"]
    deviations: Float[np.ndarray, "n 3"]
    turns: Float[np.ndarray, "n 3 3"]
    """Own axes to world."""


def _shapes(gaussians: Gaussians) -> _Shapes:
    return _Shapes(
        np.asarray(gaussians.means, np.float64),
        np.asarray(gaussians.scales, np.float64),
        rotation_matrices(gaussians.quats),
    )


def _grid(shapes: _Shapes, opacities: Float[np.ndarray, " n"], resolution: int) -> _Grid:
    """Returns points around all Gaussians that one sees."""
    seen = opacities >= SEEN_OPACITY
    if not seen.any():
        raise InputError(
            f"the object has no Gaussian of opacity {SEEN_OPACITY} or more; sample it once more, "
            "with another seed or model"
        )
    half = _half_boxes(shapes.turns, shapes.deviations)
    low, high = (shapes.means - half)[seen].min(axis=0), (shapes.means + half)[seen].max(axis=0)
    spacing = float((high - low).max()) / (resolution - 2 * MARGIN)
    if not spacing > 0:
        raise InputError("all Gaussians are one point; sample the object once more")
    x, y, z = np.ceil((high - low) / spacing).astype(int) + 2 * MARGIN + 1
    return _Grid(low - MARGIN * spacing, spacing, (int(x), int(y), int(z)))


def _half_boxes(
    turns: Float[np.ndarray, "n 3 3"], deviations: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "n 3"]:
    """Returns half the sides of the boxes that hold Gaussians up to REACH deviations.

    The variance along an axis of the world is the sum of those along the own axes, each times the
    square of its share in that axis.
    """
    return REACH * np.sqrt((turns**2 * deviations[:, None] ** 2).sum(axis=-1))
