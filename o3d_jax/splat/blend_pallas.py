"""One round of blending as two kernels for NVIDIA GPUs: one program a tile, no atomics.

Written in Pallas for its Triton compiler. On a CPU they are interpreted, which is for tests.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from o3d_jax.splat.contribution import (
    COLUMNS,
    BackwardState,
    Moments,
    contribution,
    geometry_gradients,
    log_alpha_gradient,
    zeros,
)
from o3d_jax.splat.tiles import Round, Tiling

FORWARD_WARPS = 2
BACKWARD_WARPS = 1  # The ten sums over pixels stay within a warp: no barriers.
UNROLLED = 4  # Gaussians whose loads are issued together.


def blend_round(
    tiling: Tiling,
    table: Float[Array, "n 10"],
    taken: Round,
    transmittance: Float[Array, "t p"],
    features: Float[Array, "t 4 p"],
) -> tuple[Float[Array, "t p"], Float[Array, "t 4 p"]]:
    """Returns transmittance and features behind all of this round's Gaussians."""
    tile, pixels = _of_one_tile, tiling.pixels
    whole = pl.BlockSpec(memory_space=pl.ANY)
    call = _kernel(
        functools.partial(_forward_kernel, tiling),
        name="splat_forward",
        warps=FORWARD_WARPS,
        grid=(tiling.tiles,),
        in_specs=[tile(), tile(), whole, tile(pixels), tile(4, pixels)],
        out_specs=[tile(pixels), tile(4, pixels)],
        out_shape=[_like(transmittance), _like(features)],
    )
    rows = table[taken.rank].ravel()
    return call(taken.tile_start, taken.tile_count, rows, transmittance, features)


def _forward_kernel(tiling: Tiling, start, count, rows, t_in, f_in, t_out, f_out) -> None:
    """Blends one tile.

    Its references are the tile's range, all sorted rows, and the tile's pixels before and after.
    """
    begin, end = start[...], start[...] + count[...]
    x, y, middle = _pixels(tiling, t_in.dtype)

    def one_gaussian(index, carry):
        transmittance, features = carry
        row = _row(rows, index, end, middle)
        hit = contribution(row[:6], x, y, transmittance)
        weight = hit.alpha * jnp.abs(transmittance)
        features = [f + weight * value for f, value in zip(features, row[6:], strict=True)]
        return hit.after, features

    carry = (t_in[...], [f_in[i] for i in range(4)])
    transmittance, features = _over_gaussians(one_gaussian, begin, end, carry)
    t_out[...] = transmittance
    for i in range(4):
        f_out[i] = features[i]


def blend_round_backward(
    tiling: Tiling,
    table: Float[Array, "n 10"],
    taken: Round,
    transmittance: Float[Array, "t p"],
    behind: Float[Array, "t p"],
    cotangent: Float[Array, "t 4 p"],
) -> BackwardState:
    """Returns what is known behind this round, and its gradient, given that of features."""
    tile, pixels = _of_one_tile, tiling.pixels
    whole = pl.BlockSpec(memory_space=pl.ANY)
    rows, nothing = table[taken.rank].ravel(), zeros((tiling.capacity * COLUMNS,), table)
    call = _kernel(
        functools.partial(_backward_kernel, tiling),
        name="splat_backward",
        warps=BACKWARD_WARPS,
        grid=(tiling.tiles,),
        in_specs=[tile(), tile(), whole, whole, tile(pixels), tile(pixels), tile(4, pixels), whole],
        out_specs=[tile(pixels), tile(pixels), whole],
        out_shape=[_like(transmittance), _like(behind), _like(nothing)],
        aliases={7: 2},  # Rows that no tile comes to stay 0.
    )
    ranges = (taken.tile_start, taken.tile_count, taken.slot)
    after, behind, gradient = call(*ranges, rows, transmittance, behind, cotangent, nothing)
    return BackwardState(transmittance=after, behind=behind, rows=gradient.reshape(-1, COLUMNS))


def _backward_kernel(
    tiling: Tiling, start, count, slots, rows, t_in, b_in, cotangents, _, t_out, b_out, gradient
) -> None:
    begin, end = start[...], start[...] + count[...]
    x, y, middle = _pixels(tiling, t_in.dtype)
    cotangent = [cotangents[i] for i in range(4)]

    # Every intersection has a row of its own, so programs never write to the same place.
    def one_gaussian(index, carry):
        transmittance, behind = carry
        row = _row(rows, index, end, middle)
        hit = contribution(row[:6], x, y, transmittance)
        weight = hit.alpha * jnp.abs(transmittance)
        gained = weight * sum(c * value for c, value in zip(cotangent, row[6:], strict=True))

        # From front to back, what lies behind is all of it less what has been passed.
        behind = behind - gained
        exponent = log_alpha_gradient(hit, gained, behind)
        by_x, by_y = exponent * hit.dx, exponent * hit.dy
        moments = Moments(
            total=jnp.sum(exponent),
            x=jnp.sum(by_x),
            y=jnp.sum(by_y),
            xx=jnp.sum(by_x * hit.dx),
            xy=jnp.sum(by_x * hit.dy),
            yy=jnp.sum(by_y * hit.dy),
        )

        sums = geometry_gradients(row[:6], moments) + [jnp.sum(weight * c) for c in cotangent]
        exists = index < end
        slot = triton.load(slots.at[index], mask=exists, other=0)
        for column, value in enumerate(sums):
            triton.store(gradient.at[slot * COLUMNS + column], value, mask=exists)
        return hit.after, behind

    transmittance, behind = _over_gaussians(one_gaussian, begin, end, (t_in[...], b_in[...]))
    t_out[...] = transmittance
    b_out[...] = behind


def _over_gaussians(one_gaussian: Callable, begin: Array, end: Array, carry: tuple) -> tuple:
    """Returns `carry`, T first, behind the tile's Gaussians, or when its last pixel closes."""

    def is_left(state):
        index, (transmittance, *_) = state
        return (index < end) & (jnp.max(transmittance) > 0)

    def some(state):
        index, carry = state
        for k in range(UNROLLED):
            carry = one_gaussian(index + k, carry)
        return index + UNROLLED, carry

    return lax.while_loop(is_left, some, (begin, carry))[1]


def _row(rows: Any, index: Array, end: Array, middle: list[Array]) -> list[Array]:
    """Returns the columns of a Gaussian, its center from the tile's middle; beyond `end`, zeros."""
    exists = index < end
    places = [index * COLUMNS + i for i in range(COLUMNS)]
    row = [triton.load(rows.at[place], mask=exists, other=0.0) for place in places]
    return [row[0] - middle[0], row[1] - middle[1], *row[2:]]


def _pixels(
    tiling: Tiling, dtype: jnp.dtype
) -> tuple[Float[Array, " p"], Float[Array, " p"], list[Float[Array, ""]]]:
    """Returns x and y of the tile's pixels from its middle, and that middle in the image, px."""
    place, side = lax.iota(jnp.int32, tiling.pixels), tiling.tile
    shift = side.bit_length() - 1
    tile = pl.program_id(0)
    columns = jnp.asarray(tiling.columns, tile.dtype)
    middle = [lax.rem(tile, columns), lax.div(tile, columns)]
    return (
        (place & (side - 1)).astype(dtype) + (0.5 - side / 2),
        (place >> shift).astype(dtype) + (0.5 - side / 2),
        [side * (i.astype(dtype) + 0.5) for i in middle],
    )


def _of_one_tile(*shape: int) -> pl.BlockSpec:
    """Returns the part of an array (t, *shape) that belongs to the program's tile."""
    return pl.BlockSpec((None, *shape), lambda tile: (tile, *(0 for _ in shape)))


def _like(x: Array) -> jax.ShapeDtypeStruct:
    """Returns its shape and type, and how it varies between the devices of a `shard_map`."""
    return jax.eval_shape(lambda x: x, x)


def _kernel(
    kernel: Callable, *, warps: int, aliases: dict[int, int] | None = None, **specs: Any
) -> Callable:
    """Returns the kernel as a function of arrays: compiled on a GPU, interpreted on a CPU."""
    call = functools.partial(pl.pallas_call, kernel, input_output_aliases=aliases or {}, **specs)
    compiled = call(compiler_params=triton.CompilerParams(num_warps=warps))
    interpreted = call(interpret=True)
    return lambda *args: tuple(lax.platform_dependent(*args, cpu=interpreted, default=compiled))
