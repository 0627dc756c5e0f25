"""The random numbers of a training step, all drawn at one place."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from o3d_jax import edm
from o3d_jax.config import Config
from o3d_jax.steps.condition import ConditionDraws
from o3d_jax.types import pytree


@pytree
class Draws:
    """All random numbers of one training step."""

    sigma: Float[Array, " b"]
    noise: Float[Array, "b v h w c"]
    posterior: Float[Array, "b v h w c"]
    """Standard normal, on the views' latents; used where these are sampled (release)."""
    condition: ConditionDraws


def draw(config: Config, batch: int, key: Key[Array, ""]) -> Draws:
    """Returns a step's random numbers for `batch` objects."""
    model, diffusion = config.model, config.diffusion
    # Keys in a fixed order: another one would change what every seed has drawn so far.
    sigma_key, noise_key, views_key, condition_key = jax.random.split(key, 4)
    level_key, image_key, latents_key, drop_key = jax.random.split(condition_key, 4)

    image = (batch, model.image_size, model.image_size, 3)
    latents = (model.latent_size, model.latent_size, model.vae.channels)
    views = (batch, model.num_views, *latents)

    condition = ConditionDraws(
        sigma=edm.draw_sigma(
            level_key, (batch,), diffusion.condition_p_mean, diffusion.condition_p_std
        ),
        noise=jax.random.normal(image_key, image, jnp.float32),
        posterior=jax.random.normal(latents_key, (batch, *latents), jnp.float32),
        dropout=jax.random.uniform(drop_key, (batch,), jnp.float32),
    )
    return Draws(
        sigma=edm.draw_sigma(sigma_key, (batch,), diffusion.p_mean, diffusion.p_std),
        noise=jax.random.normal(noise_key, views, jnp.float32),
        posterior=jax.random.normal(views_key, views, jnp.float32),
        condition=condition,
    )


def draw_coin(config: Config, step: int) -> bool:
    """Returns whether a step uses feedback: one coin a step for all objects and processes.

    It is drawn on the host, without waiting for a device, and chooses between two compiled
    programs. A `lax.cond` inside one would do, but on CPUs XLA runs the gradients of convolutions
    in a conditional many times slower.
    """
    uniform = np.random.default_rng((config.seed, step)).random()
    return bool(uniform < feedback_share(config))


def feedback_share(config: Config) -> float:
    """Returns the probability that a step uses feedback: none where a network trains alone."""
    return config.diffusion.feedback_probability if config.train.part == "joint" else 0.0


def coin_sides(config: Config) -> tuple[bool, ...]:
    """Returns what `draw_coin` can ever say, False first: there is a program for each."""
    share = feedback_share(config)
    if share == 0:
        return (False,)
    return (True,) if share == 1 else (False, True)
