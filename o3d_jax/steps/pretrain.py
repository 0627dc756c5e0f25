"""Training each network alone, for models that have no weights of SVD and LGM to start from.

Not part of the paper, which starts from those. Every loss takes parameters, frozen networks, a
batch and a key.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from o3d_jax.config import Config
from o3d_jax.nn.networks import Networks, apply
from o3d_jax.nn.vae import Vae
from o3d_jax.steps.reconstruct import reconstruct
from o3d_jax.steps.train import diffusion_loss, draw, noised
from o3d_jax.types import Batch, Frozen, Maps, Params, pytree

KL_WEIGHT = 1e-5
"""Against the mean square error per value; keeps latents near unit scale without blurring."""

EMA_DECAY = 0.995
"""Per step: runs are of a few thousand steps."""

Loss = Callable[[Any, Any, Batch, Key[Array, ""]], tuple[Float[Array, ""], Float[Array, ""]]]
"""Of parameters, frozen networks (None where there are none), a batch and a key: what is minimised,
and the mean square error in it."""


@pytree
class PretrainState:
    """All that a step of training one network reads and replaces."""

    step: Int[Array, ""]
    params: Any
    ema: Any
    opt_state: Any


def vae_loss(
    vae: Vae, params: Any, _: None, batch: Batch, key: Key[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Reconstruction error of images through sampled latents, plus KL; and the error alone."""
    images = batch.images
    b, v = images.shape[:2]
    moments = apply(vae, params, images.reshape(b * v, *images.shape[2:]), method="encode")
    noise = jax.random.normal(key, moments.mean.shape, jnp.float32)
    latents = moments.mean + jnp.exp(0.5 * moments.logvar) * noise
    decoded = apply(vae, params, latents.reshape(b, v, *latents.shape[1:]), method="decode")
    error = jnp.mean((decoded - images) ** 2)
    kl = 0.5 * jnp.mean(moments.mean**2 + jnp.exp(moments.logvar) - 1 - moments.logvar)
    return error + KL_WEIGHT * kl, error


def lgm_loss(
    networks: Networks, params: Any, _: None, batch: Batch, key: Key[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean square error of renders of the object made from true views, with c_noise 0; twice."""
    del key  # Nothing is drawn.
    clean = jnp.zeros(batch.images.shape[0])
    rendering = reconstruct(networks, params, batch.images, batch.cameras, clean).rendering
    error = jnp.mean((rendering.rgb - batch.images) ** 2)
    return error, error


def unet_loss(
    networks: Networks,
    config: Config,
    params: Params,
    frozen: Frozen,
    batch: Batch,
    key: Key[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Algorithm 1's loss of the denoiser (Eq. 5) without feedback; twice."""
    draws = draw(config, batch.images.shape[0], key)
    x, estimate = noised(networks, config, params, frozen, batch, draws)
    maps = Maps.nothing(*batch.images.shape[:4])
    error = diffusion_loss(estimate(maps), x, draws.sigma)
    return error, error


@functools.partial(jax.jit, static_argnames=("loss", "optimizer"), donate_argnames="state")
def pretrain_step(
    state: PretrainState,
    frozen: Frozen | None,
    batch: Batch,
    key: Key[Array, ""],
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
) -> tuple[PretrainState, Float[Array, ""]]:
    """One step, and its mean square error. The step number is folded into `key`."""
    step_key = jax.random.fold_in(key, state.step)
    gradient, error = jax.grad(loss, has_aux=True)(state.params, frozen, batch, step_key)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = jax.tree.map(lambda e, p: EMA_DECAY * e + (1 - EMA_DECAY) * p, state.ema, params)
    step = state.step + 1
    return PretrainState(step=step, params=params, ema=ema, opt_state=opt_state), error


def scale_latents(vae: Vae, params: Any, images: Float[Array, "b v h w 3"]) -> Any:
    """The same VAE with latents of standard deviation 1 / scaling_factor in each channel.

    The scale goes into the layers next to the latents, both linear: `quant_conv` before them and
    the decoder's `conv_in` after. So SVD's scaling factor holds for a VAE of our own.
    """
    flat = images.reshape(-1, *images.shape[2:])
    mean = apply(vae, params, flat, method="encode").mean
    gain = 1 / (vae.config.scaling_factor * mean.std(axis=(0, 1, 2)))
    layers = dict(params["params"])
    quant, decoder = dict(layers["quant_conv"]), dict(layers["decoder"])
    both = jnp.concatenate([gain, jnp.ones_like(gain)])  # Means are scaled,
    shift = jnp.concatenate([jnp.zeros_like(gain), 2 * jnp.log(gain)])  # log variances shifted.
    quant["kernel"] = quant["kernel"] * per_last(both, quant["kernel"])
    quant["bias"] = quant["bias"] * both + shift
    conv_in = dict(decoder["conv_in"])
    conv_in["kernel"] = conv_in["kernel"] / gain[None, None, :, None]
    return {"params": layers | {"quant_conv": quant, "decoder": decoder | {"conv_in": conv_in}}}


def per_last(value: Float[Array, " c"], like: Float[Array, "*s c"]) -> Float[Array, "..."]:
    """Shapes one value a channel so that it multiplies `like`."""
    return value.reshape((1,) * (like.ndim - 1) + value.shape)
