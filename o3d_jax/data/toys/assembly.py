"""From the parts of a toy object to what is drawn: centered, and scaled to a given radius."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from o3d_jax.data.toys.parts import Number, Part, Triple
from o3d_jax.data.toys.shapes import PART, Kind, Pattern, Solid


class Toy(NamedTuple):
    """An object in the scene, within a ball of radius `ball` around the origin."""

    solid: Solid
    ball: float


def rotation(turn: Triple) -> Float[np.ndarray, "3 3"]:
    """Returns the matrix from part to object axes: turns about z, then x, then y, in degrees."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_y @ about_x @ about_z


def reach(part: Part) -> float:
    """Returns the radius of a ball around the part's own origin that holds it."""
    points = np.array(part.profile).reshape(-1, 2)
    across = np.max(np.hypot(points[:, 0], points[:, 1]), initial=0.0)
    match part.kind:
        case Kind.BOX | Kind.PILLOW:
            radius = np.linalg.norm(part.size)
        case Kind.ELLIPSOID:
            radius = max(part.size)
        case Kind.ROUND_CONE:
            radius = max(part.size[:2]) + part.size[2]
        case Kind.TORUS:
            radius = part.size[0] + part.size[1]
        case Kind.LATHE:
            radius = across
        case Kind.EXTRUSION:
            radius = np.hypot(across, part.size[0])
    return float(radius) + part.rounding


def farthest(part: Part, u: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Returns the part's farthest points (in its own frame) along unit directions u.

    For a convex set {x : f(x) <= 1} these are its support points; the rounding moves them by u.
    """
    size, n = np.array(part.size), len(u)

    # Solids of revolution are farthest in the plane of u and the y axis.
    side = np.stack([u[:, 0], np.zeros(n), u[:, 2]], axis=1)
    side /= np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-9)
    up = np.array([[0.0, 1.0, 0.0]])
    points = np.array(part.profile).reshape(-1, 2)

    match part.kind:
        case Kind.BOX:
            found = np.sign(u) * size
        case Kind.ELLIPSOID:
            found = size**2 * u / np.linalg.norm(size * u, axis=1, keepdims=True)
        case Kind.PILLOW:
            w = size * u  # The dual of the 4-norm is the 4/3-norm.
            found = size * np.cbrt(w) / np.sum(np.abs(w) ** (4 / 3), axis=1, keepdims=True) ** 0.25
        case Kind.ROUND_CONE:
            top = size[1] * u + size[2] * up
            bottom = size[0] * u - size[2] * up
            higher = np.sum(u * (top - bottom), axis=1, keepdims=True) > 0
            found = np.where(higher, top, bottom)
        case Kind.TORUS:
            found = size[0] * side + size[1] * u
        case Kind.LATHE:
            best = np.argmax(
                np.outer(np.hypot(u[:, 0], u[:, 2]), points[:, 0])
                + np.outer(u[:, 1], points[:, 1]),
                axis=1,
            )
            found = points[best, :1] * side + points[best, 1:] * up
        case Kind.EXTRUSION:
            best = np.argmax(u[:, :2] @ points.T, axis=1)
            found = np.concatenate([points[best], np.sign(u[:, 2:]) * size[0]], axis=1)
    return found + part.rounding * u


def images(part: Part) -> Float[np.ndarray, "m 3 3"]:
    """Returns the mirrors and turns that make the copies of a part, the identity first."""
    angles = 2 * np.pi * np.arange(part.copies) / part.copies
    mirrors_x = (1.0, -1.0) if "x" in part.mirror else (1.0,)
    mirrors_z = (1.0, -1.0) if "z" in part.mirror else (1.0,)
    return np.array(
        [
            np.diag([x, 1.0, z]) @ rotation((0.0, float(np.rad2deg(angle)), 0.0))
            for angle in angles
            for x in mirrors_x
            for z in mirrors_z
        ]
    )


def directions(count: int) -> Float[np.ndarray, "n 3"]:
    """Returns unit vectors all around: the six axes and `count` on a spiral."""
    y = 1 - 2 * (np.arange(count) + 0.5) / count
    angle = np.pi * (3 - np.sqrt(5)) * np.arange(count)
    across = np.sqrt(1 - y**2)
    spiral = np.stack([across * np.sin(angle), y, across * np.cos(angle)], axis=1)
    return np.concatenate([np.eye(3), -np.eye(3), spiral])


def extremes(parts: list[Part]) -> Float[np.ndarray, "n 3"]:
    """Returns points of the object's hull, the outermost along each axis among them."""
    u = directions(256)
    found = []
    for part in parts:
        axes = images(part) @ rotation(part.turn)
        local = np.einsum("mji,nj->mni", axes, u).reshape(-1, 3)
        points = farthest(part, local).reshape(len(axes), len(u), 3)
        centers = images(part) @ np.array(part.at)
        found.append(np.einsum("mij,mnj->mni", axes, points) + centers[:, None, :])
    return np.concatenate([points.reshape(-1, 3) for points in found])


def assemble(parts: list[Part], radius: Number) -> Toy:
    """Returns the object in the scene: its bounding box's middle at the origin, within `radius`."""
    hull = extremes(parts)
    middle = 0.5 * (hull.min(axis=0) + hull.max(axis=0))

    # A smooth joint bulges by at most a quarter of its width; 2 % for what the spiral misses.
    outer = 1.02 * np.linalg.norm(hull - middle, axis=1).max()
    scale = radius / (outer + 0.25 * max(part.blend for part in parts))

    records = np.zeros(len(parts), PART)
    for record, part in zip(records, parts, strict=True):
        record["kind"] = int(part.kind)
        record["center"] = scale * np.array(part.at)
        record["axes"] = rotation(part.turn).T
        record["size"] = scale * np.array(part.size)
        record["rounding"] = scale * part.rounding
        record["points"] = len(part.profile)
        record["profile"][: len(part.profile)] = scale * np.array(part.profile).reshape(-1, 2)
        record["mirror_x"], record["mirror_z"] = "x" in part.mirror, "z" in part.mirror
        record["copies"] = part.copies
        record["blend"] = scale * part.blend
        record["reach"] = scale * reach(part)

        coat = part.coat
        record["pattern"], record["first"], record["second"] = (
            int(coat.pattern),
            coat.first,
            coat.second,
        )
        # Rates are per unit length, but wedges per turn; the phase of SPLIT is a length.
        record["rate"] = coat.rate / (1.0 if coat.pattern == Pattern.WEDGES else scale)
        record["phase"] = coat.phase * (scale if coat.pattern == Pattern.SPLIT else 1.0)

    solid = Solid(origin=-scale * middle, parts=records)
    return Toy(solid, radius)
