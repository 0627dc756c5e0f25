"""From 3D Gaussians to 2D splats in one camera: EWA projection.

Zwicker et al. (2002), Kerbl et al. (2023). Arrays are component first ("3 n"), so that everything
is elementwise over Gaussians. Plain autodiff: nothing here divides by what can vanish.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from o3d_jax.types import Gaussians, pytree

Culling = Literal["exact", "inria"]

NEAR = 0.2  # Gaussians nearer than this are not drawn; scene units (Inria's rasterizer).
LOW_PASS = 0.3  # Added to the 2D variance along x and y, px^2 (Kerbl et al. 2023).
FRUSTUM_MARGIN = 0.3  # The perspective derivative is taken inside the image + 0.3 tan(fov / 2).
ALPHA_MIN = 1 / 255  # Fainter contributions are skipped.
ALPHA_MAX = 0.99
INRIA_TILE = 16  # px
FAR = 1e8  # What is farther away or larger, in px, is not drawn: its squares would overflow.


@pytree
class Splats:
    """Gaussians as one camera sees them. A pixel is at its center: the first one at (0.5, 0.5)."""

    center: Float[Array, "2 n"]
    """x and y, px."""

    whitening: Float[Array, "3 n"]
    """(p, r, s) such that with d = center - pixel, (p dx + r dy)^2 + (s dy)^2 is the squared
    distance in standard deviations: the Cholesky factor of the inverse covariance. 1 / px."""

    depth: Float[Array, " n"]
    """z in the camera frame, scene units."""

    opacity: Float[Array, " n"]
    """0 for a Gaussian that cannot be seen."""

    color: Float[Array, "3 n"]


@pytree
class Covariance:
    """How Gaussians spread in the image."""

    variance: Float[Array, "2 n"]
    """Along x and y, px^2."""

    determinant: Float[Array, " n"]
    """The determinant of the 2 x 2 matrix, px^4."""


@pytree
class Boxes:
    """Rectangles of pixels, first inclusive and last exclusive; empty where last <= first."""

    first: Int[Array, "2 n"]
    """Column and row."""

    last: Int[Array, "2 n"]


@pytree
class View:
    """One camera at one resolution."""

    rotation: Float[Array, "3 3"]
    """World to camera."""

    translation: Float[Array, "3"]
    """World to camera, scene units."""

    focal: Float[Array, "2"]
    """px."""

    principal: Float[Array, "2"]
    """px."""


def view_of(
    camera_to_world: Float[Array, "4 4"], intrinsics: Float[Array, "3 3"], size: tuple[int, int]
) -> View:
    """Returns the camera in pixels, world to camera.

    `intrinsics` are in units of image width and height; `size` is (height, width).
    """
    x, y, z = camera_to_world[:3, 0], camera_to_world[:3, 1], camera_to_world[:3, 2]
    # The true inverse rather than the transpose: exact also for axes rounded to float32.
    rows = jnp.stack([jnp.cross(y, z), jnp.cross(z, x), jnp.cross(x, y)])
    rotation = rows / jnp.sum(x * rows[0])
    extent = jnp.array([size[1], size[0]], intrinsics.dtype)
    return View(
        rotation=rotation,
        translation=-_apply(rotation, camera_to_world[:3, 3][:, None])[:, 0],
        focal=extent * jnp.stack([intrinsics[0, 0], intrinsics[1, 1]]),
        principal=extent * intrinsics[:2, 2],
    )


def scaled_axes(gaussians: Gaussians, normalize_quats: bool) -> Float[Array, "3 3 n"]:
    """Returns each Gaussian's axes in the world, columns scaled by their standard deviations.

    A zero quaternion stands for the identity.
    """
    quats = gaussians.quats.T
    if normalize_quats:
        # Divided by the largest entry first, for its square could overflow or vanish.
        largest = lax.stop_gradient(jnp.max(jnp.abs(quats), axis=0))
        quats = quats / jnp.where(largest > 0, largest, 1)[None]
        norm2 = jnp.sum(quats**2, axis=0)
        quats = quats / jnp.sqrt(jnp.where(norm2 > 0, norm2, 1))[None]
    w, x, y, z = quats
    rotation = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return jnp.stack([jnp.stack(row) for row in rotation]) * gaussians.scales.T[None]


def project_gaussians(
    gaussians: Gaussians,
    view: View,
    size: tuple[int, int],
    culling: Culling,
    normalize_quats: bool,
    block: int = 8192,
) -> tuple[Splats, Boxes]:
    """Returns the Gaussians as `view` sees them, and the pixels that each may touch.

    `size` is (height, width). They are projected `block` at a time, and once more in a backward
    pass: so the some 60 numbers a Gaussian between here and there are never kept.
    """

    @jax.checkpoint
    def one_block(gaussians: Gaussians) -> tuple[Splats, Boxes]:
        return _project(gaussians, view, size, culling, normalize_quats)

    n = gaussians.opacities.shape[0]
    if n <= block:
        return one_block(gaussians)

    # The last block is filled up with zeros, and what comes of them is cut off.
    blocks = math.ceil(n / block)

    def split(x: Float[Array, "n ..."]) -> Float[Array, "blocks block ..."]:
        padded = jnp.pad(x, [(0, blocks * block - n), *[(0, 0)] * (x.ndim - 1)])
        return padded.reshape(blocks, block, *x.shape[1:])

    def join(x: Shaped[Array, "blocks ... block"]) -> Shaped[Array, "... n"]:
        last = jnp.moveaxis(x, 0, -2)
        return last.reshape(*last.shape[:-2], -1)[..., :n]

    return jax.tree.map(join, lax.map(one_block, jax.tree.map(split, gaussians)))


def _project(
    gaussians: Gaussians, view: View, size: tuple[int, int], culling: Culling, normalize_quats: bool
) -> tuple[Splats, Boxes]:
    """Projects one block."""
    position = _apply(view.rotation, gaussians.means.T) + view.translation[:, None]
    drawn = _can_be_drawn(position, scaled_axes(gaussians, normalize_quats), view)

    # What is not drawn has gradient 0, not 0 times infinity.
    gaussians = jax.tree.map(
        lambda x: jnp.where(drawn.reshape(-1, *(1,) * (x.ndim - 1)), x, 0), gaussians
    )
    axes = scaled_axes(gaussians, normalize_quats)
    depth = jnp.where(drawn, position[2], 1)
    slope = jnp.where(drawn[None], position[:2], 0) / depth[None]
    center = view.focal[:, None] * slope + view.principal[:, None]

    # Perspective is linearized around the center, but not far outside of the image, where its
    # derivative grows without bound.
    extent = jnp.array([size[1], size[0]], depth.dtype)
    margin = FRUSTUM_MARGIN * 0.5 * extent / view.focal
    lowest = -view.principal / view.focal - margin
    highest = (extent - view.principal) / view.focal + margin
    slope = jnp.clip(slope, lowest[:, None], highest[:, None])

    # Derivative of the pixel with respect to the world: rows of J R.
    tangent = view.rotation[:2, :, None] - slope[:, None] * view.rotation[2][None, :, None]
    tangent = (view.focal[:, None] / depth[None])[:, None] * tangent
    u, v = _apply(tangent, axes)

    # The covariance in the image, [[a, b], [b, c]], is that of the axes as the image sees them.
    a = jnp.sum(u * u, axis=0) + LOW_PASS
    b = jnp.sum(u * v, axis=0)
    c = jnp.sum(v * v, axis=0) + LOW_PASS

    # ac - b^2 = |u|^2 |v|^2 - (u v)^2 + ..., and |u x v|^2 is that difference without cancellation.
    cross = jnp.cross(u, v, axis=0)
    determinant = jnp.sum(cross**2, axis=0) + LOW_PASS * (a + c - LOW_PASS)
    p = jnp.sqrt(c / determinant)
    splats = Splats(
        center=center,
        whitening=jnp.stack([p, -p * b / c, lax.rsqrt(c)]),
        depth=depth,
        opacity=gaussians.opacities,
        color=gaussians.colors.T,
    )

    box = _exact_boxes if culling == "exact" else _inria_boxes
    covariance = Covariance(variance=jnp.stack([a, c]), determinant=determinant)
    boxes = box(*lax.stop_gradient((splats, covariance)), size)
    return splats, boxes


def _can_be_drawn(
    position: Float[Array, "3 n"], axes: Float[Array, "3 3 n"], view: View
) -> Bool[Array, " n"]:
    """Returns which lie in front of the camera and have numbers that float32 can square.

    A NaN has not.
    """
    x, y, depth = lax.stop_gradient(position)
    reach = jnp.max(jnp.abs(lax.stop_gradient(axes)), axis=(0, 1)) + jnp.abs(x) + jnp.abs(y)
    near_enough = (depth < FAR) & (jnp.max(lax.stop_gradient(view.focal)) * reach < FAR * depth)
    return (depth > NEAR) & near_enough


def _apply(
    matrix: Float[Array, "r k *n"], vectors: Float[Array, "k *c n"]
) -> Float[Array, "r *c n"]:
    """Returns a matrix (one for all, or one each) times vectors.

    It is computed elementwise: devices multiply matrices in less than float32.
    """
    lead = vectors.ndim - 2
    matrix = matrix.reshape(*matrix.shape[:2], *(1,) * lead, -1)
    terms = [matrix[:, i] * vectors[i][None] for i in range(vectors.shape[0])]
    return functools.reduce(jnp.add, terms)


def _exact_boxes(splats: Splats, covariance: Covariance, size: tuple[int, int]) -> Boxes:
    """Returns the bounding boxes of all pixels with opacity exp(-q / 2) >= 1/255."""
    visible = splats.opacity >= ALPHA_MIN
    q = 2 * jnp.log(jnp.where(visible, splats.opacity, 1) / ALPHA_MIN)
    # Half a percent and a hundredth of a pixel wider: rounding must not exclude a pixel.
    reach = 1.005 * jnp.sqrt(q[None] * covariance.variance) + 0.01
    first = jnp.ceil(splats.center - reach - 0.5)
    last = jnp.floor(splats.center + reach - 0.5) + 1
    return _clipped(first, last, visible, size)


def _inria_boxes(splats: Splats, covariance: Covariance, size: tuple[int, int]) -> Boxes:
    """Returns the 16 px tiles touched by the square of 3 deviations of the longest axis."""
    mean = 0.5 * (covariance.variance[0] + covariance.variance[1])
    longest = mean + jnp.sqrt(jnp.maximum(mean * mean - covariance.determinant, 0.1))
    radius = jnp.ceil(3 * jnp.sqrt(longest))[None]
    center = splats.center - 0.5
    first = jnp.floor((center - radius) / INRIA_TILE) * INRIA_TILE
    last = jnp.floor((center + radius + INRIA_TILE - 1) / INRIA_TILE) * INRIA_TILE
    return _clipped(first, last, splats.opacity >= ALPHA_MIN, size)


def _clipped(
    first: Float[Array, "2 n"],
    last: Float[Array, "2 n"],
    visible: Array,
    size: tuple[int, int],
) -> Boxes:
    """Returns the boxes inside of the image; empty where nothing is visible, and for a NaN."""
    extent = jnp.array([size[1], size[0]], first.dtype)[:, None]
    visible = visible & ~jnp.any(jnp.isnan(first) | jnp.isnan(last), axis=0)
    first = jnp.clip(jnp.nan_to_num(first), 0, extent).astype(jnp.int32)
    last = jnp.clip(jnp.nan_to_num(last), 0, extent).astype(jnp.int32)
    return Boxes(first=first, last=jnp.where(visible[None], last, first))
