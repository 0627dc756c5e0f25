"""One round of blending in plain XLA: groups of tiles, the busiest first, one group at a time."""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from o3d_jax.splat.contribution import (
    COLUMNS,
    BackwardState,
    Moments,
    contribution,
    geometry_gradients,
    log_alpha_gradient,
    zeros,
)
from o3d_jax.splat.tiles import Round, Tiling, pixel_offsets, tile_centers
from o3d_jax.types import pytree


@pytree
class Work:
    """What the blending of a group of g tiles reads."""

    start: Int[Array, "*groups g"]
    count: Int[Array, "*groups g"]
    middle: Float[Array, "*groups 2 g"]


@pytree
class Behind:
    """What the backward pass of a group of g tiles knows of its pixels."""

    transmittance: Float[Array, "*groups g p"]
    behind: Float[Array, "*groups g p"]
    """What the loss gains from all that lies behind."""
    cotangent: Float[Array, "*groups g 4 p"]
    """The gradient in features; it never changes."""


def blend_round(
    tiling: Tiling,
    table: Float[Array, "n 10"],
    taken: Round,
    transmittance: Float[Array, "t p"],
    features: Float[Array, "t 4 p"],
) -> tuple[Float[Array, "t p"], Float[Array, "t 4 p"]]:
    """Returns transmittance and features behind all of this round's Gaussians."""
    busiest = _busiest(taken)
    by_group = functools.partial(_grouped, busiest, tiling)
    transmittance, features = lax.map(
        lambda xs: _blend_group(tiling, table, taken, *xs),
        (_works(busiest, taken, tiling, table.dtype), by_group(transmittance), by_group(features)),
    )
    return _ungrouped(busiest, transmittance), _ungrouped(busiest, features)


def _blend_group(
    tiling: Tiling,
    table: Float[Array, "n 10"],
    taken: Round,
    work: Work,
    transmittance: Float[Array, "g p"],
    features: Float[Array, "g 4 p"],
) -> tuple[Float[Array, "g p"], Float[Array, "g 4 p"]]:
    """Blends a group of tiles with all their Gaussians of this round, a chunk at a time.

    Between two chunks one looks whether any pixel is still open.
    """
    x, y = jnp.asarray(pixel_offsets(tiling), table.dtype)[:, None]

    def one_chunk(state):
        begin, transmittance, features = state
        _, rows = _chunk_rows(begin, tiling, table, taken, work)

        # The nth Gaussian of each tile at once: elementwise over tiles and pixels.
        def one_gaussian(k, carry):
            transmittance, features = carry
            row = lax.dynamic_index_in_dim(rows, k, 1, keepdims=False)
            hit = contribution([row[:, i, None] for i in range(6)], x, y, transmittance)
            weight = hit.alpha * jnp.abs(transmittance)
            return hit.after, features + weight[:, None] * row[:, 6:, None]

        carry = lax.fori_loop(0, tiling.chunk, one_gaussian, (transmittance, features))
        return begin + tiling.chunk, *carry

    state = (jnp.int32(0), transmittance, features)
    return lax.while_loop(functools.partial(_has_more, work), one_chunk, state)[1:]


def blend_round_backward(
    tiling: Tiling,
    table: Float[Array, "n 10"],
    taken: Round,
    transmittance: Float[Array, "t p"],
    behind: Float[Array, "t p"],
    cotangent: Float[Array, "t 4 p"],
) -> BackwardState:
    """Returns what is known behind this round, and its gradient, given that of features."""
    busiest = _busiest(taken)
    by_group = functools.partial(_grouped, busiest, tiling)
    pixels = Behind(
        transmittance=by_group(transmittance),
        behind=by_group(behind),
        cotangent=by_group(cotangent),
    )

    # Groups write into one array of rows: each intersection belongs to one tile, and so to one.
    rows = zeros((tiling.capacity, COLUMNS), table)
    rows, (transmittance, behind) = lax.scan(
        lambda rows, xs: _blend_group_backward(tiling, table, taken, rows, *xs),
        rows,
        (_works(busiest, taken, tiling, table.dtype), pixels),
    )
    return BackwardState(
        transmittance=_ungrouped(busiest, transmittance),
        behind=_ungrouped(busiest, behind),
        rows=rows,
    )


def _blend_group_backward(
    tiling: Tiling,
    table: Float[Array, "n 10"],
    taken: Round,
    rows: Float[Array, "c 10"],
    work: Work,
    start: Behind,
) -> tuple[Float[Array, "c 10"], tuple[Float[Array, "g p"], Float[Array, "g p"]]]:
    """Writes one gradient row for each of the group's intersections in this round.

    Returns the rows, and transmittance and gain behind them.
    """
    pixels = jnp.asarray(pixel_offsets(tiling), table.dtype)
    x, y = pixels[:, None]
    (group, pixel_count), cotangent = start.transmittance.shape, start.cotangent

    def one_chunk(state):
        begin, transmittance, behind, gradient_rows = state
        slot, chunk = _chunk_rows(begin, tiling, table, taken, work)

        def one_gaussian(k, carry):
            transmittance, behind, exponents, weights = carry
            row = lax.dynamic_index_in_dim(chunk, k, 1, keepdims=False)
            hit = contribution([row[:, i, None] for i in range(6)], x, y, transmittance)
            weight = hit.alpha * jnp.abs(transmittance)
            gained = weight * sum(cotangent[:, i] * row[:, 6 + i, None] for i in range(4))

            # From front to back, what lies behind is all of it less what has been passed.
            behind = behind - gained
            exponent = log_alpha_gradient(hit, gained, behind)
            exponents = lax.dynamic_update_index_in_dim(exponents, exponent, k, 0)
            weights = lax.dynamic_update_index_in_dim(weights, weight, k, 1)
            return hit.after, behind, exponents, weights

        # Sums over pixels wait until the chunk is done: then they are products of matrices.
        exponents = zeros((tiling.chunk, group, pixel_count), table)
        weights = zeros((group, tiling.chunk, pixel_count), table)
        transmittance, behind, exponents, weights = lax.fori_loop(
            0, tiling.chunk, one_gaussian, (transmittance, behind, exponents, weights)
        )
        gradient = _row_gradients(chunk, exponents, weights, cotangent, pixels)
        gradient_rows = gradient_rows.at[slot].set(gradient, mode="drop", unique_indices=True)
        return begin + tiling.chunk, transmittance, behind, gradient_rows

    state = (jnp.int32(0), start.transmittance, start.behind, rows)
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
    """Returns the gradients of Gaussians on tiles, from those of log alpha (`exponents`).

    Sums over pixels are matrix products with the monomials 1, x, y, x^2, x y, y^2.
    """
    x, y = pixels
    monomials = jnp.stack([jnp.ones_like(x), x, y, x * x, x * y, y * y])
    sums = jnp.einsum("kgp,mp->mgk", exponents, monomials, precision="highest")
    features = jnp.einsum("gkp,gcp->cgk", weights, cotangent, precision="highest")

    # The same with d = center - pixel in place of the pixel:
    # sum (cx - x)^2 = cx (cx n - sum x) - cx sum x + sum x^2, and so on.
    center_x, center_y = rows[:, :, 0], rows[:, :, 1]
    total, sum_x, sum_y, sum_xx, sum_xy, sum_yy = sums
    dx = center_x * total - sum_x
    dy = center_y * total - sum_y
    moments = Moments(
        total=total,
        x=dx,
        y=dy,
        xx=center_x * (dx - sum_x) + sum_xx,
        xy=center_x * dy - center_y * sum_x + sum_xy,
        yy=center_y * (dy - sum_y) + sum_yy,
    )
    geometry = geometry_gradients([rows[:, :, i] for i in range(6)], moments)
    return jnp.stack([*geometry, *features], axis=-1)


def _chunk_rows(
    begin: Int[Array, ""], tiling: Tiling, table: Float[Array, "n 10"], taken: Round, work: Work
) -> tuple[Int[Array, "g k"], Float[Array, "g k 10"]]:
    """Returns slots and numbers of each tile's next Gaussians.

    Slots are beyond capacity where there are no more. Centers count from the tile's middle.
    """
    nth = begin + jnp.arange(tiling.chunk, dtype=jnp.int32)[None]
    exists = nth < work.count[:, None]
    sorted_index = jnp.where(exists, work.start[:, None] + nth, 0)
    beyond = tiling.capacity + jnp.arange(exists.size, dtype=jnp.int32).reshape(exists.shape)
    slot = jnp.where(exists, taken.slot[sorted_index], beyond)
    rows = table[taken.rank[sorted_index]]
    center = rows[:, :, :2] - work.middle.T[:, None]
    opacity = jnp.where(exists, rows[:, :, 5], 0)
    return slot, jnp.concatenate(
        [center, rows[:, :, 2:5], opacity[:, :, None], rows[:, :, 6:]], axis=-1
    )


def _has_more(work: Work, state: tuple) -> Bool[Array, ""]:
    """Returns whether a group has Gaussians left and a pixel to show them."""
    begin, transmittance = state[:2]
    return (begin < jnp.max(work.count)) & jnp.any(transmittance > 0)


def _busiest(taken: Round) -> Int[Array, " t"]:
    """Returns tiles by falling count: neighbors in this order have about the same work."""
    return jnp.argsort(-taken.tile_count, stable=True).astype(jnp.int32)


def _works(busiest: Int[Array, " t"], taken: Round, tiling: Tiling, dtype: jnp.dtype) -> Work:
    """Returns the work of all groups, which are the leading axis."""
    order = busiest.reshape(-1, tiling.group)
    middle = jnp.asarray(tile_centers(tiling), dtype)[:, order]
    return Work(
        start=taken.tile_start[order],
        count=taken.tile_count[order],
        middle=jnp.swapaxes(middle, 0, 1),
    )


def _grouped(
    order: Int[Array, " t"], tiling: Tiling, tiles: Float[Array, "t ..."]
) -> Float[Array, "groups g ..."]:
    """Returns tiles in this order, by groups."""
    return tiles[order].reshape(-1, tiling.group, *tiles.shape[1:])


def _ungrouped(
    order: Int[Array, " t"], grouped: Float[Array, "groups g ..."]
) -> Float[Array, "t ..."]:
    """Returns what was grouped in its old order: the inverse of `_grouped`."""
    flat = grouped.reshape(-1, *grouped.shape[2:])
    return jnp.zeros_like(flat).at[order].set(flat, unique_indices=True)
