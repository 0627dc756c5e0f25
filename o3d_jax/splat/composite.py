"""Front-to-back blending of splats, round by round, with a hand-written backward pass.

Forward and backward visit the same intersections in the same order, so they agree to the last bit
on which contributions count. A pixel's transmittance T starts at 1; once the next Gaussian would
bring it below 1e-4 the pixel is closed and keeps -T.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from o3d_jax.splat import blend_pallas, blend_xla
from o3d_jax.splat.contribution import COLUMNS, splats_of, table_of, zeros
from o3d_jax.splat.project import Boxes, Splats
from o3d_jax.splat.tiles import (
    Backend,
    Position,
    Ranked,
    Round,
    Tiling,
    in_image,
    rank_by_depth,
    sum_by_rank,
    take_round,
)
from o3d_jax.types import pytree

BACKENDS = {"xla": blend_xla, "pallas": blend_pallas}
"""The modules that blend a round, each by functions of the same names and arguments."""


@pytree
class Blended:
    """A view before the background."""

    features: Float[Array, "t 4 p"]
    """Weighted sums of red, green, blue and depth."""

    transmittance: Float[Array, "t p"]
    """What is left for the background, in [0, 1]."""


def blend(splats: Splats, boxes: Boxes, tiling: Tiling, backend: Backend) -> Blended:
    """Returns the sums over all Gaussians, front to back by depth, ties by index."""
    # Under `shard_map` gradients must vary between devices as their inputs do, and theirs all do.
    zero = sum(jnp.where(False, x[..., 0].ravel()[0], 0) for x in jax.tree.leaves(splats))
    alike = jax.tree.map(lambda x: x + zero, splats)
    return cast(Blended, _blend(alike, boxes, tiling, backend))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _blend(splats: Splats, boxes: Boxes, tiling: Tiling, backend: Backend) -> Blended:
    return _batched(_forward, tiling, backend)(splats, boxes)


def _blend_forward(
    splats: Splats, boxes: Boxes, tiling: Tiling, backend: Backend
) -> tuple[Blended, tuple[Splats, Boxes, Blended]]:
    blended = cast(Blended, _blend(splats, boxes, tiling, backend))
    return blended, (splats, boxes, blended)


def _blend_backward(
    tiling: Tiling, backend: Backend, saved: tuple[Splats, Boxes, Blended], cotangent: Blended
) -> tuple[Splats, None]:
    return _batched(_backward, tiling, backend)(*saved, cotangent), None


_blend.defvjp(_blend_forward, _blend_backward)


def _batched(function: Callable, tiling: Tiling, backend: Backend) -> Callable[..., Any]:
    """Returns `function` bound to these, as `vmap` should see it.

    XLA draws one view after the other: side by side they would wait for the slowest.
    """
    bound: Callable[..., Any] = functools.partial(function, tiling, backend)
    if backend == "xla":
        return jax.custom_batching.sequential_vmap(bound)
    return bound


def _forward(tiling: Tiling, backend: Backend, splats: Splats, boxes: Boxes) -> Blended:
    ranked = rank_by_depth(splats.depth, boxes, tiling)
    table = table_of(splats)[ranked.gaussian]

    # Rounds end when every pixel is closed: what lies behind is then never looked at.
    def one_round(state):
        position, transmittance, features = state
        taken = take_round(ranked, position, _is_open(transmittance), tiling)
        transmittance, features = BACKENDS[backend].blend_round(
            tiling, table, taken, transmittance, features
        )
        return taken.following, transmittance, features

    features = zeros((tiling.tiles, 4, tiling.pixels), table)
    state = (_beginning(table), _untouched(tiling, table), features)
    _, transmittance, features = lax.while_loop(
        functools.partial(_unfinished, ranked), one_round, state
    )
    return Blended(features=features, transmittance=jnp.abs(transmittance))


def _backward(
    tiling: Tiling,
    backend: Backend,
    splats: Splats,
    boxes: Boxes,
    blended: Blended,
    cotangent: Blended,
) -> Splats:
    ranked = rank_by_depth(splats.depth, boxes, tiling)
    table = table_of(splats)[ranked.gaussian]

    # What a pixel gains from everything behind the current Gaussian, and from what T is left.
    behind = jnp.sum(cotangent.features * blended.features, axis=1)
    behind = behind + cotangent.transmittance * blended.transmittance

    def one_round(state):
        position, transmittance, behind, gradient = state
        taken = take_round(ranked, position, _is_open(transmittance), tiling)
        after = BACKENDS[backend].blend_round_backward(
            tiling, table, taken, transmittance, behind, cotangent.features
        )
        gradient = _add_window(gradient, sum_by_rank(after.rows, taken), taken)
        return taken.following, after.transmittance, after.behind, gradient

    start = zeros((table.shape[0], COLUMNS), table)
    state = (_beginning(table), _untouched(tiling, table), behind, start)
    gradient = lax.while_loop(functools.partial(_unfinished, ranked), one_round, state)[-1]
    in_order = jnp.zeros_like(gradient).at[ranked.gaussian].set(gradient, unique_indices=True)
    return splats_of(in_order)


def _add_window(
    gradient: Float[Array, "n 10"], sums: Float[Array, "w 10"], taken: Round
) -> Float[Array, "n 10"]:
    window = lax.dynamic_slice_in_dim(gradient, taken.base, sums.shape[0])
    return lax.dynamic_update_slice_in_dim(gradient, window + sums, taken.base, 0)


def _is_open(transmittance: Float[Array, "t p"]) -> Bool[Array, " t"]:
    return jnp.any(transmittance > 0, axis=1)


def _unfinished(ranked: Ranked, state: tuple) -> Bool[Array, ""]:
    """Returns whether another round is needed."""
    position, transmittance = state[:2]
    return (position.rank < ranked.visible) & jnp.any(transmittance > 0)


def _beginning(table: Float[Array, "n 10"]) -> Position:
    zero = zeros((), table).astype(jnp.int32)
    return Position(rank=zero, nth=zero)


def _untouched(tiling: Tiling, table: Float[Array, "n 10"]) -> Float[Array, "t p"]:
    """Returns T before the first Gaussian; pixels beyond the image are closed from the start."""
    start = jnp.asarray(np.where(in_image(tiling), 1, -1), table.dtype)
    return start + zeros(start.shape, table)
