"""What a toy object is made of: primitives with coats of paint, in any units.

Objects are built standing on y = 0 with y up; assembly.py centers and scales them.
"""

from dataclasses import dataclass
from typing import Any, Literal

from o3d_jax.data.toys.shapes import Kind, Pattern

Number = float | int
Triple = tuple[Number, Number, Number]
Outline = tuple[tuple[Number, Number], ...]


@dataclass(frozen=True, kw_only=True)
class Coat:
    """The paint of one part; `Pattern` says what `rate` and `phase` are."""

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
    """The lengths that `Kind` names, without the rounding."""
    profile: Outline = ()
    rounding: Number = 0.0
    at: Triple = (0.0, 0.0, 0.0)
    """Where the part's own origin is."""
    turn: Triple = (0.0, 0.0, 0.0)
    """Turns about x, y and z in degrees; that about z comes first, then x, then y."""
    mirror: Literal["", "x", "z", "xz"] = ""
    copies: int = 1
    """Copies around the y axis; the part must be symmetric about the plane through both."""
    blend: Number = 0.0


def box(coat: Coat, size: Triple, rounding: Number = 0.03, **place: Any) -> Part:
    """Returns a box of the given full size, edges rounded."""
    rounding = min(rounding, 0.45 * min(size))
    half = (0.5 * size[0] - rounding, 0.5 * size[1] - rounding, 0.5 * size[2] - rounding)
    return Part(kind=Kind.BOX, coat=coat, size=half, rounding=rounding, **place)


def ellipsoid(coat: Coat, radii: Triple, **place: Any) -> Part:
    """Returns an ellipsoid."""
    return Part(kind=Kind.ELLIPSOID, coat=coat, size=radii, **place)


def ball(coat: Coat, radius: Number, **place: Any) -> Part:
    """Returns a sphere."""
    return ellipsoid(coat, (radius, radius, radius), **place)


def pillow(coat: Coat, radii: Triple, **place: Any) -> Part:
    """Returns something between an ellipsoid and a box."""
    return Part(kind=Kind.PILLOW, coat=coat, size=radii, **place)


def limb(coat: Coat, bottom: Number, top: Number, length: Number, **place: Any) -> Part:
    """Returns the hull of two balls of radii `bottom` and `top`, `length` between their centers."""
    # One ball must not hold the other.
    length = max(length, 1.1 * abs(bottom - top))
    return Part(kind=Kind.ROUND_CONE, coat=coat, size=(bottom, top, 0.5 * length), **place)


def ring(coat: Coat, radius: Number, tube: Number, **place: Any) -> Part:
    """Returns a torus around the part's y axis."""
    return Part(kind=Kind.TORUS, coat=coat, size=(radius, tube, 0.0), **place)


def cone(
    coat: Coat, bottom: Number, top: Number, height: Number, rounding: Number = 0.02, **place: Any
) -> Part:
    """Returns a cylinder or cone around the part's y axis, from y = -height / 2 to height / 2."""
    rounding = min(rounding, 0.4 * height, 0.4 * max(bottom, top))
    half = 0.5 * height - rounding
    bottom, top = max(bottom - rounding, 1e-3), max(top - rounding, 1e-3)
    profile = ((0.0, -half), (bottom, -half), (top, half), (0.0, half))
    return lathe(coat, profile, rounding, **place)


def lathe(coat: Coat, profile: Outline, rounding: Number = 0.02, **place: Any) -> Part:
    """Returns the profile (radius, y), from axis to axis, turned around the part's y axis."""
    return Part(kind=Kind.LATHE, coat=coat, profile=profile, rounding=rounding, **place)


def slab(
    coat: Coat,
    outline: Outline,
    depth: Number,
    rounding: Number = 0.03,
    **place: Any,
) -> Part:
    """Returns the outline (x, y), extruded along z to about the given full depth."""
    rounding = min(rounding, 0.4 * depth)
    size = (0.5 * depth - rounding, 0.0, 0.0)
    return Part(
        kind=Kind.EXTRUSION, coat=coat, size=size, profile=outline, rounding=rounding, **place
    )
