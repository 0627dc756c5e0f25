"""What compiled code knows of a toy object: a row of parts, as records.

A part is a primitive in its own frame (axis of symmetry: local y), moved, turned, repeated by
mirrors or around the object's y axis, joined to the parts before it, and painted with two colors.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8


class Kind(IntEnum):
    """What a part is; in brackets, what the numbers of its `size` are, in scene units."""

    BOX = 0  # (half width x, half height y, half depth z)
    ELLIPSOID = 1  # (radius x, y, z)
    PILLOW = 2  # (radius x, y, z): superquadric of exponent 4, between ellipsoid and box
    ROUND_CONE = 3  # (radius at the bottom, radius at the top, half distance between)
    TORUS = 4  # (radius of the ring, radius of the tube)
    LATHE = 5  # profile (radius, y) from axis to axis, revolved around y
    EXTRUSION = 6  # closed profile (x, y), and half depth along z in the first column


class Pattern(IntEnum):
    """How a part's two colors share its surface; y and the angle around it are the part's own."""

    PLAIN = 0  # The first color.
    STRIPES = 1  # Bands along y, `rate` pairs a unit length, moved by `phase` pairs.
    WEDGES = 2  # `rate` pairs of sectors around y.
    CHECKS = 3  # Cubes, `rate` a unit length.
    FADE = 4  # From the first to the second over a length 1 / rate along y.
    SPLIT = 5  # The second color where y is above the phase.
    DOTS = 6  # Rows of round spots, `rate` rows a unit length, `phase` spots around.


PROFILE_POINTS = 32
"""How many points a part's profile has room for."""

PART = np.dtype(
    [
        ("kind", np.int64),
        ("center", np.float64, 3),
        ("axes", np.float64, (3, 3)),  # Row i is local axis i.
        ("size", np.float64, 3),
        ("rounding", np.float64),  # Grows the part by this much, and so rounds its edges.
        ("profile", np.float64, (PROFILE_POINTS, 2)),
        ("points", np.int64),  # How many points of `profile` are meant.
        ("mirror_x", np.bool_),  # Also at -x.
        ("mirror_z", np.bool_),
        ("copies", np.int64),  # Evenly around y; such a part is symmetric about its radial plane.
        ("blend", np.float64),  # Width of the smooth joint with the parts before; 0 is sharp.
        ("reach", np.float64),  # Radius of a ball around `center` that holds one copy.
        ("pattern", np.int64),
        ("rate", np.float64),
        ("phase", np.float64),
        ("first", np.float64, 3),  # RGB in [0, 1].
        ("second", np.float64, 3),
    ],
    align=True,
)
"""A part for compiled code; lengths in scene units. As one record it is passed by one pointer:
with an array per field, passing them at each call took over nine tenths of the time."""


class Solid(NamedTuple):
    """A union of parts, ready for compiled code."""

    origin: Float[np.ndarray, " 3"]
    """Where the parts' common origin is in the scene; mirrors and copies are about it."""
    parts: np.ndarray
    """Records of type `PART`."""


class Vec(NamedTuple):
    """A point or direction in compiled code."""

    x: float
    y: float
    z: float


class Eye(NamedTuple):
    """A camera in compiled code, looking at a ball around the origin that holds the object."""

    origin: Float[np.ndarray, " 3"]
    rotation: Float[np.ndarray, "3 3"]
    """Camera axes (OpenCV) to world."""
    focal: float
    """Focal length in units of the image's width."""
    ball: float
    """Radius of the ball, scene units."""


class Image(NamedTuple):
    """What one view shows, filled by `draw`."""

    rgba: UInt8[np.ndarray, "h w 4"]
    depth: Float[np.ndarray, "h w 1"]
    position: Float[np.ndarray, "h w 3"]
