"""From latents to a 3D object and back to maps: VAE decoder, LGM, renderer (Secs. 3.2, 3.3)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from o3d_jax.geometry.ccm import coordinate_map, surface_depth
from o3d_jax.nn.networks import Networks, apply
from o3d_jax.splat import render
from o3d_jax.types import Cameras, Gaussians, Maps, Rendering, pytree

WHITE = (1.0, 1.0, 1.0)


@pytree
class Reconstruction:
    """A 3D object, and what it looks like from the cameras it was made with."""

    gaussians: Gaussians
    rendering: Rendering


def encode_views(
    networks: Networks, vae_params: Any, images: Float[Array, "b v H W 3"]
) -> Float[Array, "b v h w c"]:
    """Scaled latents of images, the mode of the VAE's posterior."""
    b, v = images.shape[:2]
    flat = images.reshape(b * v, *images.shape[2:])
    mean = apply(networks.vae, vae_params, flat, method="encode").mean.astype(jnp.float32)
    return networks.vae.config.scaling_factor * mean.reshape(b, v, *mean.shape[1:])


def decode_views(
    networks: Networks, vae_params: Any, latents: Float[Array, "b v h w c"]
) -> Float[Array, "b v H W 3"]:
    """Images of scaled latents, without gradient (Algorithm 1: nothing flows through the VAE)."""
    unscaled = latents / networks.vae.config.scaling_factor
    images = apply(networks.vae, vae_params, unscaled, method="decode").astype(jnp.float32)
    return jax.lax.stop_gradient(images)


def reconstruct(
    networks: Networks,
    lgm_params: Any,
    images: Float[Array, "b v h w 3"],
    cameras: Cameras,
    c_noise: Float[Array, " b"],
) -> Reconstruction:
    """G(x0, c_noise): LGM on four of the views, rendered on white from all of them."""
    gaussians = apply(networks.lgm, lgm_params, images, cameras, c_noise)
    rendering = render(gaussians, cameras, (images.shape[2], images.shape[3]), jnp.array(WHITE))
    return Reconstruction(gaussians=gaussians, rendering=rendering)


def feedback_maps(rendering: Rendering, cameras: Cameras) -> Maps:
    """The maps that condition the next estimate, without gradient (Algorithm 1: detach)."""
    depth = surface_depth(rendering.depth, rendering.alpha)
    maps = Maps(rgb=jnp.clip(rendering.rgb, 0, 1), ccm=coordinate_map(depth, cameras))
    return jax.lax.stop_gradient(maps)
