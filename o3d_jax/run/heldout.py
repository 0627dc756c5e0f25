"""Figures of held-out objects while a model trains: cheap ones, always of the same noise.

They decide whether to go on, so nothing in them is random between two evaluations: the objects, the
noise levels, the noise and the condition are always the same.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from o3d_jax import edm
from o3d_jax.config import Config
from o3d_jax.metrics import psnr
from o3d_jax.nn.networks import Networks, apply
from o3d_jax.parallel.layout import Layout
from o3d_jax.steps.denoise import per_object
from o3d_jax.steps.draws import Draws, draw
from o3d_jax.steps.losses import noised
from o3d_jax.steps.reconstruct import decode_views, reconstruct
from o3d_jax.steps.sharded import on_own_objects
from o3d_jax.types import Batch, Frozen, Maps, Params, pytree

SIGMAS = (0.2, 0.7, 2.0, 6.0, 20.0, 60.0)
"""Noise levels at which the denoiser is judged."""


@pytree
class HeldOutFigures:
    """One row an object; None where the part that trains has no such network."""

    diffusion: Float[Array, "b s"] | None
    """Eq. 5's loss without feedback, at each of SIGMAS."""
    lgm: Float[Array, " b"] | None
    """PSNR in dB of LGM's renders of the object from true views, mean over all but the first."""
    vae: Float[Array, " b"] | None
    """PSNR in dB of the views that the VAE encodes and decodes, mean over all."""
    images: Float[Array, "b v h w 3"]
    """What to look at: LGM's renders, else the VAE's images, else what the denoiser sees in noise
    of the highest level."""


def heldout_figures(
    networks: Networks,
    config: Config,
    params: Params,
    frozen: Frozen,
    batch: Batch,
    key: Key[Array, ""],
) -> HeldOutFigures:
    """Returns the figures of those networks that train."""
    diffusion = lgm = vae = None
    images = batch.images  # To be replaced: at least one network trains.
    if params.unet is not None:
        diffusion, images = _of_noise(networks, config, params, frozen, batch, key)
    if params.vae is not None:
        images = apply(networks.vae, params.vae, batch.images)
        vae = psnr(jnp.clip(images, 0, 1), batch.images).mean(1)
    if params.lgm is not None:
        clean = jnp.zeros(batch.images.shape[0])
        made = reconstruct(networks, params.lgm, batch.images, batch.cameras, clean)
        images = made.rendering.rgb
        lgm = psnr(jnp.clip(images, 0, 1), batch.images)[:, 1:].mean(1)
    return HeldOutFigures(diffusion=diffusion, lgm=lgm, vae=vae, images=images)


@functools.partial(jax.jit, static_argnames=("networks", "config", "layout"))
def heldout_figures_on_devices(
    networks: Networks,
    config: Config,
    params: Params,
    frozen: Frozen,
    batch: Batch,
    key: Key[Array, ""],
    layout: Layout,
) -> HeldOutFigures:
    """`heldout_figures` of objects that lie on many devices; `params` lie as the average does.

    Each device has a key of its own, so that the noise of an object depends on their number.
    """

    def own(params: Params, frozen: Frozen, batch: Batch, key: Key[Array, ""]) -> HeldOutFigures:
        return heldout_figures(networks, config, params, frozen, batch, key)

    return on_own_objects(own, params, frozen, batch, key, layout)


def _of_noise(
    networks: Networks,
    config: Config,
    params: Params,
    frozen: Frozen,
    batch: Batch,
    key: Key[Array, ""],
) -> tuple[Float[Array, "b s"], Float[Array, "b v h w 3"]]:
    """Eq. 5's losses, and the views seen in the highest level's noise.

    All levels of an object are rows of one batch: so the denoiser is compiled once.
    """
    count, levels = batch.images.shape[0], len(SIGMAS)
    rows = jax.tree.map(lambda a: jnp.repeat(a, levels, axis=0), batch)
    drawn = draw(config, count, key)
    draws: Draws = jax.tree.map(lambda a: jnp.repeat(a, levels, axis=0), drawn)
    seen = jnp.full((count * levels,), config.sample.condition_noise)
    draws = dataclasses.replace(
        draws,
        sigma=jnp.tile(jnp.asarray(SIGMAS), count),
        condition=dataclasses.replace(draws.condition, sigma=seen, dropout=jnp.ones_like(seen)),
    )

    x, estimate = noised(networks, config, params, frozen, rows, draws)
    found = estimate(Maps.nothing(*rows.images.shape[:4]))
    weighted = per_object(edm.loss_weight(draws.sigma), x) * (found - x) ** 2
    losses = weighted.mean(axis=(1, 2, 3, 4)).reshape(count, levels)
    return losses, decode_views(networks, frozen.vae, found[levels - 1 :: levels])
