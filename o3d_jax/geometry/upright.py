"""Which way is up: from the world of the method to one that viewers and engines show upright.

The method's world has camera 0 on +z, looking at the origin (`orbits.relative_poses`). Where that
camera looks down by the elevation e, the object therefore leans toward it. In the upright world
the orbit's axis is +y and the input camera is above +z, so that what the input shows faces +z and
its right is +x. That camera is on (0, sin e, cos e) there, and on (0, 0, 1) in the method's world.
So, with R(a) the turn about x by the angle a,

    R(a) = [[1, 0, 0], [0, cos a, -sin a], [0, sin a, cos a]],

the method's world is R(e) times the upright one, and R(-e) undoes it. The axes of files differ from
the upright world by a turn about x, too:

    y-up    R(0)    x right, y up, front to +z: glTF and most engines
    y-down  R(180)  x right, y down, z into the picture, front to -z: viewers of Gaussian Splatting
    z-up    R(90)   x right, z up, front to -y: Blender and CAD

A Gaussian of mean m and quaternion q (own axes to world) is turned to R m and (cos a/2, sin a/2, 0,
0) q. Its color is the same from all sides, a spherical harmonic of degree 0, and does not change.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.special import cosdg, sindg

from o3d_jax.geometry.quaternions import or_identity
from o3d_jax.types import Gaussians

Up = Literal["y-down", "y-up", "z-up"]
"""The axes of a file."""

TURNS: dict[Up, float] = {"y-down": 180.0, "y-up": 0.0, "z-up": 90.0}
"""Degrees about x from the upright world to each of them."""


def upright(gaussians: Gaussians, elevation_deg: float) -> Gaussians:
    """Turns an object of the method's world to the upright one: y up, the input view in front.

    `elevation_deg` is the input's. Quaternions are turned as they are, so they must be such as
    draw the same object when normalized.
    """
    return turned_about_x(gaussians, -elevation_deg)


def to_axes(gaussians: Gaussians, up: Up) -> Gaussians:
    """Turns an upright object to the axes of a file."""
    return turned_about_x(gaussians, TURNS[up])


def from_axes(gaussians: Gaussians, up: Up) -> Gaussians:
    """Turns an object in the axes of a file to the upright world: the inverse of `to_axes`."""
    return turned_about_x(gaussians, -TURNS[up])


@np.errstate(invalid="ignore")  # What is not finite stays so; whoever writes it refuses it.
def turned_about_x(gaussians: Gaussians, degrees: float) -> Gaussians:
    """Turns an object by R(degrees), from y toward z; multiples of 180 are exact.

    A zero quaternion is the identity, as for `render`.
    """
    if degrees == 0:
        return gaussians

    # In float64: rounded once, when the object goes back to float32.
    means = np.asarray(gaussians.means, np.float64) @ turn_about_x(degrees).T

    # The product (cos a/2, sin a/2, 0, 0) (w, x, y, z) of quaternions, written out.
    w, x, y, z = np.moveaxis(or_identity(gaussians.quats), -1, 0)
    cosine, sine = cosdg(degrees / 2), sindg(degrees / 2)
    turned = [
        *(cosine * w - sine * x, cosine * x + sine * w),
        *(cosine * y - sine * z, cosine * z + sine * y),
    ]
    return dataclasses.replace(
        gaussians,
        means=jnp.asarray(means, jnp.float32),
        quats=jnp.asarray(np.stack(turned, axis=-1), jnp.float32),
    )


def turn_about_x(degrees: float) -> Float[np.ndarray, "3 3"]:
    """Returns R(degrees), which turns y toward z; exact at 90s, for sines are taken of degrees."""
    cosine, sine = cosdg(degrees), sindg(degrees)
    return np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
