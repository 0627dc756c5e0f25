"""Front-to-back blending of splats, tile by tile, with a hand-written backward pass.

Forward and backward visit the same intersections in the same order, so they agree to the last bit
on which contributions count. A pixel's transmittance T starts at 1; once the next Gaussian would
bring it below 1e-4 the pixel is closed and keeps -T.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from o3d_jax.splat.project import ALPHA_MAX, ALPHA_MIN, Boxes, Splats
from o3d_jax.splat.tiles import (
    Intersections,
    Round,
    Tiling,
    in_image,
    intersect,
    pixel_offsets,
    sum_by_gaussian,
    take_round,
    tile_centers,
)
from o3d_jax.types import pytree

TRANSMITTANCE_MIN = 1e-4  # A pixel closes before the Gaussian that would bring it below this.


@pytree
class Blended:
    """A view before the background."""

    features: Float[Array, "t 4 p"]
    """Weighted sums of red, green, blue and depth."""

    transmittance: Float[Array, "t p"]
    """What is left for the background, in [0, 1]."""


@pytree
class Work:
    """What the blending of a group of g tiles reads."""

    start: Int[Array, "*groups g"]
    count: Int[Array, "*groups g"]
    middle: Float[Array, "*groups 2 g"]


@pytree
class Contribution:
    """One Gaussian on each of g tiles, pixel by pixel."""

    raw: Float[Array, "g p"]
    """opacity exp(-q / 2)."""

    alpha: Float[Array, "g p"]
    """0 where it does not count."""

    after: Float[Array, "g p"]
    """T behind it; negative once closed."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def blend(splats: Splats, boxes: Boxes, tiling: Tiling) -> Blended:
    """Sums over all Gaussians, front to back by depth (ties by index)."""
    return _sequential(_forward, tiling)(splats, boxes)


def _blend_forward(splats, boxes, tiling):
    blended = blend(splats, boxes, tiling)
    return blended, (splats, boxes, blended)


def _blend_backward(tiling, saved, cotangent):
    return _sequential(_backward, tiling)(*saved, cotangent), None


blend.defvjp(_blend_forward, _blend_backward)


def _sequential(function, tiling):
    """Under vmap, one view after the other: side by side they would wait for the slowest."""
    return jax.custom_batching.sequential_vmap(functools.partial(function, tiling))


def _forward(tiling: Tiling, splats: Splats, boxes: Boxes) -> Blended:
    table = _table(splats)
    intersections = intersect(splats.depth, boxes, tiling)

    def one_round(state):
        begin, transmittance, features = state
        taken = take_round(intersections, begin, jnp.any(transmittance > 0, axis=1), tiling)
        by_group = functools.partial(_grouped, taken.busiest, tiling)
        transmittance, features = lax.map(
            lambda xs: _blend_group(tiling, table, taken, *xs),
            (_works(taken, tiling, table.dtype), by_group(transmittance), by_group(features)),
        )
        ungroup = functools.partial(_ungrouped, taken.busiest)
        return begin + tiling.capacity, ungroup(transmittance), ungroup(features)

    features = _zeros((tiling.tiles, 4, tiling.pixels), table)
    state = (jnp.int32(0), _untouched(tiling, table), features)
    _, transmittance, features = lax.while_loop(
        functools.partial(_unfinished, intersections), one_round, state
    )
    return Blended(features=features, transmittance=jnp.abs(transmittance))


def _blend_group(
    tiling: Tiling,
    table: Float[Array, "n 10"],
    taken: Round,
    work: Work,
    transmittance: Float[Array, "g p"],
    features: Float[Array, "g 4 p"],
) -> tuple[Float[Array, "g p"], Float[Array, "g 4 p"]]:
    """The group's pixels behind all of this round's Gaussians."""
    pixels = jnp.asarray(pixel_offsets(tiling), table.dtype)

    def one_chunk(state):
        begin, transmittance, features = state
        _, rows = _chunk_rows(begin, tiling, table, taken, work)

        def one_gaussian(k, carry):
            transmittance, features = carry
            row = lax.dynamic_index_in_dim(rows, k, 1, keepdims=False)
            hit = _contribution(row, pixels, transmittance)
            weight = hit.alpha * jnp.abs(transmittance)
            return hit.after, features + weight[:, None] * row[:, 6:, None]

        carry = lax.fori_loop(0, tiling.chunk, one_gaussian, (transmittance, features))
        return begin + tiling.chunk, *carry

    state = (jnp.int32(0), transmittance, features)
    return lax.while_loop(functools.partial(_has_more, work), one_chunk, state)[1:]


def _backward(
    tiling: Tiling, splats: Splats, boxes: Boxes, blended: Blended, cotangent: Blended
) -> Splats:
    table = _table(splats)
    intersections = intersect(splats.depth, boxes, tiling)
    # What a pixel gains from everything behind the current Gaussian, and from what T is left.
    behind = jnp.sum(cotangent.features * blended.features, axis=1)
    behind = behind + cotangent.transmittance * blended.transmittance

    def one_round(state):
        begin, transmittance, behind, gradient = state
        taken = take_round(intersections, begin, jnp.any(transmittance > 0, axis=1), tiling)
        by_group = functools.partial(_grouped, taken.busiest, tiling)
        rows = _zeros((tiling.capacity, table.shape[1]), table)
        rows, (transmittance, behind) = lax.scan(
            lambda rows, xs: _blend_group_backward(tiling, table, taken, rows, *xs),
            rows,
            (
                _works(taken, tiling, table.dtype),
                by_group(transmittance),
                by_group(behind),
                by_group(cotangent.features),
            ),
        )
        gradient = gradient + sum_by_gaussian(rows, intersections, taken, begin)
        ungroup = functools.partial(_ungrouped, taken.busiest)
        return begin + tiling.capacity, ungroup(transmittance), ungroup(behind), gradient

    state = (jnp.int32(0), _untouched(tiling, table), behind, _zeros(table.shape, table))
    gradient = lax.while_loop(functools.partial(_unfinished, intersections), one_round, state)[-1]
    return _splats(gradient)


def _blend_group_backward(tiling, table, taken, rows, work, transmittance, behind, cotangent):
    """Writes one gradient row for each of the group's intersections in this round."""
    pixels = jnp.asarray(pixel_offsets(tiling), table.dtype)
    group, pixel_count = transmittance.shape

    def one_chunk(state):
        begin, transmittance, behind, gradient_rows = state
        slot, chunk = _chunk_rows(begin, tiling, table, taken, work)

        def one_gaussian(k, carry):
            transmittance, behind, exponents, weights = carry
            row = lax.dynamic_index_in_dim(chunk, k, 1, keepdims=False)
            hit = _contribution(row, pixels, transmittance)
            weight = hit.alpha * jnp.abs(transmittance)
            gain = sum(cotangent[:, i] * row[:, 6 + i, None] for i in range(4))
            behind = behind - weight * gain
            exponent = weight * gain - behind * hit.alpha / (1 - hit.alpha)
            exponent = jnp.where((hit.alpha > 0) & (hit.raw < ALPHA_MAX), exponent, 0)
            exponents = lax.dynamic_update_index_in_dim(exponents, exponent, k, 0)
            weights = lax.dynamic_update_index_in_dim(weights, weight, k, 1)
            return hit.after, behind, exponents, weights

        exponents = _zeros((tiling.chunk, group, pixel_count), table)
        weights = _zeros((group, tiling.chunk, pixel_count), table)
        transmittance, behind, exponents, weights = lax.fori_loop(
            0, tiling.chunk, one_gaussian, (transmittance, behind, exponents, weights)
        )
        gradient = _row_gradients(chunk, exponents, weights, cotangent, pixels)
        gradient_rows = gradient_rows.at[slot].set(gradient, mode="drop", unique_indices=True)
        return begin + tiling.chunk, transmittance, behind, gradient_rows

    state = (jnp.int32(0), transmittance, behind, rows)
    _, transmittance, behind, rows = lax.while_loop(
        functools.partial(_has_more, work), one_chunk, state
    )
    return rows, (transmittance, behind)


def _row_gradients(
    rows: Float[Array, "g k 10"],
    exponents: Float[Array, "k g p"],
    weights: Float[Array, "g k p"],
    cotangent: Float[Array, "g 4 p"],
    pixels: Float[Array, "2 p"],
) -> Float[Array, "g k 10"]:
    """Gradients of one Gaussian on one tile, from the gradients of log alpha (`exponents`).

    Sums over pixels as matrix products with the monomials 1, x, y, x^2, x y, y^2.
    """
    x, y = pixels
    monomials = jnp.stack([jnp.ones_like(x), x, y, x * x, x * y, y * y])
    moments = jnp.einsum("kgp,mp->mgk", exponents, monomials, precision="highest")
    features = jnp.einsum("gkp,gcp->cgk", weights, cotangent, precision="highest")
    center_x, center_y, p, r, s, opacity = jnp.moveaxis(rows[:, :, :6], -1, 0)
    total, sum_x, sum_y, sum_xx, sum_xy, sum_yy = moments
    # The same with d = center - pixel in place of the pixel.
    dx = center_x * total - sum_x
    dy = center_y * total - sum_y
    dxx = center_x * (dx - sum_x) + sum_xx
    dxy = center_x * dy - center_y * sum_x + sum_xy
    dyy = center_y * (dy - sum_y) + sum_yy
    u = p * dx + r * dy
    gradients = [
        -p * u,
        -r * u - s * s * dy,
        -(p * dxx + r * dxy),
        -(p * dxy + r * dyy),
        -s * dyy,
        total / jnp.where(opacity > 0, opacity, 1),
    ]
    return jnp.stack([*gradients, *features], axis=-1)


def _contribution(
    row: Float[Array, "g 10"], pixels: Float[Array, "2 p"], transmittance: Float[Array, "g p"]
) -> Contribution:
    """The effect of one Gaussian a tile on all pixels; centres count from the tile's middle."""
    center_x, center_y, p, r, s, opacity = (row[:, i, None] for i in range(6))
    dx = center_x - pixels[0][None]
    dy = center_y - pixels[1][None]
    u = p * dx + r * dy
    v = s * dy
    raw = opacity * jnp.exp(-0.5 * (u * u + v * v))
    alpha = jnp.where(raw >= ALPHA_MIN, jnp.minimum(raw, ALPHA_MAX), 0)
    after = transmittance * (1 - alpha)
    is_open = after >= TRANSMITTANCE_MIN
    return Contribution(
        raw=raw,
        alpha=jnp.where(is_open, alpha, 0),
        after=jnp.where(is_open, after, -jnp.abs(transmittance)),
    )


def _chunk_rows(
    begin: Int[Array, ""], tiling: Tiling, table: Float[Array, "n 10"], taken: Round, work: Work
) -> tuple[Int[Array, "g k"], Float[Array, "g k 10"]]:
    """Slot (beyond capacity, where there is none) and numbers of each tile's next Gaussians."""
    nth = begin + jnp.arange(tiling.chunk, dtype=jnp.int32)[None]
    exists = nth < work.count[:, None]
    sorted_index = jnp.where(exists, work.start[:, None] + nth, 0)
    beyond = tiling.capacity + jnp.arange(exists.size, dtype=jnp.int32).reshape(exists.shape)
    slot = jnp.where(exists, taken.slot[sorted_index], beyond)
    rows = table[taken.gaussian[sorted_index]]
    center = rows[:, :, :2] - work.middle.T[:, None]
    opacity = jnp.where(exists, rows[:, :, 5], 0)
    return slot, jnp.concatenate(
        [center, rows[:, :, 2:5], opacity[:, :, None], rows[:, :, 6:]], axis=-1
    )


def _has_more(work: Work, state: tuple) -> Array:
    """Whether a group has Gaussians left and a pixel to show them."""
    begin, transmittance = state[:2]
    return (begin < jnp.max(work.count)) & jnp.any(transmittance > 0)


def _unfinished(intersections: Intersections, state: tuple) -> Array:
    """Whether another round is needed."""
    begin, transmittance = state[:2]
    return (begin < intersections.total) & jnp.any(transmittance > 0)


def _works(taken: Round, tiling: Tiling, dtype: jnp.dtype) -> Work:
    """The work of all groups; leading axis: groups."""
    order = taken.busiest.reshape(-1, tiling.group)
    middle = jnp.asarray(tile_centers(tiling), dtype)[:, order]
    return Work(
        start=taken.start[order], count=taken.count[order], middle=jnp.swapaxes(middle, 0, 1)
    )


def _grouped(
    order: Int[Array, " t"], tiling: Tiling, tiles: Float[Array, "t ..."]
) -> Float[Array, "groups g ..."]:
    """Tiles in this order, by groups."""
    return tiles[order].reshape(-1, tiling.group, *tiles.shape[1:])


def _ungrouped(
    order: Int[Array, " t"], grouped: Float[Array, "groups g ..."]
) -> Float[Array, "t ..."]:
    """The inverse of `_grouped`."""
    flat = grouped.reshape(-1, *grouped.shape[2:])
    return jnp.zeros_like(flat).at[order].set(flat, unique_indices=True)


def _untouched(tiling: Tiling, table: Float[Array, "n 10"]) -> Float[Array, "t p"]:
    """T before the first Gaussian; pixels beyond the image are closed from the start."""
    start = jnp.asarray(np.where(in_image(tiling), 1, -1), table.dtype)
    return start + _zeros(start.shape, table)


def _zeros(shape: tuple[int, ...], table: Float[Array, "n 10"]) -> Float[Array, "..."]:
    """Zeros to start a loop over `table` with. Under `shard_map` they must vary like it does."""
    return jnp.broadcast_to(jnp.where(False, table[0, 0], 0), shape)


def _table(splats: Splats) -> Float[Array, "n 10"]:
    """One row a Gaussian, so that a tile reads it at once: center, whitening, opacity, features."""
    rows = [splats.center, splats.whitening, splats.opacity[None], splats.color]
    return jnp.concatenate([*rows, splats.depth[None]]).T


def _splats(table: Float[Array, "n 10"]) -> Splats:
    """The inverse of `_table`."""
    columns = table.T
    return Splats(
        center=columns[:2],
        whitening=columns[2:5],
        opacity=columns[5],
        color=columns[6:9],
        depth=columns[9],
    )
