"""Normalizations, with gradients written out: as XLA derives them, they take several times as long.

Only the input and a mean and a scale for each group or token are kept for the way back. First
derivatives only, in reverse mode. Statistics are float32 whatever is computed in.
"""

import functools
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from o3d_jax.nn.layers import parameter, varying


def sum_rows(x: Float[Array, "b n c"]) -> Float[Array, "b c"]:
    """Returns the sums over the middle axis.

    On CPUs they are taken in two stages: thousands of rows in one take five times as long, and
    round more. Elsewhere in one: libtpu 0.0.52 dies of the two.
    """
    return jax.lax.platform_dependent(x, cpu=_sum_in_two_stages, default=lambda x: x.sum(1))


def _sum_in_two_stages(x: Float[Array, "b n c"]) -> Float[Array, "b c"]:
    """Returns sums of sums: over about as many rows in either stage, unless their number is prime.

    XLA would merge the stages, hence the barrier.
    """
    b, n, c = x.shape
    parts = max(part for part in range(1, int(n**0.5) + 1) if n % part == 0)
    return jax.lax.optimization_barrier(x.reshape(b, parts, -1, c).sum(2)).sum(1)


class Kept(NamedTuple):
    """What the way back needs; mean and gain broadcast against the input."""

    x: Float[Array, "*b d"]
    scale: Float[Array, " d"]
    mean: Float[Array, "..."]
    gain: Float[Array, "..."]
    """One over the deviation."""


Gradients = tuple[Float[Array, "*b d"], Float[Array, " d"], Float[Array, " d"]]
"""The gradients of input, scale and bias; JAX asks for a plain tuple."""


class GroupNorm(nn.Module):
    """Group normalization over all axes but the first (batch) and, within groups, the last.

    Sums are per channel, then per group: up to four times faster than `linen.GroupNorm`. A video
    of shape `b v h w c` is normalized over its frames too, as torch does in 3-D.
    """

    num_groups: int = 32
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *s c"]) -> Float[Array, "b *s c"]:
        channels = x.shape[-1]
        scale = parameter(self, "scale", nn.initializers.ones, (channels,))
        bias = parameter(self, "bias", nn.initializers.zeros, (channels,))
        scale, bias = varying(scale, x), varying(bias, x)
        rows = x.reshape(x.shape[0], -1, channels)
        y = _group_norm(self.num_groups, self.epsilon, self.dtype, rows, scale, bias)
        return cast(Array, y).reshape(x.shape)


def _over_group(per_channel: Float[Array, "b c"], groups: int) -> Float[Array, "b 1 c"]:
    """Returns the sum over the channels of a group, given to each of its channels."""
    b, c = per_channel.shape
    sums = per_channel.reshape(b, groups, -1).sum(-1, keepdims=True)
    return jnp.broadcast_to(sums, (b, groups, c // groups)).reshape(b, 1, c)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _group_norm(
    groups: int,
    epsilon: float,
    dtype: DTypeLike,
    x: Float[Array, "b n c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
) -> Float[Array, "b n c"]:
    return _group_norm_forward(groups, epsilon, dtype, x, scale, bias)[0]


def _group_norm_forward(
    groups: int,
    epsilon: float,
    dtype: DTypeLike,
    x: Float[Array, "b n c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
) -> tuple[Float[Array, "b n c"], Kept]:
    x32 = x.astype(jnp.float32)
    count = x.shape[1] * x.shape[2] // groups
    mean = _over_group(x32.sum(1), groups) / count
    centered = x32 - mean
    variance = _over_group((centered**2).sum(1), groups) / count
    gain = jax.lax.rsqrt(variance + epsilon)
    y = centered * (gain * scale[None, None]) + bias[None, None]
    return y.astype(dtype), Kept(x, scale, mean, gain)


def _group_norm_backward(
    groups: int, _epsilon: float, _dtype: DTypeLike, kept: Kept, dy: Float[Array, "b n c"]
) -> Gradients:
    """Returns the gradients; JAX gives all arguments that have none of their own, used or not."""
    x, scale, mean, gain = kept
    dy32, centered = dy.astype(jnp.float32), x.astype(jnp.float32) - mean

    # With n the normalized input: dx = gain (s dy - mean(s dy) - n mean(s dy n)), means over a
    # group. Both means come from the sums that the bias and the scale need for each channel.
    count = x.shape[1] * x.shape[2] // groups
    dbias = sum_rows(dy32)
    dscale = sum_rows(dy32 * centered) * gain[:, 0]
    shift = _over_group(dbias * scale[None], groups) / count
    slope = _over_group(dscale * scale[None], groups) / count
    dx = dy32 * (gain * scale[None, None]) - centered * (gain**2 * slope) - gain * shift
    return dx.astype(x.dtype), dscale.sum(0), dbias.sum(0)


_group_norm.defvjp(_group_norm_forward, _group_norm_backward)


class LayerNorm(nn.Module):
    """Normalization of each token over its features."""

    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
        scale = parameter(self, "scale", nn.initializers.ones, (x.shape[-1],))
        bias = parameter(self, "bias", nn.initializers.zeros, (x.shape[-1],))
        scale, bias = varying(scale, x), varying(bias, x)
        y = _layer_norm(self.epsilon, self.dtype, x.reshape(-1, x.shape[-1]), scale, bias)
        return cast(Array, y).reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _layer_norm(
    epsilon: float,
    dtype: DTypeLike,
    x: Float[Array, "n d"],
    scale: Float[Array, " d"],
    bias: Float[Array, " d"],
) -> Float[Array, "n d"]:
    return _layer_norm_forward(epsilon, dtype, x, scale, bias)[0]


def _layer_norm_forward(
    epsilon: float,
    dtype: DTypeLike,
    x: Float[Array, "n d"],
    scale: Float[Array, " d"],
    bias: Float[Array, " d"],
) -> tuple[Float[Array, "n d"], Kept]:
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True)
    centered = x32 - mean
    gain = jax.lax.rsqrt((centered**2).mean(-1, keepdims=True) + epsilon)
    y = centered * gain * scale[None] + bias[None]
    return y.astype(dtype), Kept(x, scale, mean, gain)


def _layer_norm_backward(
    _epsilon: float, _dtype: DTypeLike, kept: Kept, dy: Float[Array, "n d"]
) -> Gradients:
    """Returns the gradients, as `_group_norm_backward` does, with means over each token."""
    x, scale, mean, gain = kept
    dy32, normal = dy.astype(jnp.float32), (x.astype(jnp.float32) - mean) * gain
    dscale, dbias = sum_rows((dy32 * normal)[None])[0], sum_rows(dy32[None])[0]
    scaled = dy32 * scale[None]
    shift = scaled.mean(-1, keepdims=True)
    slope = (scaled * normal).mean(-1, keepdims=True)
    dx = gain * (scaled - shift - normal * slope)
    return dx.astype(x.dtype), dscale, dbias


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)
