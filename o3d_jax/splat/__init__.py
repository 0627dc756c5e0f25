"""Differentiable Gaussian splatting (Kerbl et al. 2023): `render`."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from o3d_jax.splat.composite import Blended, blend
from o3d_jax.splat.project import Culling, project_gaussians, scaled_axes, view_of
from o3d_jax.splat.tiles import Tiling, to_image
from o3d_jax.types import Cameras, Gaussians, Rendering

__all__ = ["Culling", "Tiling", "render"]


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    size: tuple[int, int],
    background: Float[Array, "3"],
    *,
    normalize_quats: bool = True,
    culling: Culling = "exact",
    tiling: Tiling | None = None,
) -> Rendering:
    """Every view of every object over `background`, differentiable in all arrays.

    `size` is (height, width) in px. Gaussians are drawn front to back by the depth of their
    centres, ties by index; those nearer than 0.2 are not drawn. `normalize_quats=False` takes
    quaternions as they are, as LGM's rasterizer does. `culling="inria"` confines each Gaussian to
    the 16 px tiles within 3 standard deviations, as the CUDA original does; "exact" draws every
    pixel with alpha >= 1/255. `tiling` changes speed and
    memory, and the result by no more than rounding. Skew in the intrinsics is not drawn.

    Views are drawn one after the other: memory is linear in pixels, Gaussians and one round of
    intersections. On a mesh call it inside `shard_map` over objects or views; the automatic
    partitioner would draw everything on every device. Computes in the type of the Gaussians
    (float32 or float64).
    """
    if gaussians.means.shape[-2] == 0:
        gaussians = _one_invisible(gaussians)
    tiling = tiling or Tiling.choose(gaussians.means.shape[-2], size)
    one_view = functools.partial(_render_view, background, tiling, culling)

    def one_object(pair: tuple[Gaussians, Cameras]) -> Rendering:
        gaussians, cameras = pair
        axes = scaled_axes(gaussians, normalize_quats)
        return lax.map(functools.partial(one_view, gaussians, axes), cameras)

    batch = gaussians.means.shape[:-2]
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(batch) :]), (gaussians, cameras))
    rendering = lax.map(one_object, flat)
    # Axes: object, view, the one view of `_render_view`.
    return jax.tree.map(lambda x: x.reshape(*batch, x.shape[1], *x.shape[3:]), rendering)


def _render_view(
    background: Float[Array, "3"],
    tiling: Tiling,
    culling: Culling,
    gaussians: Gaussians,
    axes: Float[Array, "3 3 n"],
    camera: Cameras,
) -> Rendering:
    """One view of one object."""
    size = (tiling.height, tiling.width)

    @jax.checkpoint  # Cheap to repeat, and it would keep about 60 numbers a Gaussian and view.
    def projected(gaussians, axes, camera):
        view = view_of(camera.camera_to_world, camera.intrinsics, size)
        return project_gaussians(gaussians, axes, view, size, culling)

    splats, boxes = projected(gaussians, axes, camera)
    blended: Blended = blend(splats, boxes, tiling)
    features = to_image(jnp.swapaxes(blended.features, 1, 2), tiling)
    transmittance = to_image(blended.transmittance, tiling)[..., None]
    return Rendering(
        rgb=(features[..., :3] + transmittance * background[None, None])[None],
        alpha=(1 - transmittance)[None],
        depth=features[..., 3:][None],
    )


def _one_invisible(gaussians: Gaussians) -> Gaussians:
    """A scene of one Gaussian with opacity 0, made from an empty one."""
    axis = gaussians.means.ndim - 2

    def padded(x: Array) -> Array:
        return jnp.pad(x, [(0, int(i == axis)) for i in range(x.ndim)])

    return jax.tree.map(padded, gaussians)
