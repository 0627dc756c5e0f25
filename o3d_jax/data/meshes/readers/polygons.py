"""Cuts polygons into triangles: what a polygon covers, whatever its shape."""

from typing import NamedTuple

import mapbox_earcut
import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from o3d_jax.errors import InputError

MOST_CORNERS = 20_000
"""The most corners of a polygon with notches: the time to cut it may grow with their square."""

ROUNDING = 1e-9
"""Areas above minus this, where the polygon is about 1 across, count as not negative."""


class Triangles(NamedTuple):
    """What polygons were cut into, in the order of the polygons."""

    corners: Int[np.ndarray, "t 3"]
    """Numbers among the corners of all polygons, one polygon after the other."""
    polygons: Int[np.ndarray, " t"]
    """Which polygon each triangle is a part of."""


def cut_polygons(
    positions: Float[np.ndarray, "v 3"],
    corners: Int[np.ndarray, " c"],
    sizes: Int[np.ndarray, " p"],
) -> Triangles:
    """Returns triangles that cover what the polygons cover, facing the same way.

    A polygon whose triangles all around its first corner lie side by side is cut into these; one
    with notches is cut in its plane. One of less than three corners gives nothing.

    Args:
        corners: which position each corner of each polygon has, one polygon after the other.
        sizes: how many corners each polygon has.

    Raises:
        InputError: a polygon has notches and more than MOST_CORNERS corners.
    """
    starts = np.cumsum(sizes) - sizes
    found = [np.zeros((0, 3), np.int64)]
    owners = [np.zeros(0, np.int64)]

    # Polygons of one size are looked at together; few have notches, and are cut one by one.
    for size in np.unique(sizes[sizes >= 3]):
        polygons = np.flatnonzero(sizes == size)
        at = starts[polygons, None] + np.arange(size)
        around = np.arange(1, size - 1)
        fan = np.stack([0 * around, around, around + 1], axis=-1)
        notched = _notched(positions, corners, at) if size > 3 else np.zeros(len(at), bool)
        found.append(at[~notched][:, fan].reshape(-1, 3))
        owners.append(np.repeat(polygons[~notched], size - 2))
        for polygon, each in zip(polygons[notched], at[notched], strict=True):
            cut = _cut(positions[corners[each]])
            found.append(each[fan if cut is None else cut])
            owners.append(np.full(len(found[-1]), polygon))

    order = np.argsort(np.concatenate(owners), kind="stable")
    return Triangles(np.concatenate(found)[order], np.concatenate(owners)[order])


_AT_ONCE = 2**18
"""How many corners are looked at at a time."""


def _notched(
    positions: Float[np.ndarray, "v 3"],
    corners: Int[np.ndarray, " c"],
    at: Int[np.ndarray, "p size"],
) -> Bool[np.ndarray, " p"]:
    """Returns which polygons of one size the triangles around their first corner do not cover."""
    step = max(_AT_ONCE // at.shape[1], 1)
    pieces = [
        _bends(positions[corners[at[start : start + step]]]) for start in range(0, len(at), step)
    ]
    return np.concatenate(pieces)


def _bends(points: Float[np.ndarray, "p size 3"]) -> Bool[np.ndarray, " p"]:
    local = _about_one(points)
    across = np.cross(local[:, 1:-1], local[:, 2:])  # Of each triangle at the first corner.
    normal = across.sum(axis=1)
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    unit = normal / np.where(length > 0, length, 1)
    return (across @ unit[..., None] < -ROUNDING).any(axis=(1, 2))


def _about_one(points: Float[np.ndarray, "p size 3"]) -> Float64[np.ndarray, "p size 3"]:
    """Returns the polygons with their first corner at 0, about 1 across; all 0 if not finite."""
    local = np.asarray(points, np.float64)
    local = local - local[:, :1]
    reach = np.abs(local).max(axis=(1, 2), keepdims=True)
    usable = np.isfinite(reach) & (reach > 0)
    return np.where(usable, local, 0) / np.where(usable, reach, 1)


def _cut(points: Float[np.ndarray, "size 3"]) -> Int[np.ndarray, "t 3"] | None:
    """Returns the triangles of a polygon with notches; None if it has no plane."""
    if len(points) > MOST_CORNERS:
        raise InputError(
            f"a polygon of it has {len(points)} corners and notches, and at most {MOST_CORNERS} "
            "are read; triangulate it"
        )

    local = _about_one(points[None])[0]
    normal = np.cross(local[1:-1], local[2:]).sum(axis=0)
    length = np.linalg.norm(normal)
    if not length > 0:
        return None
    normal /= length

    # Two directions that with the normal make a right-handed frame.
    right = np.cross(np.eye(3)[np.abs(normal).argmin()], normal)
    right /= np.linalg.norm(right)
    flat = np.ascontiguousarray(local @ np.stack([right, np.cross(normal, right)], axis=-1))

    # Seen along its normal, a polygon runs counter-clockwise, and so do the triangles given here.
    found = mapbox_earcut.triangulate_float64(flat, np.array([len(flat)], np.uint32))
    return found.reshape(-1, 3).astype(np.int64) if len(found) else None
