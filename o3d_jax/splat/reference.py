"""The readable twin of the tiled rasterizer: every Gaussian at every pixel, plain autodiff.

Memory is Gaussians times pixels; for tests and for reading.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from o3d_jax.splat.contribution import TRANSMITTANCE_MIN
from o3d_jax.splat.project import (
    ALPHA_MAX,
    ALPHA_MIN,
    Boxes,
    Splats,
    project_gaussians,
    view_of,
)
from o3d_jax.splat.render import RenderOptions
from o3d_jax.types import Cameras, Gaussians, Rendering


def render_reference(
    gaussians: Gaussians,
    cameras: Cameras,
    size: tuple[int, int],
    background: Float[Array, "3"],
    options: RenderOptions = RenderOptions(),
) -> Rendering:
    """Returns what `o3d_jax.splat.render` does, slowly and for one object (no batch axes)."""
    culling, normalize_quats = options.culling, options.normalize_quats

    @jax.checkpoint
    def one_view(camera: Cameras) -> Rendering:
        view = view_of(camera.camera_to_world, camera.intrinsics, size)
        splats, boxes = project_gaussians(gaussians, view, size, culling, normalize_quats)
        return blend_reference(splats, boxes if culling == "inria" else None, size, background)

    return jax.tree.map(lambda x: x[:, 0], lax.map(one_view, cameras))


def blend_reference(
    splats: Splats, boxes: Boxes | None, size: tuple[int, int], background: Float[Array, "3"]
) -> Rendering:
    """Returns one view, blended front to back by depth, ties by index.

    With `boxes`, each Gaussian is drawn inside of its box only.
    """
    order = jnp.argsort(lax.stop_gradient(splats.depth), stable=True)
    splats, boxes = jax.tree.map(lambda x: x[..., order], (splats, boxes))
    h, w = size
    y = jnp.arange(h)[None, :, None]
    x = jnp.arange(w)[None, None, :]

    # Squared distance in standard deviations, by the Cholesky factor of the inverse covariance.
    dx = _over_pixels(splats.center[0]) - (x + jnp.asarray(0.5, splats.depth.dtype))
    dy = _over_pixels(splats.center[1]) - (y + jnp.asarray(0.5, splats.depth.dtype))
    p, r, s = map(_over_pixels, splats.whitening)
    q = (p * dx + r * dy) ** 2 + (s * dy) ** 2
    alpha = _over_pixels(splats.opacity) * jnp.exp(-0.5 * q)
    alpha = jnp.where(alpha < ALPHA_MAX, alpha, ALPHA_MAX)
    alpha = jnp.where(alpha >= ALPHA_MIN, alpha, 0)
    if boxes is not None:
        first_x, first_y = map(_over_pixels, boxes.first)
        last_x, last_y = map(_over_pixels, boxes.last)
        inside = (first_x <= x) & (x < last_x) & (first_y <= y) & (y < last_y)
        alpha = jnp.where(inside, alpha, 0)

    # A pixel closes before the Gaussian that would leave less than 1e-4 of it; where that is has no
    # gradient.
    passed = jnp.cumprod(1 - lax.stop_gradient(alpha), axis=0)
    alpha = jnp.where(passed >= TRANSMITTANCE_MIN, alpha, 0)

    # A Gaussian's weight is its alpha times what those in front of it let through.
    after = jnp.cumprod(1 - alpha, axis=0)
    before = jnp.concatenate([jnp.ones((1, h, w), after.dtype), after])
    weight = alpha * before[:-1]
    rgb = jnp.einsum("nhw,cn->hwc", weight, splats.color, precision="highest")
    return Rendering(
        rgb=(rgb + before[-1][..., None] * background[None, None])[None],
        alpha=jnp.sum(weight, axis=0)[None, ..., None],
        depth=jnp.sum(weight * _over_pixels(splats.depth), axis=0)[None, ..., None],
    )


def _over_pixels(array: Float[Array, " n"]) -> Float[Array, "n 1 1"]:
    return array[:, None, None]
