"""What is wrong with a rendered orbit: one line for each fault, for people to read."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import binary_dilation

from o3d_jax.data.orbits.folder import (
    MAPS,
    OrbitIndex,
    RenderedOrbit,
    pose_fault,
    read_maps,
    read_rgba,
    read_unchecked_index,
)
from o3d_jax.errors import InputError
from o3d_jax.geometry.orbits import pinhole

SPHERE = 1e-3
"""By how much distances of cameras from the origin may differ, relatively."""

AIM = 0.1
"""How far from the origin a camera's axis may pass, in units of the radius."""

LEAST_COVERAGE = 1 / 2000
"""Share of pixels below which a silhouette counts as empty."""

SOLID = 128
"""Alpha from which on a pixel belongs to the silhouette."""

POINTS = 20_000
"""How many points of the position maps are looked at."""

MOST_STRAY = 0.005
"""Share of points that may project farther than a pixel from a silhouette: maps err at edges."""


class Expected(NamedTuple):
    """What all orbits of a set should have."""

    frames: int = 16
    radius: float | None = None
    """Distance of cameras in scene units; None allows any, but one for all frames."""
    fov: float | None = None
    """Field of view in degrees; None allows any."""


class Inspected(NamedTuple):
    """What was found in an orbit's folder."""

    orbit: RenderedOrbit | None
    """The orbit, right or wrong, if all its files can be read."""
    problems: tuple[str, ...]


def inspect_orbit(folder: Path, name: str, expected: Expected) -> Inspected:
    """Reads an orbit and returns it with its faults; goes on after each as far as possible."""
    try:
        index = read_unchecked_index(folder)
    except InputError as error:
        return Inspected(None, (str(error),))
    problems = list(_camera_problems(index, expected))
    cameras_are_sound = not problems

    frames: list[UInt8[np.ndarray, "_ _ 4"]] = []
    for path in index.files:
        try:
            frames.append(read_rgba(path))
        except InputError as error:
            problems.append(str(error))
    sizes = sorted({f"{frame.shape[1]} x {frame.shape[0]}" for frame in frames})
    if len(sizes) > 1:
        problems.append(f"frames are of several sizes: {', '.join(sizes)} pixels")
    if len(frames) < len(index.files) or len(sizes) > 1:
        return Inspected(None, tuple(problems))

    rgba = np.stack(frames)
    problems += _silhouette_problems(rgba)
    try:
        maps = read_maps(folder / MAPS, rgba.shape[:3])
    except InputError as error:
        return Inspected(None, (*problems, str(error)))

    # Where a camera is wrong, that its surface projects elsewhere would only say so again.
    orbit = RenderedOrbit(name, rgba, index.camera_to_world, index.fov, *maps)
    if cameras_are_sound:
        problems += _surface_problems(orbit)
    return Inspected(orbit, tuple(problems))


def _camera_problems(index: OrbitIndex, expected: Expected) -> Iterator[str]:
    poses = index.camera_to_world
    if len(poses) != expected.frames:
        yield f"{len(poses)} frames, not {expected.frames}"
    faults = [(i, pose_fault(pose)) for i, pose in enumerate(poses)]
    bad = [(i, fault) for i, fault in faults if fault is not None]
    yield from (f"the pose of frame {i} {fault}" for i, fault in bad)
    if expected.fov is not None and abs(index.fov - expected.fov) > SPHERE * expected.fov:
        yield f"field of view {index.fov:.4g} degrees, not {expected.fov:.4g}"

    # All below takes poses for rigid.
    if bad:
        return
    distances = np.linalg.norm(poses[:, :3, 3], axis=-1)
    radius = float(np.median(distances)) if expected.radius is None else expected.radius
    for i in np.flatnonzero(np.abs(distances - radius) > SPHERE * radius):
        yield f"the camera of frame {i} is {distances[i]:.4g} from the origin, not {radius:.4g}"

    # The origin, as a camera sees it: so far ahead, and so far aside of its axis.
    origin = -poses[:, :3, 3]
    ahead = np.einsum("vi,vi->v", origin, poses[:, :3, 2])
    aside = np.linalg.norm(origin - ahead[:, None] * poses[:, :3, 2], axis=-1)
    for i in np.flatnonzero((aside > AIM * distances) | (ahead < 0)):
        yield f"the camera of frame {i} does not look at the origin"

    for i, j in _same(poses):
        yield f"frames {i} and {j} have the same camera"


def _same(poses: Float[np.ndarray, "v 4 4"]) -> list[tuple[int, int]]:
    gaps = np.abs(poses[:, None] - poses[None]).max(axis=(-2, -1))
    return [(int(i), int(j)) for i, j in np.argwhere(np.triu(gaps < 1e-6, 1))]


def _silhouette_problems(rgba: UInt8[np.ndarray, "v h w 4"]) -> Iterator[str]:
    alpha = rgba[..., 3]
    solid = alpha >= SOLID
    for i, mask in enumerate(solid):
        if alpha[i].min() == 255:
            yield f"frame {i} is opaque everywhere: its background should have alpha 0"
        elif mask.mean() < LEAST_COVERAGE:
            yield f"frame {i} shows nothing: {mask.sum()} of {mask.size} pixels have alpha"
        elif sides := _sides_touched(mask):
            yield f"frame {i} is cropped: the object touches the {' and '.join(sides)} edge"


def _sides_touched(mask: Bool[np.ndarray, "h w"]) -> list[str]:
    edges = {"left": mask[:, 0], "top": mask[0], "right": mask[:, -1], "bottom": mask[-1]}
    return [name for name, edge in edges.items() if edge.any()]


def _surface_problems(orbit: RenderedOrbit) -> Iterator[str]:
    """Yields the frames in whose silhouette the surface that all frames saw does not project."""
    points = surface_points(orbit)
    if points is None:
        return
    points = points[:: max(1, len(points) // POINTS)]
    if not np.isfinite(points).all():
        yield "the position map has values that are not finite"
        return
    for i, pose in enumerate(orbit.camera_to_world):
        # Any alpha counts: another frame may show a thin part better than this one does.
        silhouette = binary_dilation(orbit.rgba[i, ..., 3] > 0, np.ones((3, 3)))
        pixels = project(points, pose, orbit.fov, orbit.rgba.shape[2])
        stray = 1 - _values_at(silhouette, pixels).mean()
        if stray > MOST_STRAY:
            yield (
                f"frame {i}: {stray:.1%} of the surface in the position map is outside of the "
                "silhouette; the camera, the field of view or the map is another's"
            )


def _values_at(
    mask: Bool[np.ndarray, "h w"], pixels: Float[np.ndarray, "n 2"]
) -> Bool[np.ndarray, " n"]:
    """Returns the mask's value under each point; False outside of the image."""
    columns, rows = np.floor(pixels).astype(np.int64).T
    inside = (0 <= columns) & (columns < mask.shape[1]) & (0 <= rows) & (rows < mask.shape[0])
    return inside & mask[np.where(inside, rows, 0), np.where(inside, columns, 0)]


def surface_points(orbit: RenderedOrbit) -> Float[np.ndarray, "n 3"] | None:
    """Returns the position map's points in the silhouettes, in the world; None if there is none.

    What a pixel at an edge sees is a mixture, so where its surface lies is not certain.
    """
    if orbit.position is None:
        return None
    there = np.any(orbit.position != 0, axis=-1) & (orbit.rgba[..., 3] >= SOLID)
    return orbit.position[there].astype(np.float64) if there.any() else None


def project(
    points: Float[np.ndarray, "n 3"], pose: Float[np.ndarray, "4 4"], fov: float, width: int
) -> Float[np.ndarray, "n 2"]:
    """Returns pixel coordinates in a square image: x to the right, y down, (0, 0) its corner."""
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    return width * (local @ pinhole(fov).T)[:, :2] / local[:, 2:]


def box_corners(orbit: RenderedOrbit) -> Float[np.ndarray, "8 3"]:
    """Returns the corners of the box that the position map fills; without one, of [-1, 1]^3.

    Corner k has the lower x, y or z where bit 4, 2 or 1 of k is not set.
    """
    points = surface_points(orbit)
    low, high = (-np.ones(3), np.ones(3)) if points is None else (points.min(0), points.max(0))
    corners = np.array(list(itertools.product((False, True), repeat=3)))
    return np.where(corners, high, low)
