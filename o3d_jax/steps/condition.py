"""What the denoiser sees of the input image: embedding, latents, micro-conditioning."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from o3d_jax.config import DiffusionConfig
from o3d_jax.nn.networks import Networks, apply
from o3d_jax.steps.denoise import per_object
from o3d_jax.types import Condition, Frozen, Params


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

    `noise` is of unit variance and added on the scale [-1, 1] of the VAE, as in SVD. The release
    also shows CLIP the noisy image in training: PAPER.md, row "CLIP input".
    """
    clip_params = params.clip if frozen.clip is None else frozen.clip
    noisy = image + 0.5 * per_object(noise_std, image) * noise  # [0, 1] is half as wide.
    ids = jnp.array([diffusion.fps - 1, diffusion.motion_bucket], jnp.float32)
    ids = jnp.broadcast_to(ids, (image.shape[0], 2))
    return Condition(
        clip=apply(networks.clip, clip_params, image).astype(jnp.float32),
        latents=apply(networks.vae, frozen.vae, noisy, method="encode").mean.astype(jnp.float32),
        added_ids=jnp.concatenate([ids, noise_std[:, None]], axis=-1),
    )


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
