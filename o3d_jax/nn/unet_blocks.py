"""Blocks of SVD's spatio-temporal U-Net: each works on frames, then across them, and blends both.

Names and arithmetic follow diffusers' UNetSpatioTemporalConditionModel. Videos are `b v h w c`,
tokens `b v s c` with s = h w.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from o3d_jax.config import UnetConfig
from o3d_jax.nn.attention import attend
from o3d_jax.nn.convolutions import Conv3x3, TemporalConv, UpsampledConv3x3
from o3d_jax.nn.layers import (
    Dense,
    FeedForward,
    PointwiseConv,
    TimestepMlp,
    parameter,
    sinusoid,
)
from o3d_jax.nn.norms import GroupNorm, LayerNorm
from o3d_jax.nn.remat import recomputed


class ResBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, added to the input.

    It works over the pixels of images `b h w c`, or, with `across_frames`, over the frames of
    videos `b v h w c`, whose normalization then spans frames too. `emb` is added between the two.
    """

    features: int
    num_groups: int = 32
    epsilon: float = 1e-6
    across_frames: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def _convolution(self, name: str) -> nn.Module:
        if self.across_frames:
            return TemporalConv(self.features, self.dtype, name=name)
        return Conv3x3(self.features, dtype=self.dtype, name=name)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *s c"], emb: Float[Array, "b d"] | None = None
    ) -> Float[Array, "b *s {self.features}"]:
        y = GroupNorm(self.num_groups, self.epsilon, self.dtype, name="norm1")(x)
        y = self._convolution("conv1")(nn.silu(y))
        if emb is not None:
            shift = Dense(self.features, dtype=self.dtype, name="time_emb_proj")(nn.silu(emb))
            y = y + shift.reshape(-1, *(1,) * (x.ndim - 2), self.features)
        y = GroupNorm(self.num_groups, self.epsilon, self.dtype, name="norm2")(y)
        y = self._convolution("conv2")(nn.silu(y))
        if x.shape[-1] != self.features:
            x = PointwiseConv(self.features, self.dtype, name="conv_shortcut")(x)
        return x + y


class AlphaBlender(nn.Module):
    """A learned convex combination: sigmoid(mix_factor) of the first, the rest of the second."""

    initial: float = 0.5
    """Initial mix_factor, before the sigmoid."""

    @nn.compact
    def __call__(self, first: Float[Array, "*s"], second: Float[Array, "*s"]) -> Float[Array, "*s"]:
        init = nn.initializers.constant(self.initial)
        mix_factor = parameter(self, "mix_factor", init, (1,))
        alpha = jax.nn.sigmoid(mix_factor[0]).astype(first.dtype)
        return alpha * first + (1 - alpha) * second


class SpatioTemporalResBlock(nn.Module):
    """A residual block on each frame, one across frames on its result, and their blend."""

    features: int
    num_groups: int = 32
    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b v h w c"], emb: Float[Array, "b d"]
    ) -> Float[Array, "b v h w {self.features}"]:
        def block(across_frames: bool, name: str) -> ResBlock:
            return ResBlock(
                self.features,
                self.num_groups,
                self.epsilon,
                across_frames,
                self.dtype,
                name=name,
            )

        b, v, h, w, c = x.shape
        frames, frame_emb = x.reshape(b * v, h, w, c), jnp.repeat(emb, v, axis=0)
        spatial = block(False, "spatial_res_block")(frames, frame_emb).reshape(b, v, h, w, -1)
        temporal = block(True, "temporal_res_block")(spatial, emb)
        return AlphaBlender(name="time_mixer")(spatial, temporal)


class SelfAttention(nn.Module):
    """Multi-head self-attention; the projections of queries, keys and values have no bias."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b q d"]) -> Float[Array, "b q d"]:
        def project(name: str) -> Float[Array, "b q d"]:
            return Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name=name)(x)

        x_out = attend(project("to_q"), project("to_k"), project("to_v"), self.heads)
        return Dense(x.shape[-1], dtype=self.dtype, name="to_out_0")(x_out)


class TokenAttention(nn.Module):
    """Cross-attention to a context of one token, the image embedding.

    A softmax over one key is 1, so every query reads to_out(to_v(context)): queries and keys never
    matter, and get no gradient in torch either. Their parameters exist because checkpoints hold
    them; compilers remove the normalization in front of them.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b v s d"], context: Float[Array, "b 1 e"]
    ) -> Float[Array, "b 1 1 d"]:
        def project(name: str, y: Float[Array, "..."]) -> Float[Array, "..."]:
            return Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name=name)(y)

        if self.is_initializing():
            project("to_q", x)
            project("to_k", context)
        out = Dense(x.shape[-1], dtype=self.dtype, name="to_out_0")(project("to_v", context))
        return out[:, None]


def interleaved(x: Float[Array, "b 1 1 d"], tokens: int) -> Float[Array, "b 1 _ d"]:
    """Returns what tokens read in diffusers 0.25, given a guided batch, unconditional half first.

    A bug there: contexts are ordered (token, video), tokens (video, token). So token i of an
    object's two videos together reads the context of number i modulo 2, and half of each video
    reads the other's. It ran one object at a time; here each object's pair is by itself.

    Raises:
        ValueError: an odd number of videos, which are not a guided batch.
    """
    if x.shape[0] == 1:  # Both are the same.
        return x
    if x.shape[0] % 2:
        raise ValueError(
            f"{x.shape[0]} videos are no guided batch: interleaved contexts need pairs of them"
        )
    pairs = x[:, 0, 0].reshape(2, -1, x.shape[-1])
    read = jnp.arange(2 * tokens).reshape(2, tokens) % 2
    return jnp.swapaxes(pairs[read], 1, 2).reshape(x.shape[0], 1, tokens, x.shape[-1])


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the image embedding, feed-forward.

    Tokens attend within their frame, or, with `across_frames`, to the same place in all frames;
    the latter has a further feed-forward in front.
    """

    heads: int
    across_frames: bool = False
    context: Literal["per_video", "interleaved"] = "per_video"
    """Whose image embedding tokens read: that of their own video, or as `interleaved` has it."""
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b v s d"], context: Float[Array, "b 1 e"]
    ) -> Float[Array, "b v s d"]:
        def norm(name: str) -> LayerNorm:
            return LayerNorm(dtype=self.dtype, name=name)

        if self.across_frames:
            x = x + FeedForward(x.shape[-1], self.dtype, name="ff_in")(norm("norm_in")(x))

        # What attends to each other goes along the second axis from the right: the tokens of a
        # frame, or the frames of a token.
        y = norm("norm1")(x)
        y = jnp.swapaxes(y, 1, 2) if self.across_frames else y
        attention = SelfAttention(self.heads, self.dtype, name="attn1")
        y = attention(y.reshape(-1, *y.shape[2:])).reshape(y.shape)
        x = x + (jnp.swapaxes(y, 1, 2) if self.across_frames else y)

        read = TokenAttention(self.dtype, name="attn2")(norm("norm2")(x), context)
        if self.context == "interleaved":
            read = interleaved(read, x.shape[2])
        x = x + read
        return x + FeedForward(x.shape[-1], self.dtype, name="ff")(norm("norm3")(x))


class SpatioTemporalTransformer(nn.Module):
    """A transformer block in each frame, one across frames on its result, and their blend."""

    heads: int
    num_groups: int = 32
    temporal_context: Literal["per_video", "interleaved"] = "per_video"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b v h w c"], context: Float[Array, "b 1 d"]
    ) -> Float[Array, "b v h w c"]:
        b, v, h, w, c = x.shape
        tokens = GroupNorm(self.num_groups, 1e-6, self.dtype, name="norm")(
            x.reshape(b * v, h, w, c)
        ).reshape(b, v, h * w, c)
        tokens = Dense(c, dtype=self.dtype, name="proj_in")(tokens)

        # Across frames, attention is told which frame a token is of; within one it need not be.
        frame_emb = TimestepMlp(4 * c, c, self.dtype, name="time_pos_embed")(
            sinusoid(jnp.arange(v, dtype=jnp.float32), c)
        )[None, :, None]

        spatial = TransformerBlock(self.heads, dtype=self.dtype, name="transformer_blocks_0")(
            tokens, context
        )
        temporal = TransformerBlock(
            self.heads,
            across_frames=True,
            context=self.temporal_context,
            dtype=self.dtype,
            name="temporal_transformer_blocks_0",
        )(spatial + frame_emb, context)
        mixed = AlphaBlender(name="time_mixer")(spatial, temporal)
        return x + Dense(c, dtype=self.dtype, name="proj_out")(mixed).reshape(x.shape)


class Downsample(nn.Module):
    """Halves each frame by a convolution of stride 2; odd sizes are rounded up."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*n h w c"]) -> Float[Array, "*n (h+1)//2 (w+1)//2 c"]:
        return Conv3x3(x.shape[-1], stride=2, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Doubles each frame: nearest neighbor, then a convolution."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*n h w c"]) -> Float[Array, "*n 2*h 2*w c"]:
        return UpsampledConv3x3(x.shape[-1], self.dtype, name="conv")(x)


class Scale(nn.Module):
    """What the down, middle and up blocks of one resolution share: how their layers are made."""

    config: UnetConfig
    index: int
    """The resolution's number; 0 is the finest."""
    dtype: DTypeLike = jnp.float32
    remat: str | None = None
    """What is kept of layers that are computed again (`remat.recomputed`); None: all of all."""

    @property
    def features(self) -> int:
        """Channels at this resolution."""
        return self.config.block_out_channels[self.index]

    @property
    def is_last(self) -> bool:
        """Whether it is the coarsest, which has attention in the middle block only."""
        return self.index == len(self.config.block_out_channels) - 1

    @nn.nowrap
    def resnet(self, i: int, epsilon: float) -> nn.Module:
        """Returns residual block number i, a child of this block."""
        block = recomputed(SpatioTemporalResBlock, self.remat)
        groups = self.config.norm_num_groups
        return block(self.features, groups, epsilon, self.dtype, name=f"resnets_{i}")

    @nn.nowrap
    def attention(self, i: int) -> nn.Module:
        """Returns transformer number i, a child of this block."""
        block = recomputed(SpatioTemporalTransformer, self.remat)
        config = self.config
        return block(
            config.num_attention_heads[self.index],
            config.norm_num_groups,
            config.temporal_context,
            self.dtype,
            name=f"attentions_{i}",
        )


class DownBlock(Scale):
    """Layers of one encoder resolution; returns what goes on, and the skips.

    The feedback features of this resolution are added after the last skip was recorded and before
    the resolution is halved (Eq. 14 as the release places it).
    """

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b v h w c"],
        emb: Float[Array, "b d"],
        context: Float[Array, "b 1 e"],
        feedback: Float[Array, "b v h w {self.features}"] | None = None,
    ) -> tuple[Float[Array, "b v _ _ {self.features}"], list[Float[Array, "b v h w _"]]]:
        skips = []
        for i in range(self.config.layers_per_block):
            x = self.resnet(i, epsilon=1e-5 if self.is_last else 1e-6)(x, emb)
            if not self.is_last:
                x = self.attention(i)(x, context)
            skips.append(x)
        if feedback is not None:
            x = x + feedback.astype(x.dtype)
        if not self.is_last:
            x = Downsample(self.dtype, name="downsamplers_0")(x)
        return x, skips


class MidBlock(Scale):
    """Two residual blocks with attention between them, at the lowest resolution."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b v h w c"],
        emb: Float[Array, "b d"],
        context: Float[Array, "b 1 e"],
    ) -> Float[Array, "b v h w c"]:
        x = self.attention(0)(self.resnet(0, epsilon=1e-5)(x, emb), context)
        return self.resnet(1, epsilon=1e-5)(x, emb)


class UpBlock(Scale):
    """Layers of one decoder resolution; each reads one skip, the last recorded first."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b v h w c"],
        emb: Float[Array, "b d"],
        context: Float[Array, "b 1 e"],
        skips: list[Float[Array, "b v h w _"]],
    ) -> Float[Array, "b v _ _ {self.features}"]:
        for i, skip in enumerate(reversed(skips)):
            x = self.resnet(i, epsilon=1e-6)(jnp.concatenate([x, skip], axis=-1), emb)
            if not self.is_last:
                x = self.attention(i)(x, context)
        if self.index > 0:
            x = Upsample(self.dtype, name="upsamplers_0")(x)
        return x
