"""What trains: all of Algorithm 1 jointly, or one network alone, from scratch.

The paper starts from the weights of SVD and LGM. A model that has none trains its VAE first, then
LGM on true views and the denoiser without feedback, then both jointly: `TrainConfig.part`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from o3d_jax.config import Config
from o3d_jax.nn.layers import pixel_shuffle
from o3d_jax.nn.networks import Networks, Ouroboros, apply
from o3d_jax.nn.vae import Vae
from o3d_jax.steps.draws import Draws
from o3d_jax.steps.losses import (
    LossTerms,
    diffusion_loss,
    mean_square,
    noised,
    reconstruction_errors,
    train_loss,
)
from o3d_jax.steps.reconstruct import reconstruct, sampled
from o3d_jax.types import Batch, Frozen, Maps, Params

KL_WEIGHT = 1e-5
"""Weight of the KL term beside the mean square error: keeps latents near unit scale, and images
sharp."""

Loss = Callable[[Params, Frozen, tuple[Batch, Draws]], tuple[Float[Array, ""], LossTerms]]
"""A function of the parameters that train, the frozen ones, and a batch with its random numbers. It
returns what is minimized and its terms; a gradient is taken with respect to the first argument."""


def part_loss(networks: Networks, config: Config, use_feedback: bool) -> Loss:
    """Returns the loss of `config.train.part`; only joint training ever uses feedback."""
    part = config.train.part

    def loss(
        params: Params, frozen: Frozen, seen: tuple[Batch, Draws]
    ) -> tuple[Float[Array, ""], LossTerms]:
        batch, draws = seen
        if part == "vae":
            return vae_loss(networks.vae, params.vae, batch, draws)

        model = Ouroboros(networks=networks, config=config, params=params, frozen=frozen)
        if part == "lgm":
            return lgm_loss(model, batch)
        if part == "unet":
            return unet_loss(model, batch, draws)
        return train_loss(model, batch, draws, use_feedback)

    return loss


def vae_loss(
    vae: Vae, params: Any, batch: Batch, draws: Draws
) -> tuple[Float[Array, ""], LossTerms]:
    """Returns the error of images after encoding and decoding, plus the posterior's KL.

    Latents are drawn from the posterior, so that decoding works for all of it.
    """
    b, v = batch.images.shape[:2]
    images = batch.images.reshape(b * v, *batch.images.shape[2:])
    moments = apply(vae, params, images, method="encode")
    latents = sampled(moments, draws.posterior.reshape(moments.mean.shape))
    videos = latents.reshape(b, v, *latents.shape[1:])
    decoded = apply(vae, params, videos, method="decode")

    error = mean_square(decoded, batch.images)
    kl = 0.5 * jnp.mean(moments.mean**2 + jnp.exp(moments.logvar) - 1 - moments.logvar)
    total = error + KL_WEIGHT * kl
    return total, LossTerms(total=total, decoded=error, kl=kl)


def lgm_loss(model: Ouroboros, batch: Batch) -> tuple[Float[Array, ""], LossTerms]:
    """Returns Eq. 2 for renders of the object that LGM makes from true views, with c_noise 0."""
    clean = jnp.zeros(batch.images.shape[0])
    made = reconstruct(model, batch.images, batch.cameras, clean)
    errors = reconstruction_errors(model, batch, made.rendering)
    total = errors.weighted(model.config.optim)
    terms = LossTerms(
        total=total,
        rgb_clean=errors.rgb,
        lpips_clean=errors.lpips,
        alpha_clean=errors.alpha,
        ssim_clean=errors.ssim,
    )
    return total, terms


def unet_loss(model: Ouroboros, batch: Batch, draws: Draws) -> tuple[Float[Array, ""], LossTerms]:
    """Returns the denoiser's loss in Algorithm 1 (Eq. 5), without feedback."""
    x, estimate = noised(model, batch, draws)
    maps = Maps.nothing(*batch.images.shape[:4])
    error = diffusion_loss(estimate(maps), x, draws.sigma)
    return error, LossTerms(total=error, diffusion=error)


def split_parts(part: str, params: Params, frozen: Frozen) -> tuple[Params, Frozen]:
    """Returns the networks that train in a part of the training, and the frozen ones it needs.

    The VAE is among the frozen networks of a model; where it trains, it becomes a parameter.
    """
    no_params, no_frozen = Params(unet=None, lgm=None), Frozen(vae=None)
    if part == "vae":
        return dataclasses.replace(no_params, vae=frozen.vae), no_frozen
    if part == "lgm":
        needed = dataclasses.replace(no_frozen, lpips=frozen.lpips)
        return dataclasses.replace(no_params, lgm=params.lgm), needed
    if part == "unet":
        return dataclasses.replace(params, lgm=None), dataclasses.replace(frozen, lpips=None)
    return params, frozen


def scale_latents(vae: Vae, params: dict, images: Float[Array, "b v h w 3"]) -> dict:
    """Returns the same VAE with latents of standard deviation 1 / scaling_factor in each channel.

    So SVD's scaling factor holds for a VAE of our own. Images come out as before: the scale goes
    into the layers next to the latents, both linear, `quant_conv` before them and the decoder's
    `conv_in` after.
    """
    flat = images.reshape(-1, *images.shape[2:])
    mean = jax.jit(lambda p, x: apply(vae, p, x, method="encode").mean)(params, flat)
    mean = pixel_shuffle(mean, vae.config.patch)
    gain = 1 / (vae.config.scaling_factor * mean.std(axis=(0, 1, 2)))
    layers = dict(params["params"])
    quant, decoder = dict(layers["quant_conv"]), dict(layers["decoder"])

    # With z' = gain z, the mean becomes gain times itself, and the variance gain^2 times itself:
    # its logarithm is shifted by 2 log gain, so there only the bias changes.
    both = jnp.concatenate([gain, jnp.ones_like(gain)])
    shift = jnp.concatenate([jnp.zeros_like(gain), 2 * jnp.log(gain)])
    quant["kernel"] = quant["kernel"] * per_last(both, quant["kernel"])
    quant["bias"] = quant["bias"] * both + shift

    # The decoder takes the gain back where it reads latents.
    conv_in = dict(decoder["conv_in"])
    conv_in["kernel"] = conv_in["kernel"] / gain[None, None, :, None]
    return {"params": layers | {"quant_conv": quant, "decoder": decoder | {"conv_in": conv_in}}}


def per_last(value: Float[Array, " c"], like: Float[Array, "*s c"]) -> Float[Array, "..."]:
    """Returns one value a channel, shaped so that it multiplies `like`."""
    return value.reshape((1,) * (like.ndim - 1) + value.shape)
