"""From latents to a 3D object and back to maps: VAE decoder, LGM, renderer (Secs. 3.2, 3.3)."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from o3d_jax.config import LgmConfig
from o3d_jax.geometry.ccm import coordinate_map, surface_depth
from o3d_jax.geometry.released import released_coordinate_map
from o3d_jax.nn.networks import Networks, apply
from o3d_jax.nn.vae import LatentMoments
from o3d_jax.splat import Backend, render
from o3d_jax.types import Cameras, Gaussians, Maps, Rendering, pytree

Result = TypeVar("Result")

WHITE = (1.0, 1.0, 1.0)


@pytree
class Reconstruction:
    """A 3D object, and what it looks like from the cameras it was made with."""

    gaussians: Gaussians
    rendering: Rendering


def mode(
    moments: LatentMoments, noise: Float[Array, "*n h w c"] | None = None
) -> Float[Array, "*n h w c"]:
    """The latents where the VAE's posterior is highest; takes noise only as `sampled` does."""
    del noise
    return moments.mean.astype(jnp.float32)


def sampled(moments: LatentMoments, noise: Float[Array, "*n h w c"]) -> Float[Array, "*n h w c"]:
    """Latents drawn from the VAE's posterior, given standard normal noise (release, training)."""
    deviation = jnp.exp(0.5 * moments.logvar.astype(jnp.float32))
    return moments.mean.astype(jnp.float32) + deviation * noise


LATENTS = {"mode": mode, "sampled": sampled}
"""By `DiffusionConfig.training_latents`."""


def encode_views(
    networks: Networks,
    vae_params: Any,
    images: Float[Array, "b v H W 3"],
    latents_of: Callable[[LatentMoments], Float[Array, "n h w c"]] = mode,
) -> Float[Array, "b v h w c"]:
    """Scaled latents of images, chosen from the VAE's posterior by `latents_of`."""

    def encode(images: Float[Array, "*n H W 3"]) -> LatentMoments:
        return apply(networks.vae, vae_params, images, method="encode")

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
    """A function of videos, of at most so many at a time to save memory; 0: of all at once.

    All chunks have one size, the largest that divides both.
    """
    size = math.gcd(videos.shape[0], chunk)  # gcd(b, 0) is b.
    if size == videos.shape[0]:
        return function(videos)
    chunks = videos.reshape(-1, size, *videos.shape[1:])
    joined = jax.lax.map(function, chunks)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), joined)


def decode_views(
    networks: Networks, vae_params: Any, latents: Float[Array, "b v h w c"]
) -> Float[Array, "b v H W 3"]:
    """Images of scaled latents, without gradient (Algorithm 1: nothing flows through the VAE)."""

    def decode(latents: Float[Array, "n v h w c"]) -> Float[Array, "n v H W 3"]:
        unscaled = latents / networks.vae.config.scaling_factor
        return apply(networks.vae, vae_params, unscaled, method="decode").astype(jnp.float32)

    # Stopped in front as well: nothing of the decoder need be kept for a gradient.
    latents = jax.lax.stop_gradient(latents)
    return jax.lax.stop_gradient(in_chunks(decode, latents, networks.vae_chunk))


def reconstruct(
    networks: Networks,
    lgm_params: Any,
    images: Float[Array, "b v h w 3"],
    cameras: Cameras,
    c_noise: Float[Array, " b"],
) -> Reconstruction:
    """G(x0, c_noise): LGM on four of the views, rendered on white from all of them."""
    gaussians = apply(networks.lgm, lgm_params, images, cameras, c_noise)
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
    """LGM's Gaussians on white, as it learned to be drawn; `size` is (height, width) in px."""
    return render(
        gaussians,
        cameras,
        size,
        jnp.array(WHITE),
        normalize_quats=lgm.rotation_norm == "per_gaussian",
        culling=lgm.culling,
        backend=backend,
    )


def surface_map(rendering: Rendering, cameras: Cameras) -> Float[Array, "b v h w 3"]:
    """Canonical coordinates of the mean surface (App. A.2)."""
    return coordinate_map(surface_depth(rendering.depth, rendering.alpha), cameras)


def released_map(rendering: Rendering, cameras: Cameras) -> Float[Array, "b v h w 3"]:
    """The release's coordinates, of the depth as it is rendered."""
    return released_coordinate_map(rendering.depth, cameras)


COORDINATE_MAPS = {"paper": surface_map, "released": released_map}
"""By `UnetConfig.ccm_convention`."""


def feedback_maps(networks: Networks, rendering: Rendering, cameras: Cameras) -> Maps:
    """The maps that condition the next estimate, G of Sec. 3.3."""
    coordinates = COORDINATE_MAPS[networks.unet.config.ccm_convention]
    return Maps(rgb=jnp.clip(rendering.rgb, 0, 1), ccm=coordinates(rendering, cameras))
