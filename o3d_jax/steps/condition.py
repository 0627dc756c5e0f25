"""What the denoiser sees of the input image: embedding, latents, micro-conditioning."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from o3d_jax.config import DiffusionConfig
from o3d_jax.nn.networks import Ouroboros, apply
from o3d_jax.steps.denoise import per_object
from o3d_jax.steps.reconstruct import mode, training_latents
from o3d_jax.types import Condition, pytree


@pytree
class ConditionDraws:
    """The random numbers of a training step that its condition uses."""

    sigma: Float[Array, " b"]
    """Deviation of the noise on the image, on the scale [-1, 1]."""
    noise: Float[Array, "b H W 3"]
    """Standard normal, on the image."""
    posterior: Float[Array, "b h w c"]
    """Standard normal, on its latents; used where these are sampled (release)."""
    dropout: Float[Array, " b"]
    """Uniform in [0, 1): which part of the condition is dropped."""


def encode_condition(
    model: Ouroboros,
    image: Float[Array, "b h w 3"],
    noise: Float[Array, "b h w 3"],
    noise_std: Float[Array, " b"],
) -> Condition:
    """Returns the condition for sampling: latents of the noisy image, embedding of the clean one.

    `noise` is of unit variance and added on the scale [-1, 1] of the VAE, as in SVD.
    """
    return condition_of(model, embed_image(model, image), image, noise, noise_std)


def condition_of(
    model: Ouroboros,
    embedding: Float[Array, "b 1 d"],
    image: Float[Array, "b h w 3"],
    noise: Float[Array, "b h w 3"],
    noise_std: Float[Array, " b"],
) -> Condition:
    """Returns what `encode_condition` does, for an image that is embedded already.

    Only the VAE is run.
    """
    noisy = with_noise(image, noise, noise_std)
    return Condition(
        clip=embedding,
        latents=mode(apply(model.networks.vae, model.frozen.vae, noisy, method="encode")),
        added_ids=added_ids(model.config.diffusion, noise_std),
    )


def encode_training_condition(
    model: Ouroboros, image: Float[Array, "b h w 3"], draws: ConditionDraws
) -> Condition:
    """Returns the condition in training, where the release does otherwise than in sampling.

    It may show the image tower the noise, too, and draw the latents (PAPER.md: CLIP input,
    latents).
    """
    diffusion = model.config.diffusion
    noisy = with_noise(image, draws.noise, draws.sigma)
    moments = apply(model.networks.vae, model.frozen.vae, noisy, method="encode")
    seen = noisy if diffusion.clip_sees_noise_in_training else image
    return Condition(
        clip=embed_image(model, seen),
        latents=training_latents(diffusion, draws.posterior)(moments),
        added_ids=added_ids(diffusion, draws.sigma),
    )


def with_noise(
    image: Float[Array, "b h w 3"], noise: Float[Array, "b h w 3"], std: Float[Array, " b"]
) -> Float[Array, "b h w 3"]:
    """Returns the image with noise; `std` is on the scale [-1, 1] of the VAE, as in SVD."""
    return image + 0.5 * per_object(std, image) * noise  # [0, 1] is half as wide.


def embed_image(model: Ouroboros, image: Float[Array, "b h w 3"]) -> Float[Array, "b 1 d"]:
    """Returns the image tower's embedding; the tower may train along or be frozen."""
    frozen = model.frozen.clip
    clip_params = model.params.clip if frozen is None else frozen
    return apply(model.networks.clip, clip_params, image).astype(jnp.float32)


def added_ids(diffusion: DiffusionConfig, noise_std: Float[Array, " b"]) -> Float[Array, "b 3"]:
    """Returns SVD's micro-conditioning: frames per second - 1, motion bucket, noise on the view."""
    ids = jnp.array([diffusion.fps - 1, diffusion.motion_bucket], jnp.float32)
    ids = jnp.broadcast_to(ids, (noise_std.shape[0], 2))
    return jnp.concatenate([ids, noise_std[:, None]], axis=-1)


def drop_condition(
    condition: Condition, uniform: Float[Array, " b"], probability: float
) -> Condition:
    """Returns the condition without embedding, latents or both, for guidance to learn from.

    One uniform number an object decides. With p the probability: below p no embedding, from p to
    2p neither, from 2p to 3p no latents.
    """
    keep_clip = uniform >= 2 * probability
    keep_latents = (uniform < probability) | (uniform >= 3 * probability)
    clip = condition.clip * per_object(keep_clip.astype(jnp.float32), condition.clip)
    latents = condition.latents * per_object(keep_latents.astype(jnp.float32), condition.latents)
    return Condition(clip=clip, latents=latents, added_ids=condition.added_ids)
