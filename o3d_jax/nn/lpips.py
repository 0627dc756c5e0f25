"""LPIPS with VGG16 (Zhang et al. 2018): the perceptual distance of Eq. 2."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# ImageNet's mean and deviation, for images in [-1, 1], rounded as in the original.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # (channels, convolutions) per stage
EPSILON = 1e-10


class Lpips(nn.Module):
    """Distance of two images in [0, 1]; 0 means that VGG sees no difference.

    Features are compared at every pixel of five layers, as unit vectors; `lin` weighs channels.
    Called for its gradient too, which is finite everywhere.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, a: Float[Array, "*b h w 3"], b: Float[Array, "*b h w 3"]
    ) -> Float[Array, "*b"]:
        batch, images = a.shape[:-3], jnp.stack([a, b])
        x = standardise(images.reshape(-1, *a.shape[-3:])).astype(self.dtype)
        distance = jnp.zeros((x.shape[0] // 2,), jnp.float32)
        for stage, (channels, convolutions) in enumerate(VGG16):
            if stage > 0:
                x = max_pool2(x)
            for i in range(convolutions):
                name = f"conv{stage + 1}_{i + 1}"
                x = nn.relu(nn.Conv(channels, (3, 3), padding=1, dtype=self.dtype, name=name)(x))
            first, second = jnp.split(unit(x.astype(jnp.float32)), 2)
            lin = nn.Conv(1, (1, 1), use_bias=False, name=f"lin{stage}")
            distance = distance + lin((first - second) ** 2).mean(axis=(1, 2, 3))
        return distance.reshape(batch)


def standardise(images: Float[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
    """Images in [0, 1] as VGG wants them."""
    shift = jnp.asarray(SHIFT, images.dtype)[None, None, None]
    scale = jnp.asarray(SCALE, images.dtype)[None, None, None]
    return (2 * images - 1 - shift) / scale


def unit(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """Vectors at length 1; zero stays zero, with a finite gradient."""
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    return x / (jnp.sqrt(jnp.maximum(square, EPSILON**2)) + EPSILON)


def max_pool2(x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 c"]:
    """Maximum of blocks of two by two; an odd last row or column is left out."""
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))
