"""SVD's autoencoder: an image encoder and a temporal decoder.

Names and arithmetic follow diffusers' AutoencoderKLTemporalDecoder. Images are [0, 1] outside and
[-1, 1] inside; latents are unscaled (config.scaling_factor is the caller's).
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from o3d_jax.config import VaeConfig
from o3d_jax.nn.attention import attend
from o3d_jax.nn.convolutions import Conv3x3, TemporalConv
from o3d_jax.nn.layers import Dense, PointwiseConv, pixel_shuffle, pixel_unshuffle
from o3d_jax.nn.norms import GroupNorm
from o3d_jax.nn.unet_blocks import AlphaBlender, ResBlock, Upsample
from o3d_jax.types import pytree


@pytree
class LatentMoments:
    """The encoder's diagonal Gaussian over latents."""

    mean: Float[Array, "*n h w c"]

    logvar: Float[Array, "*n h w c"]
    """Logarithm of the variance, in [-30, 20]."""


class PixelAttention(nn.Module):
    """Self-attention of one head among the pixels of each image, added to the input."""

    num_groups: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        n, h, w, c = x.shape
        y = GroupNorm(self.num_groups, 1e-6, self.dtype, name="group_norm")(x)
        y = y.reshape(n, h * w, c)
        q, k, v = (Dense(c, dtype=self.dtype, name=f"to_{part}")(y) for part in "qkv")
        y = Dense(c, dtype=self.dtype, name="to_out_0")(attend(q, k, v, heads=1))
        return x + y.reshape(x.shape)


class DecoderResBlock(nn.Module):
    """A residual block on each frame, one across frames on its result, and their blend.

    Unlike the U-Net's: no embedding, another epsilon across frames, and the blend's weight is that
    of the temporal side.
    """

    features: int
    num_groups: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b v h w c"]) -> Float[Array, "b v h w {self.features}"]:
        shape = (*x.shape[:-1], self.features)
        spatial = ResBlock(
            self.features, self.num_groups, 1e-6, False, self.dtype, name="spatial_res_block"
        )(x.reshape(-1, *x.shape[2:])).reshape(shape)
        temporal = ResBlock(
            self.features, self.num_groups, 1e-5, True, self.dtype, name="temporal_res_block"
        )(spatial)
        return AlphaBlender(initial=0.0, name="time_mixer")(temporal, spatial)


class HalvingConv(nn.Module):
    """Halves an image by a convolution of stride 2, padded at the bottom and right only."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 c"]:
        padding = ((0, 1), (0, 1))
        conv = nn.Conv(
            x.shape[-1], (3, 3), strides=2, padding=padding, dtype=self.dtype, name="conv"
        )
        return conv(x)


class EncoderBlock(nn.Module):
    """Residual blocks of one resolution, then its halving."""

    features: int
    layers: int
    halve: bool
    num_groups: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n _ _ {self.features}"]:
        for i in range(self.layers):
            block = ResBlock(self.features, self.num_groups, dtype=self.dtype, name=f"resnets_{i}")
            x = block(x)
        return HalvingConv(self.dtype, name="downsamplers_0")(x) if self.halve else x


class EncoderMidBlock(nn.Module):
    """Two residual blocks with attention between."""

    num_groups: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        first, second = (
            ResBlock(x.shape[-1], self.num_groups, dtype=self.dtype, name=f"resnets_{i}")
            for i in range(2)
        )
        return second(PixelAttention(self.num_groups, self.dtype, name="attentions_0")(first(x)))


class Encoder(nn.Module):
    """From images in [-1, 1] to features of twice the latent channels."""

    config: VaeConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n H W 3"]) -> Float[Array, "n h w c"]:
        channels, groups = self.config.block_out_channels, self.config.norm_num_groups
        x = Conv3x3(channels[0], dtype=self.dtype, name="conv_in")(x)

        # The image is halved between resolutions, so not after the last.
        for i, features in enumerate(channels):
            block = EncoderBlock(
                features,
                self.config.layers_per_block,
                i < len(channels) - 1,
                groups,
                self.dtype,
                name=f"down_blocks_{i}",
            )
            x = block(x)

        # Mean and logarithm of the variance for each latent channel.
        x = EncoderMidBlock(groups, self.dtype, name="mid_block")(x)
        x = nn.silu(GroupNorm(groups, 1e-6, self.dtype, name="conv_norm_out")(x))
        features = 2 * self.config.latent_channels
        return Conv3x3(features, dtype=self.dtype, name="conv_out")(x)


class DecoderMidBlock(nn.Module):
    """Residual blocks at latent resolution, with attention in each frame after the first.

    As diffusers runs it, what would come after the second block never does, and attention does not
    run where there is no second; their parameters are there all the same.
    """

    config: VaeConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b v h w c"]) -> Float[Array, "b v h w c"]:
        layers, groups = self.config.layers_per_block, self.config.norm_num_groups
        first, *others = (
            DecoderResBlock(x.shape[-1], groups, self.dtype, name=f"resnets_{i}")
            for i in range(layers)
        )
        attention = PixelAttention(groups, self.dtype, name="attentions_0")

        def attend(x: Float[Array, "b v h w c"]) -> Float[Array, "b v h w c"]:
            return attention(x.reshape(-1, *x.shape[2:])).reshape(x.shape)

        x = first(x)

        # Checkpoints hold parameters of blocks that never run, so they are made as well.
        if self.is_initializing():
            attend(x)
            for block in others:
                block(x)

        if others or self.config.mid_attention == "always":
            x = attend(x)
        used = others if self.config.mid_attention == "always" else others[:1]
        for block in used:
            x = block(x)
        return x


class DecoderBlock(nn.Module):
    """Residual blocks of one resolution, then its doubling."""

    features: int
    layers: int
    double: bool
    num_groups: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b v h w c"]) -> Float[Array, "b v _ _ {self.features}"]:
        for i in range(self.layers):
            block = DecoderResBlock(self.features, self.num_groups, self.dtype, name=f"resnets_{i}")
            x = block(x)
        return Upsample(self.dtype, name="upsamplers_0")(x) if self.double else x


class Decoder(nn.Module):
    """From latents to images in [-1, 1]; every frame looks at its neighbors."""

    config: VaeConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b v h w c"]) -> Float[Array, "b v H W 3"]:
        channels, groups = self.config.block_out_channels[::-1], self.config.norm_num_groups
        layers = self.config.layers_per_block
        x = Conv3x3(channels[0], dtype=self.dtype, name="conv_in")(x)
        x = DecoderMidBlock(self.config, self.dtype, name="mid_block")(x)

        # A block more than in the encoder, as diffusers has it: its name says layers_per_block + 1.
        for i, features in enumerate(channels):
            block = DecoderBlock(
                features,
                layers + 1,
                i < len(channels) - 1,
                groups,
                self.dtype,
                name=f"up_blocks_{i}",
            )
            x = block(x)

        # Frames are normalized one by one here, and look at each other once more at the very end.
        norm = GroupNorm(groups, 1e-6, self.dtype, name="conv_norm_out")
        x = nn.silu(norm(x.reshape(-1, *x.shape[2:])).reshape(x.shape))
        x = Conv3x3(3, dtype=self.dtype, name="conv_out")(x)
        return TemporalConv(3, self.dtype, name="time_conv_out")(x)


class Vae(nn.Module):
    """SVD's autoencoder, as `apply(params, ..., method="encode")` and `"decode"`."""

    config: VaeConfig
    dtype: DTypeLike = jnp.float32

    def setup(self):
        """Names the children as diffusers does."""
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)
        self.quant_conv = PointwiseConv(2 * self.config.latent_channels, self.dtype)

    def encode(self, images: Float[Array, "*n h w 3"]) -> LatentMoments:
        """Returns mean and variance of the unscaled latents of images in [0, 1], in float32.

        Each halving rounds down, so what comes back from `decode` may be smaller.
        """
        flat = images.reshape(-1, *images.shape[-3:])
        moments = self.quant_conv(self.encoder(2 * flat - 1)).astype(jnp.float32)
        moments = moments.reshape(*images.shape[:-3], *moments.shape[1:])
        mean, logvar = (
            pixel_unshuffle(part, self.config.patch) for part in jnp.split(moments, 2, axis=-1)
        )
        return LatentMoments(mean=mean, logvar=jnp.clip(logvar, -30.0, 20.0))

    def decode(self, latents: Float[Array, "b v h w c"]) -> Float[Array, "b v H W 3"]:
        """Returns the images of the unscaled latents of videos, in float32.

        They are about [0, 1], not clamped.
        """
        unpacked = pixel_shuffle(latents, self.config.patch)
        return (self.decoder(unpacked).astype(jnp.float32) + 1) / 2

    def __call__(self, images: Float[Array, "b v h w 3"]) -> Float[Array, "b v H W 3"]:
        """Returns what the mean latents decode to; that uses, and so makes, all parameters."""
        return self.decode(self.encode(images).mean)
