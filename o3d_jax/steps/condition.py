"""What the denoiser sees of the input image: embedding, latents, micro-conditioning."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from o3d_jax.config import DiffusionConfig
from o3d_jax.nn.networks import Networks, apply
from o3d_jax.steps.denoise import per_object
from o3d_jax.steps.reconstruct import LATENTS, mode
from o3d_jax.types import Condition, Frozen, Params, pytree


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
    networks: Networks,
    diffusion: DiffusionConfig,
    params: Params,
    frozen: Frozen,
    image: Float[Array, "b h w 3"],
    noise: Float[Array, "b h w 3"],
    noise_std: Float[Array, " b"],
) -> Condition:
    """Encodes the input image; the latents see it with noise, the embedding without.

    `noise` is of unit variance and added on the scale [-1, 1] of the VAE, as in SVD.
    """
    noisy = with_noise(image, noise, noise_std)
    return Condition(
        clip=embed_image(networks, params, frozen, image),
        latents=mode(apply(networks.vae, frozen.vae, noisy, method="encode")),
        added_ids=added_ids(diffusion, noise_std),
    )


def encode_training_condition(
    networks: Networks,
    diffusion: DiffusionConfig,
    params: Params,
    frozen: Frozen,
    image: Float[Array, "b h w 3"],
    draws: ConditionDraws,
) -> Condition:
    """The same in training, where the release does otherwise (PAPER.md: CLIP input, latents)."""
    noisy = with_noise(image, draws.noise, draws.sigma)
    moments = apply(networks.vae, frozen.vae, noisy, method="encode")
    seen = noisy if diffusion.clip_sees_noise_in_training else image
    return Condition(
        clip=embed_image(networks, params, frozen, seen),
        latents=LATENTS[diffusion.training_latents](moments, draws.posterior),
        added_ids=added_ids(diffusion, draws.sigma),
    )


def with_noise(
    image: Float[Array, "b h w 3"], noise: Float[Array, "b h w 3"], std: Float[Array, " b"]
) -> Float[Array, "b h w 3"]:
    """The image with noise whose deviation `std` is on the scale [-1, 1] of the VAE, as in SVD."""
    return image + 0.5 * per_object(std, image) * noise  # [0, 1] is half as wide.


def embed_image(
    networks: Networks, params: Params, frozen: Frozen, image: Float[Array, "b h w 3"]
) -> Float[Array, "b 1 d"]:
    """The image tower's embedding; the tower may train along or be frozen."""
    clip_params = params.clip if frozen.clip is None else frozen.clip
    return apply(networks.clip, clip_params, image).astype(jnp.float32)


def added_ids(diffusion: DiffusionConfig, noise_std: Float[Array, " b"]) -> Float[Array, "b 3"]:
    """SVD's micro-conditioning: frames per second - 1, motion bucket, noise on the condition."""
    ids = jnp.array([diffusion.fps - 1, diffusion.motion_bucket], jnp.float32)
    ids = jnp.broadcast_to(ids, (noise_std.shape[0], 2))
    return jnp.concatenate([ids, noise_std[:, None]], axis=-1)


def drop_condition(
    condition: Condition, uniform: Float[Array, " b"], probability: float
) -> Condition:
    """Drops embedding and latents for guidance, by one uniform number an object.

    With p the probability: below p no embedding, from p to 2p neither, from 2p to 3p no latents.
    """
    keep_clip = uniform >= 2 * probability
    keep_latents = (uniform < probability) | (uniform >= 3 * probability)
    clip = condition.clip * per_object(keep_clip.astype(jnp.float32), condition.clip)
    latents = condition.latents * per_object(keep_latents.astype(jnp.float32), condition.latents)
    return Condition(clip=clip, latents=latents, added_ids=condition.added_ids)
