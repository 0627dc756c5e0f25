"""The feedback injection network (Sec. 3.3, Table 3): rendered maps -> features of the U-Net."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from o3d_jax.nn.convolutions import Conv3x3
from o3d_jax.nn.layers import PointwiseConv, pixel_unshuffle, pool2


class FeedbackBlock(nn.Module):
    """One residual block of Table 3, without normalization layers.

    The last convolution starts at zero: a new block passes on its (pooled, projected) input.
    """

    features: int
    downsample: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b v h w c"]) -> Float[Array, "b v h2 w2 {self.features}"]:
        if self.downsample:
            x = pool2(x)
        if x.shape[-1] != self.features:
            x = PointwiseConv(self.features, self.dtype, name="in_conv")(x)
        y = Conv3x3(self.features, dtype=self.dtype, name="block1")(x)
        zeros = nn.initializers.zeros
        last = PointwiseConv(self.features, self.dtype, zeros, name="block2")
        return x + last(nn.relu(y))


class FeedbackEncoder(nn.Module):
    """One of the two encoders of Table 3: a rendered map -> one feature map per U-Net scale.

    The network has biases, so a map of zeros (G = 0) still gives features (PAPER.md, "G = 0").
    """

    channels: tuple[int, ...]
    """Per scale, finest first; each scale halves the resolution of the one before."""
    blocks: int = 3
    """Residual blocks per scale."""
    downscale: int = 8
    """Pixels per latent, along one axis."""
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, maps: Float[Array, "b v h w 3"]) -> tuple[Float[Array, "b v _ _ _"], ...]:
        x = pixel_unshuffle(maps, self.downscale)
        x = Conv3x3(self.channels[0], dtype=self.dtype, name="conv_in")(x)
        features = []
        for scale, channels in enumerate(self.channels):
            for i in range(self.blocks):
                x = FeedbackBlock(
                    channels,
                    downsample=scale > 0 and i == 0,
                    dtype=self.dtype,
                    name=f"body_{scale * self.blocks + i}",
                )(x)
            features.append(x)
        return tuple(features)
