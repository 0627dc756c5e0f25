"""Camera rays and their embedding (Sec. 3.1).

Pixel (row i, column j) of an (h, w) image is the ray through ((j + 0.5) / w, (i + 0.5) / h) of the
image plane; x points right, y down, z forward (OpenCV). Everything is float32, at full precision.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from o3d_jax.types import Cameras


def ray_directions(cameras: Cameras, size: tuple[int, int]) -> Float[Array, "*b v h w 3"]:
    """Returns the world direction through every pixel center of an image of `size` (h, w).

    It is not of unit length but one unit along the camera's z, so that origin + depth * direction
    is the point at z-depth `depth`.
    """
    h, w = size
    k = jnp.asarray(cameras.intrinsics, jnp.float32)[..., None, None, :, :]
    rotation = jnp.asarray(cameras.camera_to_world, jnp.float32)[..., :3, :3]
    u = (jnp.arange(w, dtype=jnp.float32) + 0.5) / w
    v = (jnp.arange(h, dtype=jnp.float32) + 0.5) / h
    u, v = (jnp.broadcast_to(c, k.shape[:-4] + (h, w)) for c in (u[None, :], v[:, None]))
    y = (v - k[..., 1, 2]) / k[..., 1, 1]
    x = (u - k[..., 0, 2] - k[..., 0, 1] * y) / k[..., 0, 0]
    local = jnp.stack([x, y, jnp.ones_like(x)], axis=-1)
    # HIGHEST: accelerators would otherwise multiply in bfloat16 or TF32.
    return jnp.einsum("...ij,...hwj->...hwi", rotation, local, precision=lax.Precision.HIGHEST)


def ray_origins(cameras: Cameras) -> Float[Array, "*b v 1 1 3"]:
    """Returns where the rays of each camera start, in world coordinates."""
    return jnp.asarray(cameras.camera_to_world, jnp.float32)[..., None, None, :3, 3]


def pluecker_rays(cameras: Cameras, size: tuple[int, int]) -> Float[Array, "*b v h w 6"]:
    """Returns Pluecker coordinates (o x d, d) of every pixel's ray in an image of `size` (h, w).

    The direction d is unit length. The paper writes (o, o x d); its release and LGM use this order.
    """
    d = ray_directions(cameras, size)
    d = d / jnp.linalg.norm(d, axis=-1, keepdims=True)
    moment = jnp.cross(jnp.broadcast_to(ray_origins(cameras), d.shape), d)
    return jnp.concatenate([moment, d], axis=-1)


def nearest_to_origin(rays: Float[Array, "*b 6"]) -> Float[Array, "*b 3"]:
    """Returns the point of each ray (as `pluecker_rays` has it) that is nearest to the origin."""
    moment, direction = jnp.split(rays, 2, axis=-1)
    return jnp.cross(direction, moment)


def harmonic_embedding(
    x: Float[Array, "*b c"], octaves: int
) -> Float[Array, "*b c*(2*{octaves}+1)"]:
    """Returns (sin(f x), cos(f x), x) for f = 2^0 .. 2^(octaves-1), without pi.

    Within the sines and the cosines, the frequencies of one channel lie side by side.
    """
    frequencies = 2.0 ** jnp.arange(octaves, dtype=x.dtype)
    frequencies = frequencies.reshape((1,) * (x.ndim - 1) + (octaves,))
    # No reshape of (channel, frequency): libtpu 0.0.52 dies of one of 6 by 6 before a product.
    angles = jnp.concatenate([x[..., c, None] * frequencies for c in range(x.shape[-1])], axis=-1)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles), x], axis=-1)
