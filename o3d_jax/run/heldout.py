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
from o3d_jax.metrics import psnr
from o3d_jax.nn.networks import Ouroboros, apply
from o3d_jax.parallel.layout import Layout
from o3d_jax.steps.denoise import per_object
from o3d_jax.steps.draws import Draws, draw
from o3d_jax.steps.losses import noised
from o3d_jax.steps.reconstruct import decode_views, reconstruct
from o3d_jax.steps.sharded import on_own_objects
from o3d_jax.types import Batch, Maps, pytree

SIGMAS = (0.2, 0.7, 2.0, 6.0, 20.0, 60.0)
"""Noise levels at which the denoiser is judged."""


@pytree
class HeldOutFigures:
    """What is found out about held-out objects, one row each.

    A figure is None where the part of the training has no such network.
    """

    diffusion: Float[Array, "b s"] | None
    """Eq. 5's loss without feedback, at each of SIGMAS."""
    lgm: Float[Array, " b"] | None
    """PSNR in dB of LGM's renders of the object from true views, mean over all but the first."""
    vae: Float[Array, " b"] | None
    """PSNR in dB of the views that the VAE encodes and decodes, mean over all."""
    images: Float[Array, "b v h w 3"]
    """What to look at: LGM's renders, else the VAE's images, else what the denoiser sees in noise
    of the highest level."""


def heldout_figures(model: Ouroboros, batch: Batch, key: Key[Array, ""]) -> HeldOutFigures:
    """Returns the figures of those networks that train."""
    params = model.params
    diffusion = lgm = vae = None
    images = batch.images  # To be replaced: at least one network trains.
    if params.unet is not None:
        diffusion, images = _diffusion_losses(model, batch, key)

    if params.vae is not None:
        images = apply(model.networks.vae, params.vae, batch.images)
        vae = psnr(jnp.clip(images, 0, 1), batch.images).mean(1)

    # The first view is the input: what LGM makes of it says little about the others.
    if params.lgm is not None:
        clean = jnp.zeros(batch.images.shape[0])
        made = reconstruct(model, batch.images, batch.cameras, clean)
        images = made.rendering.rgb
        lgm = psnr(jnp.clip(images, 0, 1), batch.images)[:, 1:].mean(1)
    return HeldOutFigures(diffusion=diffusion, lgm=lgm, vae=vae, images=images)


@functools.partial(jax.jit, static_argnames="layout")
def heldout_figures_on_devices(
    model: Ouroboros, batch: Batch, key: Key[Array, ""], layout: Layout
) -> HeldOutFigures:
    """Returns `heldout_figures` for objects that lie on many devices.

    The model's parameters lie as a training state's average does. Each device has a key of its
    own, so that the noise of an object depends on their number.
    """
    return on_own_objects(heldout_figures, model, batch, key, layout)


def _diffusion_losses(
    model: Ouroboros, batch: Batch, key: Key[Array, ""]
) -> tuple[Float[Array, "b s"], Float[Array, "b v h w 3"]]:
    """Returns Eq. 5's loss at each level, and the views seen in the highest level's noise.

    All levels of an object are rows of one batch: so the denoiser is compiled once.
    """
    config, count, levels = model.config, batch.images.shape[0], len(SIGMAS)
    rows = jax.tree.map(lambda a: jnp.repeat(a, levels, axis=0), batch)
    drawn = draw(config, count, key)
    draws: Draws = jax.tree.map(lambda a: jnp.repeat(a, levels, axis=0), drawn)

    # The condition is that of sampling: as little noise on the image, and none of it dropped.
    seen = jnp.full((count * levels,), config.sample.condition_noise)
    draws = dataclasses.replace(
        draws,
        sigma=jnp.tile(jnp.asarray(SIGMAS), count),
        condition=dataclasses.replace(draws.condition, sigma=seen, dropout=jnp.ones_like(seen)),
    )

    x, estimate = noised(model, rows, draws)
    found = estimate(Maps.nothing(*rows.images.shape[:4]))
    weighted = per_object(edm.loss_weight(draws.sigma), x) * (found - x) ** 2
    losses = weighted.mean(axis=(1, 2, 3, 4)).reshape(count, levels)
    return losses, decode_views(model, found[levels - 1 :: levels])
