"""Algorithm 1's loss, and the terms of which other losses are made, too.

A loss is a function of the model, a batch and its random numbers; it returns what is minimized and
its terms. `parts.py` has those of single networks, and says with respect to what a gradient is
taken.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from o3d_jax import edm
from o3d_jax.config import OptimConfig
from o3d_jax.metrics import ssim
from o3d_jax.nn.networks import Ouroboros, apply
from o3d_jax.nn.unet import MultiViewUnet
from o3d_jax.steps.condition import drop_condition, encode_training_condition
from o3d_jax.steps.denoise import denoise, per_object
from o3d_jax.steps.draws import Draws
from o3d_jax.steps.reconstruct import (
    Reconstruction,
    decode_views,
    encode_views,
    feedback_maps,
    reconstruct,
    training_latents,
)
from o3d_jax.types import Batch, Maps, Rendering, pytree

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
    ssim_noisy: Float[Array, ""] | None = None
    """1 - SSIM of the renders, where it is trained on."""
    ssim_clean: Float[Array, ""] | None = None
    decoded: Float[Array, ""] | None = None
    """Mean square error of the VAE's images, while it trains."""
    kl: Float[Array, ""] | None = None
    """Its posterior's divergence from the standard normal distribution, per latent."""


FEEDBACK_GRADIENTS: dict[str, Callable[[Maps], Maps]] = {
    "stopped": jax.lax.stop_gradient,  # Algorithm 1: self_cond.detach().
    "flows": lambda maps: maps,
}
"""The choices of `DiffusionConfig.feedback_gradient`."""


def mean_square(a: Float[Array, "*s"], b: Float[Array, "*s"]) -> Float[Array, ""]:
    """Returns the distance of colors in Eq. 2."""
    return jnp.mean((a - b) ** 2)


def mean_absolute(a: Float[Array, "*s"], b: Float[Array, "*s"]) -> Float[Array, ""]:
    """Returns the distance of colors in the release."""
    return jnp.mean(jnp.abs(a - b))


COLOR_DISTANCES = {"mse": mean_square, "l1": mean_absolute}
"""The choices of `OptimConfig.reconstruction_loss`."""


def train_loss(
    model: Ouroboros, batch: Batch, draws: Draws, use_feedback: bool
) -> tuple[Float[Array, ""], LossTerms]:
    """Returns Algorithm 1's loss and its terms.

    There is one backward pass through F, always: with feedback the first pass carries no gradient
    and the second does, without feedback there is only the first. See PAPER.md, row "Alg. 1".
    """
    config = model.config
    x, estimate = noised(model, batch, draws)

    # First pass, without feedback. If a second one follows, only the second gets a gradient.
    first = estimate(Maps.nothing(*batch.images.shape[:4]))
    if use_feedback:
        first = jax.lax.stop_gradient(first)
    noisy, clean = _reconstruct_both(model, batch, first, draws.sigma)

    # Second pass: the denoiser sees renders of the object, which closes the paper's loop. Without
    # feedback nothing reads the maps, and XLA drops them.
    maps = feedback_maps(model, noisy.rendering, batch.cameras)
    maps = FEEDBACK_GRADIENTS[config.diffusion.feedback_gradient](maps)
    pred_x = estimate(maps) if use_feedback else first
    diffusion = diffusion_loss(pred_x, x, draws.sigma)

    # Eq. 2 judges both objects, so LGM learns from noisy estimates and from clean views.
    of_noisy = reconstruction_errors(model, batch, noisy.rendering)
    of_clean = reconstruction_errors(model, batch, clean.rendering)
    return _total(config.optim, diffusion, of_noisy, of_clean)


def noised(model: Ouroboros, batch: Batch, draws: Draws) -> tuple[Video, Callable[[Maps], Video]]:
    """Returns the clean latents, and a function that estimates them from noisy ones.

    That function is the denoiser with all but the feedback given.
    """
    diffusion = model.config.diffusion
    posterior = draws.posterior.reshape(-1, *draws.posterior.shape[2:])
    x = encode_views(model, batch.images, training_latents(diffusion, posterior))

    # Now and then the condition is left out, which classifier-free guidance needs in sampling.
    condition = encode_training_condition(model, batch.images[:, 0], draws.condition)
    condition = drop_condition(condition, draws.condition.dropout, diffusion.condition_dropout)
    noisy_x = x + per_object(draws.sigma, x) * draws.noise

    unet = one_at_a_time(model.networks.unet)

    def estimate(maps: Maps) -> Video:
        def network(*inputs):
            x_in, c_noise, given, feedback = inputs
            return apply(unet, model.params.unet, x_in, c_noise, given, batch.cameras, feedback)

        return denoise(network, noisy_x, draws.sigma, condition, maps)

    return x, estimate


def one_at_a_time(unet: MultiViewUnet) -> MultiViewUnet:
    """Returns the denoiser for batches without guidance: no video reads another's context."""
    return unet.clone(config=dataclasses.replace(unet.config, temporal_context="per_video"))


def diffusion_loss(estimate: Video, x: Video, sigma: Float[Array, " b"]) -> Float[Array, ""]:
    """Returns Eq. 5 with the weight of Eq. 11."""
    return (per_object(edm.loss_weight(sigma), x) * (estimate - x) ** 2).mean()


def _reconstruct_both(
    model: Ouroboros, batch: Batch, estimate: Video, sigma: Float[Array, " b"]
) -> tuple[Reconstruction, Reconstruction]:
    """Returns objects from noisy estimates and from the true views, made in one pass of LGM."""
    decoded = decode_views(model, estimate)
    c_noise = edm.scalings(sigma).c_noise

    def join(a, b):
        return jnp.concatenate([a, b])

    # True views are told by c_noise = 0 (Sec. 3.2).
    both = reconstruct(
        model,
        join(decoded, batch.images),
        jax.tree.map(join, batch.cameras, batch.cameras),
        join(c_noise, jnp.zeros_like(c_noise)),
    )
    count = sigma.shape[0]
    return jax.tree.map(lambda a: a[:count], both), jax.tree.map(lambda a: a[count:], both)


@pytree
class ReconstructionErrors:
    """How renders of an object differ from its true views: the terms of Eq. 2, and others."""

    rgb: Float[Array, ""]
    lpips: Float[Array, ""]
    """0 where it is switched off."""
    alpha: Float[Array, ""] | None
    """None where it is switched off."""
    ssim: Float[Array, ""] | None
    """1 - SSIM; None where it is switched off."""

    def weighted(self, optim: OptimConfig) -> Float[Array, ""]:
        """Returns their sum, weighted as in Eq. 2, in LGM's own training, and as is chosen."""
        total = self.rgb + optim.lpips_weight * self.lpips
        if self.alpha is not None:
            total = total + optim.alpha_weight * self.alpha
        if self.ssim is not None:
            total = total + optim.ssim_weight * self.ssim
        return total


def _total(
    optim: OptimConfig,
    diffusion: Float[Array, ""],
    of_noisy: ReconstructionErrors,
    of_clean: ReconstructionErrors,
) -> tuple[Float[Array, ""], LossTerms]:
    """Returns Algorithm 1's sum, and what is in it."""
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
        ssim_noisy=of_noisy.ssim,
        ssim_clean=of_clean.ssim,
    )
    return total, terms


def reconstruction_errors(
    model: Ouroboros, batch: Batch, rendering: Rendering
) -> ReconstructionErrors:
    """Returns the terms of Eq. 2 for the renders of a batch.

    Raises:
        ValueError: `optim.alpha_weight` is above 0, and the batch has no alpha; or
            `optim.ssim_weight` is, and the images are smaller than SSIM's window of 11 pixels.
    """
    optim = model.config.optim
    rgb = COLOR_DISTANCES[optim.reconstruction_loss](rendering.rgb, batch.images)

    lpips = jnp.zeros(())
    if optim.lpips_weight > 0:
        lpips = _lpips(model, rendering.rgb, batch.images)

    alpha = None
    if optim.alpha_weight > 0:
        if batch.alpha is None:
            raise ValueError(f"optim.alpha_weight {optim.alpha_weight} needs batches with alpha")
        alpha = mean_square(rendering.alpha, batch.alpha)

    structure = None
    if optim.ssim_weight > 0:
        structure = 1 - ssim(rendering.rgb, batch.images).mean()

    return ReconstructionErrors(rgb=rgb, lpips=lpips, alpha=alpha, ssim=structure)


def _lpips(
    model: Ouroboros, a: Float[Array, "b v h w 3"], b: Float[Array, "b v h w 3"]
) -> Float[Array, ""]:
    """Returns the mean of LPIPS over all views.

    With `ModelConfig.remat` views go one after another, each computed again for its gradient.
    """
    size = model.config.optim.lpips_size

    def fit(images):
        if images.shape[2] <= size:
            return images
        return jax.image.resize(images, (*images.shape[:2], size, size, 3), "linear")

    def of_views(a: Float[Array, "*b h w 3"], b: Float[Array, "*b h w 3"]) -> Float[Array, "*b"]:
        return apply(model.networks.lpips, model.frozen.lpips, a, b)

    a, b = fit(a), fit(b)
    if not model.config.model.remat:
        return of_views(a, b).mean()

    # VGG's features of two images of 256 px take 140 MB: they are never kept for all views.
    one_view = jax.checkpoint(lambda pair: of_views(*pair))
    return jax.lax.map(one_view, (a.reshape(-1, *a.shape[2:]), b.reshape(-1, *b.shape[2:]))).mean()
