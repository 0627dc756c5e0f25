"""What a toy object is made of: parts with coats of paint, assembled into a scene of fixed size.

Objects are built standing on y = 0 with y up, in any units; `assemble` centres and scales them.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from o3d_jax.data.toys.shapes import PART, Kind, Pattern, Solid

Number = float | int
Triple = tuple[Number, Number, Number]
Outline = tuple[tuple[Number, Number], ...]


@dataclass(frozen=True, kw_only=True)
class Coat:
    """The paint of one part; `rate` and `phase` as `Pattern` says."""

    first: Triple
    second: Triple = (0.0, 0.0, 0.0)
    pattern: Pattern = Pattern.PLAIN
    rate: Number = 1.0
    phase: Number = 0.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """One primitive; lengths in the object's own units."""

    kind: Kind
    coat: Coat
    size: Triple = (0.0, 0.0, 0.0)
    """As `Kind` says, without the rounding."""
    profile: Outline = ()
    rounding: Number = 0.0
    at: Triple = (0.0, 0.0, 0.0)
    """Where the part's own origin is."""
    turn: Triple = (0.0, 0.0, 0.0)
    """Degrees about x, y and z; z is first, then x, then y."""
    mirror: Literal["", "x", "z", "xz"] = ""
    copies: int = 1
    """Around the y axis; the part must be symmetric about the plane through it and that axis."""
    blend: Number = 0.0


class Toy(NamedTuple):
    """An object in the scene, within a ball of radius `ball` around the origin."""

    solid: Solid
    ball: float


def box(coat: Coat, size: Triple, rounding: Number = 0.03, **place: Any) -> Part:
    """A box of the given full size, edges rounded."""
    rounding = min(rounding, 0.45 * min(size))
    half = (0.5 * size[0] - rounding, 0.5 * size[1] - rounding, 0.5 * size[2] - rounding)
    return Part(kind=Kind.BOX, coat=coat, size=half, rounding=rounding, **place)


def ellipsoid(coat: Coat, radii: Triple, **place: Any) -> Part:
    """An ellipsoid."""
    return Part(kind=Kind.ELLIPSOID, coat=coat, size=radii, **place)


def ball(coat: Coat, radius: Number, **place: Any) -> Part:
    """A sphere."""
    return ellipsoid(coat, (radius, radius, radius), **place)


def pillow(coat: Coat, radii: Triple, **place: Any) -> Part:
    """Something between an ellipsoid and a box."""
    return Part(kind=Kind.PILLOW, coat=coat, size=radii, **place)


def limb(coat: Coat, bottom: Number, top: Number, length: Number, **place: Any) -> Part:
    """The hull of two balls of radii `bottom` and `top`; `length` between their centres."""
    # One ball must not hold the other.
    length = max(length, 1.1 * abs(bottom - top))
    return Part(kind=Kind.ROUND_CONE, coat=coat, size=(bottom, top, 0.5 * length), **place)


def ring(coat: Coat, radius: Number, tube: Number, **place: Any) -> Part:
    """A torus around the part's y axis."""
    return Part(kind=Kind.TORUS, coat=coat, size=(radius, tube, 0.0), **place)


def cone(
    coat: Coat, bottom: Number, top: Number, height: Number, rounding: Number = 0.02, **place: Any
) -> Part:
    """A cylinder or cone around the part's y axis, from y = -height / 2 to height / 2."""
    rounding = min(rounding, 0.4 * height, 0.4 * max(bottom, top))
    half = 0.5 * height - rounding
    bottom, top = max(bottom - rounding, 1e-3), max(top - rounding, 1e-3)
    profile = ((0.0, -half), (bottom, -half), (top, half), (0.0, half))
    return lathe(coat, profile, rounding, **place)


def lathe(coat: Coat, profile: Outline, rounding: Number = 0.02, **place: Any) -> Part:
    """The profile (radius, y), from axis to axis, turned around the part's y axis."""
    return Part(kind=Kind.LATHE, coat=coat, profile=profile, rounding=rounding, **place)


def slab(
    coat: Coat,
    outline: Outline,
    depth: Number,
    rounding: Number = 0.03,
    **place: Any,
) -> Part:
    """The outline (x, y), extruded along z to about the given full depth."""
    rounding = min(rounding, 0.4 * depth)
    size = (0.5 * depth - rounding, 0.0, 0.0)
    return Part(
        kind=Kind.EXTRUSION, coat=coat, size=size, profile=outline, rounding=rounding, **place
    )


def rotation(turn: Triple) -> Float[np.ndarray, "3 3"]:
    """Part axes to object axes: about z, then x, then y, by degrees."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_y @ about_x @ about_z


def reach(part: Part) -> float:
    """Radius of a ball around the part's own origin that holds it."""
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
    """The part's farthest points (in its own frame) along unit directions u."""
    size, n = np.array(part.size), len(u)
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
    """The mirrors and turns that make the copies of a part, the identity first."""
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
    """Unit vectors all around: the six axes and `count` on a spiral."""
    y = 1 - 2 * (np.arange(count) + 0.5) / count
    angle = np.pi * (3 - np.sqrt(5)) * np.arange(count)
    across = np.sqrt(1 - y**2)
    spiral = np.stack([across * np.sin(angle), y, across * np.cos(angle)], axis=1)
    return np.concatenate([np.eye(3), -np.eye(3), spiral])


def extremes(parts: list[Part]) -> Float[np.ndarray, "n 3"]:
    """Points of the object's hull, the outermost along each axis among them."""
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
    """The object in the scene: the middle of its bounding box at the origin, within `radius`."""
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
