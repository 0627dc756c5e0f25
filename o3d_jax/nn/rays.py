"""Embedding of camera rays for the denoiser (Sec. 3.1)."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from o3d_jax.nn.layers import Dense


class RayEmbedding(nn.Module):
    """The "two-layered MLP" of Sec. 3.1: features to add to those of the U-Net, one a latent pixel.

    Reads harmonic Pluecker rays (`geometry/rays.py`). Not zero-initialized, as in the release.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, rays: Float[Array, "b v h w r"]) -> Float[Array, "b v h w {self.features}"]:
        x = Dense(self.features, dtype=self.dtype, name="embed_0")(rays)
        return Dense(self.features, dtype=self.dtype, name="embed_2")(nn.silu(x))
