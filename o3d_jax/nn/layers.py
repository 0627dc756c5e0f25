"""Layers that several networks share, in the formulations that are fast on every backend.

Parameter names follow torch (`io/names.py` gives the rule). Networks compute in `dtype`;
parameters and normalisation statistics are float32.
"""

import math
from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class GroupNorm(nn.Module):
    """Group normalisation over all axes but the first (batch) and, within groups, the last.

    Two-stage sums, per channel, then per group: up to four times faster than `linen.GroupNorm`.
    A video of shape `b v h w c` is thus normalised over its frames too, as torch does in 3-D.
    """

    num_groups: int = 32
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *s c"]) -> Float[Array, "b *s c"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        x32 = x.reshape(x.shape[0], -1, channels).astype(jnp.float32)
        groups = (x.shape[0], self.num_groups, channels // self.num_groups)
        count = x32.shape[1] * groups[-1]

        def spread(per_group):
            return jnp.broadcast_to(per_group, groups).reshape(x.shape[0], 1, channels)

        mean = spread(x32.sum(1).reshape(groups).sum(-1, keepdims=True) / count)
        centred = x32 - mean
        variance = (centred**2).sum(1).reshape(groups).sum(-1, keepdims=True) / count
        gain = spread(jax.lax.rsqrt(variance + self.epsilon)) * scale[None, None]
        return (centred * gain + bias[None, None]).reshape(x.shape).astype(self.dtype)


class TemporalConv(nn.Module):
    """torch's Conv3d with a (3, 1, 1) kernel: a 1-D convolution over the frames of each pixel."""

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "b v h w c"]) -> Float[Array, "b v h w {self.features}"]:
        b, v, h, w, c = x.shape
        kernel = self.param("kernel", self.kernel_init, (3, 1, 1, c, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x = x.astype(self.dtype).reshape(b, v, h * w, c)
        x = jax.lax.conv_general_dilated(
            x,
            kernel[:, 0].astype(self.dtype),
            window_strides=(1, 1),
            padding=((1, 1), (0, 0)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return (x + bias.astype(self.dtype)[None, None, None]).reshape(b, v, h, w, self.features)


class TimestepMlp(nn.Module):
    """diffusers' TimestepEmbedding: linear_1, SiLU, linear_2."""

    features: int
    out_features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b {self.out_features}"]:
        x = nn.Dense(self.features, dtype=self.dtype, name="linear_1")(x)
        return nn.Dense(self.out_features, dtype=self.dtype, name="linear_2")(nn.silu(x))


class GegluProjection(nn.Module):
    """diffusers' GEGLU: value times the exact (erf) GELU of the gate."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b {self.features}"]:
        x = nn.Dense(2 * self.features, dtype=self.dtype, name="proj")(x)
        value, gate = jnp.split(x, 2, axis=-1)
        return value * gelu(gate)


class FeedForward(nn.Module):
    """diffusers' FeedForward with GEGLU and four times the width inside."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b {self.features}"]:
        x = GegluProjection(4 * x.shape[-1], self.dtype, name="net_0")(x)
        return nn.Dense(self.features, dtype=self.dtype, name="net_2")(x)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Exact GELU, x Phi(x)."""
    return x * 0.5 * (1 + jax.lax.erf(x / math.sqrt(2)))


def sinusoid(t: Float[Array, "*b"], features: int) -> Float[Array, "*b {features}"]:
    """Sinusoidal embedding as SVD uses it: cosines first, then sines, periods 2 pi to 2 pi 10^4."""
    half = features // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t[..., None].astype(jnp.float32) * jax.lax.broadcast(frequencies, t.shape)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


ATTENTION_LOGITS = 2**27
"""Most logits of attention that are in memory at a time: half a GiB in float32."""


def attend(
    q: Float[Array, "b q d"], k: Float[Array, "b k d"], v: Float[Array, "b k d"], heads: int
) -> Float[Array, "b q d"]:
    """Softmax attention with `heads` heads over the feature axis, scaled by 1/sqrt(d/heads).

    Queries whose logits would fill more than ATTENTION_LOGITS go in parts, one after another, each
    computed again in the backward pass.
    """

    def split(x):
        return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)

    keys, values = split(k), split(v)

    def of_queries(part: Float[Array, "b p h d"]) -> Float[Array, "b p h d"]:
        return jax.nn.dot_product_attention(part, keys, values)

    parts = attention_parts(q.shape[0] * heads * k.shape[1], q.shape[1])
    if parts == 1:
        return of_queries(split(q)).reshape(q.shape)
    several = split(q).reshape(q.shape[0], parts, -1, heads, q.shape[-1] // heads)
    out = jax.lax.map(jax.checkpoint(of_queries), jnp.moveaxis(several, 1, 0))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape)


def attention_parts(logits_per_query: int, queries: int) -> int:
    """Into how many equal parts queries go: the fewest with ATTENTION_LOGITS or less in each."""
    fits = (p for p in range(1, queries) if queries % p == 0)
    fits = (p for p in fits if logits_per_query * queries // p <= ATTENTION_LOGITS)
    return next(fits, queries)


REMAT_POLICIES = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""By `ModelConfig.remat_keeps`."""

Layer = TypeVar("Layer", bound=type[nn.Module])


def recomputed(layer: Layer, keeps: str | None) -> Layer:
    """The layer, computed again in the backward pass but for what is kept of it (a key of
    REMAT_POLICIES); None: as it is, all kept."""
    return layer if keeps is None else nn.remat(layer, policy=REMAT_POLICIES[keeps])


def pool2(x: Float[Array, "*b h w c"]) -> Float[Array, "*b h//2 w//2 c"]:
    """Average pooling by two, written as a mean over a reshape."""
    *b, h, w, c = x.shape
    return x.reshape(*b, h // 2, 2, w // 2, 2, c).mean(axis=(-4, -2))


def upsample2(x: Float[Array, "*b h w c"]) -> Float[Array, "*b 2*h 2*w c"]:
    """Nearest-neighbour upsampling by two, written as a broadcast."""
    *b, h, w, c = x.shape
    x = jnp.broadcast_to(x[..., :, None, :, None, :], (*b, h, 2, w, 2, c))
    return x.reshape(*b, 2 * h, 2 * w, c)
