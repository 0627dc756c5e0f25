"""The EDM framework as SVD uses it (App. A.1): Eqs. 7-11, noise levels, and the draw of sigma.

No network here. `sigma` is the standard deviation of the noise on scaled latents, whose data
have a standard deviation of about 1.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from o3d_jax.types import pytree


@pytree
class Scalings:
    """The coefficients around the network in Eq. 1 (= Eq. 6)."""

    c_in: Float[Array, "*b"]
    c_out: Float[Array, "*b"]
    c_skip: Float[Array, "*b"]
    c_noise: Float[Array, "*b"]


def scalings(sigma: Float[Array, "*b"]) -> Scalings:
    """Returns Eqs. 7-10. c_out is negative: SVD predicts v, not the residual."""
    norm = jnp.sqrt(sigma**2 + 1)
    return Scalings(
        c_in=1 / norm, c_out=-sigma / norm, c_skip=1 / norm**2, c_noise=0.25 * jnp.log(sigma)
    )


def loss_weight(sigma: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Returns Eq. 11, lambda = (1 + sigma^2) / sigma^2 = c_out^-2."""
    return (1 + sigma**2) / sigma**2


def sigma_schedule(
    levels: int, sigma_min: float = 0.002, sigma_max: float = 700.0, rho: float = 7.0
) -> Float[Array, " {levels}+1"]:
    """Returns the noise levels of a sampling run, from high to low, and a closing 0.

    They are Eq. 5 of Karras et al. (2022), with SVD's bounds. With `levels` 1 they are sigma_max
    and 0.
    """
    ramp = jnp.linspace(0.0, 1.0, levels, dtype=jnp.float32)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    return jnp.concatenate([sigmas, jnp.zeros(1, jnp.float32)])


def initial_deviation(sigma_max: float) -> float:
    """Returns what pure noise is scaled by: the deviation of unit-variance data plus such noise.

    SVD's scheduler does so. A.1 has sigma_max, which differs by 1e-6 at 700.
    """
    return math.sqrt(sigma_max**2 + 1)


def draw_sigma(
    key: Key[Array, ""], shape: tuple[int, ...], mean: float, std: float
) -> Float[Array, "..."]:
    """Returns draws of sigma, log sigma being of N(mean, std^2) (App. A.1: 1.0 and 1.6)."""
    return sigma_quantile(jax.random.uniform(key, shape, jnp.float32), mean, std)


def sigma_quantile(uniform: Float[Array, "*s"], mean: float, std: float) -> Float[Array, "*s"]:
    """Returns the sigma that a share `uniform` of draws is below; finite also at 0 and 1 (SVD)."""
    inside = uniform * (1 - 2e-7) + 1e-7
    normal = math.sqrt(2) * jax.lax.erf_inv(2 * inside - 1)
    return jnp.exp(mean + std * normal)
