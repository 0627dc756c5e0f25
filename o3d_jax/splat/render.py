"""Draws Gaussians (Kerbl et al. 2023), differentiably in all arrays: `render`."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import checkify
from jaxtyping import Array, Bool, Float

from o3d_jax.splat.composite import blend
from o3d_jax.splat.project import Culling, project_gaussians, view_of
from o3d_jax.splat.tiles import Backend, Tiling, to_image
from o3d_jax.types import Cameras, Gaussians, Rendering


@dataclasses.dataclass(frozen=True)
class RenderOptions:
    """How Gaussians are read and drawn; the defaults are right for scenes of our own."""

    normalize_quats: bool = True
    """Whether quaternions are brought to length 1; LGM's rasterizer takes them as they are."""
    culling: Culling = "exact"
    """Which pixels a Gaussian is drawn in: "exact" takes all with alpha >= 1/255, "inria" those in
    the 16 px tiles within 3 standard deviations, as the CUDA original does."""
    tiling: Tiling | None = None
    """How the work is cut up: it changes speed and memory, and the result by no more than rounding.
    None chooses by the number of Gaussians and pixels."""


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    size: tuple[int, int],
    background: Float[Array, "3"],
    options: RenderOptions = RenderOptions(),
    backend: Backend | None = None,
) -> Rendering:
    """Returns every view of every object over `background`, differentiable in all arrays.

    `size` is (height, width) in px. Gaussians are drawn front to back by the depth of their
    centers, ties by index; those nearer than 0.2 are not drawn. Skew in the intrinsics is not
    drawn.

    `backend` is "xla", which runs everywhere and draws one view after the other (memory is linear
    in pixels, Gaussians and one round of intersections), or "pallas", kernels for NVIDIA GPUs that
    draw an object's views side by side; None is "pallas" if the default device is a GPU. Repeated
    runs of a compiled program agree to the last bit, also when its views are sharded. On a mesh
    call it inside `shard_map` over objects or views; the automatic partitioner would draw
    everything on every device.

    It computes in float64 if the means are, else in float32. Gaussians and cameras with a NaN or an
    infinity show nothing and have gradient 0; `check_finite` makes them an error. Nor is a Gaussian
    drawn that is larger or farther than 1e8 px or 1e8 scene units: float32 could not square that.
    There are first derivatives, in reverse mode.

    Raises:
        ValueError: `size` is not positive, `options.tiling` is made for another one, or Gaussians
            and cameras are not batched alike.
    """
    backend = backend or ("pallas" if jax.default_backend() == "gpu" else "xla")
    count = max(gaussians.means.shape[-2], 1)
    tiling = options.tiling or Tiling.choose(count, size, backend)
    _check_shapes(gaussians, cameras, size, tiling)

    dtype = jnp.float64 if gaussians.means.dtype == jnp.float64 else jnp.float32
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    gaussians, cameras, background = jax.tree.map(
        lambda x: jnp.asarray(x, dtype), (gaussians, cameras, background)
    )

    # XLA draws one view after the other, so that memory is that of one; a GPU has room for several.
    def one_object(pair: tuple[Gaussians, Cameras]) -> Rendering:
        def one_view(camera: Cameras) -> Rendering:
            return _render_view(tiling, options, backend, pair[0], background, camera)

        return lax.map(one_view, pair[1]) if backend == "xla" else jax.vmap(one_view)(pair[1])

    batch = gaussians.means.shape[:-2]
    flat = jax.tree.map(
        lambda x: x.reshape(math.prod(batch), *x.shape[len(batch) :]),
        (_drawable(gaussians), cameras),
    )
    rendering = lax.map(one_object, flat)

    # Axes: object, view, the one view of `_render_view`.
    return jax.tree.map(lambda x: x.reshape(*batch, x.shape[1], *x.shape[3:]), rendering)


def _check_shapes(
    gaussians: Gaussians, cameras: Cameras, size: tuple[int, int], tiling: Tiling
) -> None:
    """Raises a ValueError for what does not go together."""
    batch, other = gaussians.means.shape[:-2], cameras.intrinsics.shape[:-3]
    if batch != other:
        raise ValueError(
            f"Gaussians with batch axes {batch} cannot be seen by cameras with {other}; "
            "broadcast one of them"
        )
    if (tiling.height, tiling.width) != tuple(size):
        raise ValueError(f"a tiling for {tiling.height} x {tiling.width} px cannot draw {size}")


def _render_view(
    tiling: Tiling,
    options: RenderOptions,
    backend: Backend,
    gaussians: Gaussians,
    background: Float[Array, "3"],
    camera: Cameras,
) -> Rendering:
    """Returns one view of one object."""
    size = (tiling.height, tiling.width)

    # A camera of NaNs is replaced by some other that sees nothing: its gradient is 0 then.
    camera, seen = _finite_camera(camera)
    gaussians = dataclasses.replace(gaussians, opacities=jnp.where(seen, gaussians.opacities, 0))

    view = view_of(camera.camera_to_world, camera.intrinsics, size)
    culling, normalize_quats = options.culling, options.normalize_quats
    splats, boxes = project_gaussians(gaussians, view, size, culling, normalize_quats, tiling.block)
    blended = blend(splats, boxes, tiling, backend)
    features = to_image(jnp.swapaxes(blended.features, 1, 2), tiling)
    transmittance = to_image(blended.transmittance, tiling)[..., None]
    return Rendering(
        rgb=(features[..., :3] + transmittance * background[None, None])[None],
        alpha=(1 - transmittance)[None],
        depth=features[..., 3:][None],
    )


def _finite_camera(camera: Cameras) -> tuple[Cameras, Bool[Array, ""]]:
    """Returns the camera, or some other one if it is not finite; and whether it is."""
    numbers = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(camera)]
    is_finite = numbers[0] & numbers[1]
    some = Cameras(
        camera_to_world=jnp.eye(4, dtype=camera.intrinsics.dtype)[None],
        intrinsics=jnp.eye(3, dtype=camera.intrinsics.dtype)[None],
    )
    chosen = jax.tree.map(lambda a, b: jnp.where(is_finite, a, b[0]), camera, some)
    return chosen, is_finite


def _drawable(gaussians: Gaussians) -> Gaussians:
    """Returns the Gaussians with those at opacity 0 that are not finite.

    Where there are none at all, returns one that cannot be seen: what follows needs at least one.
    """
    if gaussians.means.shape[-2] == 0:
        axis = gaussians.means.ndim - 2

        def padded(x: Array) -> Array:
            return jnp.pad(x, [(0, int(i == axis)) for i in range(x.ndim)])

        return jax.tree.map(padded, gaussians)
    ndim = gaussians.opacities.ndim
    fields = jax.tree.leaves(gaussians)
    finite = functools.reduce(jnp.logical_and, [_is_finite(x, ndim) for x in fields])
    return jax.tree.map(
        lambda x: jnp.where(finite.reshape(finite.shape + (1,) * (x.ndim - ndim)), x, 0), gaussians
    )


def _is_finite(x: Float[Array, "..."], axes: int) -> Bool[Array, "..."]:
    """Returns whether all numbers beyond the first `axes` axes are finite."""
    return jnp.all(jnp.isfinite(x), axis=tuple(range(axes, x.ndim)))


def check_finite(gaussians: Gaussians, cameras: Cameras, background: Float[Array, "3"]) -> None:
    """Raises an error that names the field and the first index of what is not finite.

    It uses `jax.experimental.checkify.check`, and inside of `jit` works through
    `checkify.checkify`.

    Raises:
        JaxRuntimeError, a ValueError: there is a NaN or an infinity.
    """
    gaussian_axes, camera_axes = gaussians.opacities.ndim, cameras.intrinsics.ndim - 2
    for name, value, axes in (
        *((f"gaussians.{k}", v, gaussian_axes) for k, v in vars(gaussians).items()),
        *((f"cameras.{k}", v, camera_axes) for k, v in vars(cameras).items()),
        ("background", background, 1),
    ):
        if value.size:
            finite = _is_finite(value, axes)
            place = jnp.stack(jnp.unravel_index(jnp.argmin(finite), finite.shape))
            text = f"{name} at {{place}} is not finite (one of {{count}}); mask or mend it"
            checkify.check(jnp.all(finite), text, place=place, count=jnp.sum(~finite))
