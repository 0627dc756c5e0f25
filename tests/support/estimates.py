"""What a sampler might have found, of which only images matter."""

import jax.numpy as jnp

from o3d_jax.steps.reconstruct import Reconstruction
from o3d_jax.steps.sample import Estimate
from o3d_jax.types import Gaussians, Rendering


def estimate(views, renders):
    """Objects with these views and renders."""
    b = len(views)
    numbers, one = jnp.zeros((b, 1, 3)), jnp.zeros((*renders.shape[:-1], 1))
    gaussians = Gaussians(
        means=numbers,
        scales=numbers,
        quats=jnp.zeros((b, 1, 4)),
        opacities=jnp.zeros((b, 1)),
        colors=numbers,
    )
    drawn = Rendering(rgb=jnp.asarray(renders), alpha=one, depth=one)
    made = Reconstruction(gaussians=gaussians, rendering=drawn)
    latents = jnp.zeros((*views.shape[:2], 1, 1, 1))
    return Estimate(latents=latents, views=jnp.asarray(views), reconstruction=made)
