"""From latents to a 3D object and back to maps: VAE decoder, LGM, renderer (Secs. 3.2, 3.3)."""

import functools
import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from o3d_jax.config import DiffusionConfig, LgmConfig
from o3d_jax.geometry.ccm import coordinate_map, surface_depth
from o3d_jax.geometry.released import released_coordinate_map
from o3d_jax.nn.networks import Ouroboros, apply
from o3d_jax.nn.vae import LatentMoments
from o3d_jax.splat import Backend, RenderOptions, render
from o3d_jax.types import Cameras, Gaussians, Maps, Rendering, pytree

Result = TypeVar("Result")

WHITE = (1.0, 1.0, 1.0)


@pytree
class Reconstruction:
    """A 3D object, and what it looks like from the cameras it was made with."""

    gaussians: Gaussians
    rendering: Rendering


def mode(moments: LatentMoments) -> Float[Array, "*n h w c"]:
    """Returns the latents at which the VAE's posterior is highest."""
    return moments.mean.astype(jnp.float32)


def sampled(moments: LatentMoments, noise: Float[Array, "*n h w c"]) -> Float[Array, "*n h w c"]:
    """Returns latents drawn from the VAE's posterior, given standard normal noise (release)."""
    deviation = jnp.exp(0.5 * moments.logvar.astype(jnp.float32))
    return moments.mean.astype(jnp.float32) + deviation * noise


LatentsOf = Callable[[LatentMoments], Float[Array, "n h w c"]]
"""A choice of latents from the VAE's posterior."""


def training_latents(diffusion: DiffusionConfig, noise: Float[Array, "n h w c"]) -> LatentsOf:
    """Returns how `DiffusionConfig.training_latents` chooses latents, given a step's noise."""
    if diffusion.training_latents == "mode":
        return mode
    return functools.partial(sampled, noise=noise)


def encode_views(
    model: Ouroboros, images: Float[Array, "b v H W 3"], latents_of: LatentsOf = mode
) -> Float[Array, "b v h w c"]:
    """Returns the scaled latents of images, chosen from the VAE's posterior by `latents_of`."""
    networks = model.networks

    def encode(images: Float[Array, "*n H W 3"]) -> LatentMoments:
        return apply(networks.vae, model.frozen.vae, images, method="encode")

    b, v = images.shape[:2]
    moments = in_chunks(encode, images, networks.vae_chunk)
    flat = jax.tree.map(lambda a: a.reshape(b * v, *a.shape[2:]), moments)
    latents = latents_of(flat)
    return networks.vae.config.scaling_factor * latents.reshape(b, v, *latents.shape[1:])


def in_chunks(
    function: Callable[[Float[Array, "n v ..."]], Result],
    videos: Float[Array, "b v ..."],
    chunk: int,
) -> Result:
    """Returns `function(videos)`, computed for at most `chunk` videos at a time to save memory.

    All chunks have one size, the largest that divides both numbers. A chunk of 0 means all videos
    at once.
    """
    size = math.gcd(videos.shape[0], chunk)  # gcd(b, 0) is b.
    if size == videos.shape[0]:
        return function(videos)
    chunks = videos.reshape(-1, size, *videos.shape[1:])
    joined = jax.lax.map(function, chunks)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), joined)


def decode_views(model: Ouroboros, latents: Float[Array, "b v h w c"]) -> Float[Array, "b v H W 3"]:
    """Returns the images of scaled latents, without a gradient.

    Algorithm 1 lets nothing flow through the VAE.
    """
    networks = model.networks

    def decode(latents: Float[Array, "n v h w c"]) -> Float[Array, "n v H W 3"]:
        unscaled = latents / networks.vae.config.scaling_factor
        return apply(networks.vae, model.frozen.vae, unscaled, method="decode").astype(jnp.float32)

    # Stopped in front as well: nothing of the decoder need be kept for a gradient.
    latents = jax.lax.stop_gradient(latents)
    return jax.lax.stop_gradient(in_chunks(decode, latents, networks.vae_chunk))


def reconstruct(
    model: Ouroboros,
    images: Float[Array, "b v h w 3"],
    cameras: Cameras,
    c_noise: Float[Array, " b"],
) -> Reconstruction:
    """Returns G(x0, c_noise): LGM's object of four of the views, drawn from all their cameras."""
    networks = model.networks
    gaussians = apply(networks.lgm, model.params.lgm, images, cameras, c_noise)
    size = (images.shape[2], images.shape[3])
    backend = networks.splat_backend
    rendering = draw_object(networks.lgm.config, gaussians, cameras, size, backend)
    return Reconstruction(gaussians=gaussians, rendering=rendering)


def draw_object(
    lgm: LgmConfig,
    gaussians: Gaussians,
    cameras: Cameras,
    size: tuple[int, int],
    backend: Backend | None = None,
) -> Rendering:
    """Returns LGM's Gaussians on white, drawn as LGM learned to see them.

    `size` is (height, width) in pixels.
    """
    normalize_quats = lgm.rotation_norm == "per_gaussian"
    options = RenderOptions(normalize_quats=normalize_quats, culling=lgm.culling)
    return render(
        gaussians,
        cameras,
        size,
        jnp.array(WHITE),
        options,
        backend,
    )


def surface_map(rendering: Rendering, cameras: Cameras) -> Float[Array, "b v h w 3"]:
    """Returns the canonical coordinates of the mean surface (App. A.2)."""
    return coordinate_map(surface_depth(rendering.depth, rendering.alpha), cameras)


def released_map(rendering: Rendering, cameras: Cameras) -> Float[Array, "b v h w 3"]:
    """Returns the release's coordinates, made from the depth as it is rendered."""
    return released_coordinate_map(rendering.depth, cameras)


COORDINATE_MAPS = {"paper": surface_map, "released": released_map}
"""The choices of `UnetConfig.ccm_convention`."""


def feedback_maps(model: Ouroboros, rendering: Rendering, cameras: Cameras) -> Maps:
    """Returns the maps that condition the next estimate, G of Sec. 3.3."""
    coordinates = COORDINATE_MAPS[model.networks.unet.config.ccm_convention]
    return Maps(rgb=jnp.clip(rendering.rgb, 0, 1), ccm=coordinates(rendering, cameras))
