"""Canonical coordinate maps (App. A.2): which point of the scene each pixel sees."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from o3d_jax.geometry.rays import ray_directions, ray_origins
from o3d_jax.types import Cameras

EMPTY = 0.5
"""Coordinate of pixels that see nothing: the origin, as in the release; the paper doesn't say."""


def surface_depth(
    depth: Float[Array, "*b v h w 1"], alpha: Float[Array, "*b v h w 1"]
) -> Float[Array, "*b v h w 1"]:
    """Returns the mean z-depth of what is rendered where it covers over half of a pixel; else 0.

    `Rendering.depth` is a weighted sum: undivided, it would shrink toward the camera at edges.
    """
    solid = alpha > 0.5
    # The inner where keeps the gradient of the division finite in empty pixels.
    return jnp.where(solid, depth / jnp.where(solid, alpha, 1), 0)


def coordinate_map(
    depth: Float[Array, "*b v h w 1"], cameras: Cameras
) -> Float[Array, "*b v h w 3"]:
    """Returns the world coordinates of each pixel's surface, the cube [-1, 1]^3 mapped to [0, 1].

    `depth` is along the camera's z at pixel centers, scene units; the result is 0.5 where it is not
    positive. Source: App. A.2, with the extrinsics that its formula omits and its text names.
    """
    points = unproject(depth, cameras)
    return jnp.where(depth > 0, jnp.clip(0.5 * points + 0.5, 0, 1), EMPTY)


def unproject(depth: Float[Array, "*b v h w 1"], cameras: Cameras) -> Float[Array, "*b v h w 3"]:
    """Returns the world points at the given z-depths on the rays through the pixel centers."""
    h, w = depth.shape[-3:-1]
    return ray_origins(cameras) + depth * ray_directions(cameras, (h, w))
