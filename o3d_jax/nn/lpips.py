"""LPIPS (Zhang et al. 2018) with VGG16 or AlexNet: the perceptual distance of Eq. 2."""

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# ImageNet's mean and deviation, for images in [-1, 1], rounded as in the original.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10


@dataclass(frozen=True)
class Convolution:
    """A convolution and the ReLU behind it."""

    name: str
    channels: int
    size: int = 3
    stride: int = 1
    padding: int = 1


@dataclass(frozen=True)
class Stage:
    """What lies between two of the five layers whose features are compared."""

    pool: int
    """Width of the windows, two pixels apart, whose maximum is taken first; 0 for none."""
    convolutions: tuple[Convolution, ...]


VGG16 = tuple(
    Stage(
        pool=2 if stage > 1 else 0,
        convolutions=tuple(Convolution(f"conv{stage}_{i + 1}", channels) for i in range(number)),
    )
    for stage, channels, number in ((1, 64, 2), (2, 128, 2), (3, 256, 3), (4, 512, 3), (5, 512, 3))
)
ALEXNET = (
    Stage(0, (Convolution("conv1", 64, size=11, stride=4, padding=2),)),
    Stage(3, (Convolution("conv2", 192, size=5, padding=2),)),
    Stage(3, (Convolution("conv3", 384),)),
    Stage(0, (Convolution("conv4", 256),)),
    Stage(0, (Convolution("conv5", 256),)),
)
TRUNKS = {"vgg": VGG16, "alex": ALEXNET}
SMALLEST = {"vgg": 16, "alex": 31}  # Pixels of which one is left at the last layer.


class Lpips(nn.Module):
    """Distance of two images in [0, 1]; 0 means that the network sees no difference.

    Features are compared at every pixel of five layers, as unit vectors; `lin` weighs channels.
    The gradient is finite everywhere. Distances by different networks are not on one scale.
    """

    network: Literal["vgg", "alex"] = "vgg"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, a: Float[Array, "*b h w 3"], b: Float[Array, "*b h w 3"]
    ) -> Float[Array, "*b"]:
        """Raises a ValueError if images are too small for the network to see anything."""
        *_, h, w, _ = a.shape
        if min(h, w) < SMALLEST[self.network]:
            raise ValueError(
                f"images of {h} x {w} px are too small for LPIPS with {self.network!r}, which "
                f"needs {SMALLEST[self.network]}"
            )

        # Both images go through the trunk as one batch.
        batch, images = a.shape[:-3], jnp.stack([a, b])
        x = standardize(images.reshape(-1, h, w, 3)).astype(self.dtype)
        distance = jnp.zeros((x.shape[0] // 2,), jnp.float32)
        for i, stage in enumerate(TRUNKS[self.network]):
            x = self._stage(stage, x)
            first, second = jnp.split(unit(x.astype(jnp.float32)), 2)
            lin = nn.Conv(1, (1, 1), use_bias=False, name=f"lin{i}")
            distance = distance + lin((first - second) ** 2).mean(axis=(1, 2, 3))
        return distance.reshape(batch)

    @nn.nowrap
    def _stage(self, stage: Stage, x: Float[Array, "n h w c"]) -> Float[Array, "n _ _ _"]:
        if stage.pool == 2:
            x = max_pool2(x)
        elif stage.pool:
            x = nn.max_pool(x, (stage.pool,) * 2, strides=(2, 2))
        for c in stage.convolutions:
            conv = nn.Conv(
                c.channels,
                (c.size, c.size),
                strides=c.stride,
                padding=c.padding,
                dtype=self.dtype,
                name=c.name,
            )
            x = nn.relu(conv(x))
        return x


def standardize(images: Float[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
    """Returns images in [0, 1] shifted and scaled as the networks want them."""
    shift = jnp.asarray(SHIFT, images.dtype)[None, None, None]
    scale = jnp.asarray(SCALE, images.dtype)[None, None, None]
    return (2 * images - 1 - shift) / scale


def unit(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """Returns vectors at length 1; zero stays zero, with a finite gradient."""
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    return x / (jnp.sqrt(jnp.maximum(square, EPSILON**2)) + EPSILON)


def max_pool2(x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 c"]:
    """Returns the maximum of blocks of two by two; an odd last row or column is left out."""
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))
