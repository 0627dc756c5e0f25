"""Algorithm 1's loss, and the terms of which other losses are made, too.

A loss is a function of the parameters that train, the frozen ones, a batch and its random numbers;
it returns what is minimised and its terms. `parts.py` has those of single networks.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from o3d_jax import edm
from o3d_jax.config import Config, OptimConfig
from o3d_jax.nn.networks import Networks, apply
from o3d_jax.nn.unet import MultiViewUnet
from o3d_jax.steps.condition import drop_condition, encode_training_condition
from o3d_jax.steps.denoise import denoise, per_object
from o3d_jax.steps.draws import Draws
from o3d_jax.steps.reconstruct import (
    LATENTS,
    Reconstruction,
    decode_views,
    encode_views,
    feedback_maps,
    reconstruct,
)
from o3d_jax.types import Batch, Frozen, Maps, Params, Rendering, pytree

Video = Float[Array, "b v h w c"]


@pytree
class LossTerms:
    """What is logged of one step; None where the part that trains has no such term."""

    total: Float[Array, ""]
    diffusion: Float[Array, ""] | None = None
    """Eq. 5 with the weight of Eq. 11."""
    rgb_noisy: Float[Array, ""] | None = None
    """Color error of renders of the object made from noisy estimates (Eq. 2: mean square)."""
    rgb_clean: Float[Array, ""] | None = None
    """The same for the object made from true views, c_noise = 0 (Sec. 3.2)."""
    lpips_noisy: Float[Array, ""] | None = None
    lpips_clean: Float[Array, ""] | None = None
    alpha_noisy: Float[Array, ""] | None = None
    """Mean square error of the renders' alpha, where it is trained on."""
    alpha_clean: Float[Array, ""] | None = None
    decoded: Float[Array, ""] | None = None
    """Mean square error of the VAE's images, while it trains."""
    kl: Float[Array, ""] | None = None
    """Its posterior's divergence from the standard normal distribution, per latent."""


FEEDBACK_GRADIENTS: dict[str, Callable[[Maps], Maps]] = {
    "stopped": jax.lax.stop_gradient,  # Algorithm 1: self_cond.detach().
    "flows": lambda maps: maps,
}
"""By `DiffusionConfig.feedback_gradient`."""


def mean_square(a: Float[Array, "*s"], b: Float[Array, "*s"]) -> Float[Array, ""]:
    """The distance of colors in Eq. 2."""
    return jnp.mean((a - b) ** 2)


def mean_absolute(a: Float[Array, "*s"], b: Float[Array, "*s"]) -> Float[Array, ""]:
    """The distance of colors in the release."""
    return jnp.mean(jnp.abs(a - b))


COLOR_DISTANCES = {"mse": mean_square, "l1": mean_absolute}
"""By `OptimConfig.reconstruction_loss`."""


def train_loss(
    networks: Networks,
    config: Config,
    params: Params,
    frozen: Frozen,
    batch: Batch,
    draws: Draws,
    use_feedback: bool,
) -> tuple[Float[Array, ""], LossTerms]:
    """Algorithm 1. Returns the loss and its terms.

    One backward pass through F, always: with feedback the first pass carries no gradient and the
    second does, without feedback there is only the first. See PAPER.md, row "Alg. 1".
    """
    x, estimate = noised(networks, config, params, frozen, batch, draws)
    first = estimate(Maps.nothing(*batch.images.shape[:4]))
    if use_feedback:
        first = jax.lax.stop_gradient(first)
    noisy, clean = _reconstruct_both(networks, params, frozen, batch, first, draws.sigma)
    maps = feedback_maps(networks, noisy.rendering, batch.cameras)
    maps = FEEDBACK_GRADIENTS[config.diffusion.feedback_gradient](maps)
    pred_x = estimate(maps) if use_feedback else first
    diffusion = diffusion_loss(pred_x, x, draws.sigma)

    errors_of = functools.partial(reconstruction_errors, networks, config, frozen, batch)
    of_noisy, of_clean = errors_of(noisy.rendering), errors_of(clean.rendering)
    return _total(config.optim, diffusion, of_noisy, of_clean)


def noised(
    networks: Networks,
    config: Config,
    params: Params,
    frozen: Frozen,
    batch: Batch,
    draws: Draws,
) -> tuple[Video, Callable[[Maps], Video]]:
    """Clean latents, and the estimate of them from noisy ones as a function of the feedback."""
    diffusion = config.diffusion
    posterior = draws.posterior.reshape(-1, *draws.posterior.shape[2:])
    latents_of = functools.partial(LATENTS[diffusion.training_latents], noise=posterior)
    x = encode_views(networks, frozen.vae, batch.images, latents_of)
    condition = encode_training_condition(
        networks, diffusion, params, frozen, batch.images[:, 0], draws.condition
    )
    condition = drop_condition(condition, draws.condition.dropout, diffusion.condition_dropout)
    noisy_x = x + per_object(draws.sigma, x) * draws.noise

    unet = one_at_a_time(networks.unet)

    def estimate(maps: Maps) -> Video:
        def network(*inputs):
            x_in, c_noise, given, feedback = inputs
            return apply(unet, params.unet, x_in, c_noise, given, batch.cameras, feedback)

        return denoise(network, noisy_x, draws.sigma, condition, maps)

    return x, estimate


def one_at_a_time(unet: MultiViewUnet) -> MultiViewUnet:
    """The denoiser for batches that are not guided, in which no video reads another's context."""
    return unet.clone(config=dataclasses.replace(unet.config, temporal_context="per_video"))


def diffusion_loss(estimate: Video, x: Video, sigma: Float[Array, " b"]) -> Float[Array, ""]:
    """Eq. 5 with the weight of Eq. 11."""
    return (per_object(edm.loss_weight(sigma), x) * (estimate - x) ** 2).mean()


def _reconstruct_both(
    networks: Networks,
    params: Params,
    frozen: Frozen,
    batch: Batch,
    estimate: Float[Array, "b v h w c"],
    sigma: Float[Array, " b"],
) -> tuple[Reconstruction, Reconstruction]:
    """Objects from noisy estimates and from the true views, in one pass of LGM."""
    decoded = decode_views(networks, frozen.vae, estimate)
    c_noise = edm.scalings(sigma).c_noise

    def join(a, b):
        return jnp.concatenate([a, b])

    both = reconstruct(
        networks,
        params.lgm,
        join(decoded, batch.images),
        jax.tree.map(join, batch.cameras, batch.cameras),
        join(c_noise, jnp.zeros_like(c_noise)),
    )
    count = sigma.shape[0]
    return jax.tree.map(lambda a: a[:count], both), jax.tree.map(lambda a: a[count:], both)


@pytree
class ReconstructionErrors:
    """How renders of an object differ from its true views: the terms of Eq. 2, and alpha."""

    rgb: Float[Array, ""]
    lpips: Float[Array, ""]
    """0 where it is switched off."""
    alpha: Float[Array, ""] | None
    """None where it is switched off."""

    def weighted(self, optim: OptimConfig) -> Float[Array, ""]:
        """Their sum, as Eq. 2 and LGM weight them."""
        color = self.rgb + optim.lpips_weight * self.lpips
        return color if self.alpha is None else color + optim.alpha_weight * self.alpha


def _total(
    optim: OptimConfig,
    diffusion: Float[Array, ""],
    of_noisy: ReconstructionErrors,
    of_clean: ReconstructionErrors,
) -> tuple[Float[Array, ""], LossTerms]:
    """Algorithm 1's sum, and what is in it."""
    total = (
        diffusion
        + optim.noisy_weight * of_noisy.weighted(optim)
        + optim.clean_weight * of_clean.weighted(optim)
    )
    terms = LossTerms(
        total=total,
        diffusion=diffusion,
        rgb_noisy=of_noisy.rgb,
        rgb_clean=of_clean.rgb,
        lpips_noisy=of_noisy.lpips,
        lpips_clean=of_clean.lpips,
        alpha_noisy=of_noisy.alpha,
        alpha_clean=of_clean.alpha,
    )
    return total, terms


def reconstruction_errors(
    networks: Networks, config: Config, frozen: Frozen, batch: Batch, rendering: Rendering
) -> ReconstructionErrors:
    """Eq. 2 of the renders of a batch.

    Raises:
        ValueError: `optim.alpha_weight` is above 0, and the batch has no alpha.
    """
    optim = config.optim
    rgb = COLOR_DISTANCES[optim.reconstruction_loss](rendering.rgb, batch.images)

    lpips = jnp.zeros(())
    if optim.lpips_weight > 0:
        remat = config.model.remat
        lpips = _lpips(networks, optim, frozen, rendering.rgb, batch.images, remat)

    alpha = None
    if optim.alpha_weight > 0:
        if batch.alpha is None:
            raise ValueError(f"optim.alpha_weight {optim.alpha_weight} needs batches with alpha")
        alpha = mean_square(rendering.alpha, batch.alpha)

    return ReconstructionErrors(rgb=rgb, lpips=lpips, alpha=alpha)


def _lpips(
    networks: Networks,
    optim: OptimConfig,
    frozen: Frozen,
    a: Float[Array, "b v h w 3"],
    b: Float[Array, "b v h w 3"],
    remat: bool,
) -> Float[Array, ""]:
    """Mean over all views; with `remat` one after another, each computed again for its gradient."""
    size = optim.lpips_size

    def fit(images):
        if images.shape[2] <= size:
            return images
        return jax.image.resize(images, (*images.shape[:2], size, size, 3), "linear")

    def of_views(a: Float[Array, "*b h w 3"], b: Float[Array, "*b h w 3"]) -> Float[Array, "*b"]:
        return apply(networks.lpips, frozen.lpips, a, b)

    a, b = fit(a), fit(b)
    if not remat:
        return of_views(a, b).mean()
    one_view = jax.checkpoint(lambda pair: of_views(*pair))
    return jax.lax.map(one_view, (a.reshape(-1, *a.shape[2:]), b.reshape(-1, *b.shape[2:]))).mean()
