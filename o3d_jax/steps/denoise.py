"""Eq. 1: from the network F to the estimate of clean latents, with and without guidance."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from o3d_jax import edm
from o3d_jax.types import Condition, Maps

Network = Callable[
    [Float[Array, "b v h w c"], Float[Array, " b"], Condition, Maps], Float[Array, "b v h w c"]
]
"""F of Eq. 1: from scaled noisy latents, c_noise, condition and feedback to a raw prediction."""


def per_object(value: Float[Array, " b"], like: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Returns one value an object, shaped so that it multiplies `like`."""
    return value.reshape(value.shape + (1,) * (like.ndim - 1))


def denoise(
    network: Network,
    x: Float[Array, "b v h w c"],
    sigma: Float[Array, " b"],
    condition: Condition,
    maps: Maps,
) -> Float[Array, "b v h w c"]:
    """Returns Eq. 1, the estimate of the clean latents in noisy ones."""
    s = edm.scalings(sigma)
    raw = network(per_object(s.c_in, x) * x, s.c_noise, condition, maps)
    return per_object(s.c_skip, x) * x + per_object(s.c_out, x) * raw.astype(jnp.float32)


def guidance_scale(views: int, low: float, high: float) -> Float[Array, " {views}"]:
    """Returns the guidance of each view, which rises linearly from the input view to the last.

    SVD's pipeline does the same over frames.
    """
    return jnp.linspace(low, high, views, dtype=jnp.float32)


def denoise_guided(
    network: Network,
    x: Float[Array, "b v h w c"],
    sigma: Float[Array, " b"],
    condition: Condition,
    maps: Maps,
    guidance: Float[Array, " v"],
) -> Float[Array, "b v h w c"]:
    """Returns Eq. 1 with classifier-free guidance: x_u + g (x_c - x_u), one g per view.

    x_u is estimated with zero embedding and zero condition latents, but with the same feedback and
    cameras as x_c (RELEASE, sampling). Both are rows of one batch, x_u first.
    """

    def twice(a: Float[Array, "b ..."]) -> Float[Array, "2*b ..."]:
        return jnp.concatenate([a, a])

    both = Condition(
        clip=jnp.concatenate([jnp.zeros_like(condition.clip), condition.clip]),
        latents=jnp.concatenate([jnp.zeros_like(condition.latents), condition.latents]),
        added_ids=twice(condition.added_ids),
    )
    x0 = denoise(network, twice(x), twice(sigma), both, jax.tree.map(twice, maps))
    without, with_condition = jnp.split(x0, 2)
    return guide(without, with_condition, guidance)


def guide(
    without: Float[Array, "b v h w c"],
    with_condition: Float[Array, "b v h w c"],
    guidance: Float[Array, " v"],
) -> Float[Array, "b v h w c"]:
    """Returns the point at `guidance` on the line from one estimate, 0, to the other, 1.

    Above 1 it lies beyond the other.
    """
    return without + guidance[None, :, None, None, None] * (with_condition - without)
