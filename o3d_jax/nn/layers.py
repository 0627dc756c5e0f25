"""Layers that several networks share, in the formulations that are fast on every backend.

Parameter names follow torch (`weights/pytorch/names.py` gives the rule). Networks compute in
`dtype`; parameters and normalization statistics are float32.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from flax.errors import ScopeParamShapeError
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def parameter(
    layer: nn.Module, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...]
) -> Float[Array, "..."] | Float[np.ndarray, "..."]:
    """Returns a layer's parameter of this name and shape; `init` makes it in a fresh network.

    `Module.param` does the same, but learns the shape that a given value should have by tracing
    `init`: 40 % of the time that it takes to trace a U-Net, and so of what a start waits for.

    Raises:
        ScopeParamShapeError: the value has another shape.
        ScopeParamNotFoundError: there is none, and the network is not being initialized.
    """
    if not layer.has_variable("params", name):
        return layer.param(name, init, shape, jnp.float32)
    value = meta.unbox(layer.get_variable("params", name))
    if np.shape(value) != shape:
        raise ScopeParamShapeError(name, "/".join(layer.path), np.shape(value), shape)
    return value


def varying(
    parameter: Float[Array, "*s"] | Float[np.ndarray, "*s"],
    x: Float[Array, "..."],
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "*s"]:
    """Returns the parameter in `dtype`, typed as varying over whatever `x` varies over.

    That matters inside of `shard_map` only: JAX then sums its gradient over devices, which a
    gradient that is written out by hand must leave to JAX. The value is the same; XLA removes the
    sum.
    """
    zero = jnp.zeros_like(x, dtype, shape=(1,) * parameter.ndim)
    return jnp.asarray(parameter, dtype) + zero


class Dense(nn.Module):
    """`linen.Dense`, with the product that is fast on the way back."""

    features: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b {self.features}"]:
        shape = (x.shape[-1], self.features)
        kernel = parameter(self, "kernel", self.kernel_init, shape)
        y = product(x.reshape(-1, x.shape[-1]).astype(self.dtype), varying(kernel, x, self.dtype))
        if self.use_bias:
            bias = parameter(self, "bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(self.dtype)[None]
        return y.reshape(*x.shape[:-1], self.features)


class PointwiseConv(nn.Module):
    """A convolution with a (1, 1) kernel, as a product of matrices."""

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w {self.features}"]:
        shape = (1, 1, x.shape[-1], self.features)
        kernel = parameter(self, "kernel", self.kernel_init, shape)
        bias = parameter(self, "bias", self.bias_init, (self.features,))
        kernel = varying(kernel[0, 0], x, self.dtype)
        y = product(x.reshape(-1, x.shape[-1]).astype(self.dtype), kernel)
        return (y + bias.astype(self.dtype)[None]).reshape(*x.shape[:-1], self.features)


class Factors(NamedTuple):
    """Both sides of a product."""

    x: Float[Array, "..."]
    kernel: Float[Array, "..."]


Pair = tuple[Float[Array, "..."], Float[Array, "..."]]
"""Gradients of both factors; JAX asks for a plain tuple."""


@jax.custom_vjp
def product(x: Float[Array, "n d"], kernel: Float[Array, "d f"]) -> Float[Array, "n f"]:
    """Returns the matrix product. It has first derivatives only, in reverse mode."""
    return x @ kernel


def _product_forward(
    x: Float[Array, "n d"], kernel: Float[Array, "d f"]
) -> tuple[Float[Array, "n f"], Factors]:
    return x @ kernel, Factors(x, kernel)


def _product_backward(kept: Factors, dy: Float[Array, "n f"]) -> Pair:
    dx = jax.lax.dot_general(dy, kept.kernel, (((1,), (1,)), ((), ())))
    return dx, over_rows(kept.x, dy)


product.defvjp(_product_forward, _product_backward)


def over_rows(x: Float[Array, "n d"], dy: Float[Array, "n f"]) -> Float[Array, "d f"]:
    """Returns x^T dy.

    The barrier keeps XLA from laying out an operand by columns: where it does, to save a copy
    elsewhere, its product on CPUs takes ten times as long.
    """
    x, dy = jax.lax.optimization_barrier((x, dy))
    return jax.lax.dot_general(x, dy, (((0,), (0,)), ((), ())))


class TimestepMlp(nn.Module):
    """diffusers' TimestepEmbedding: linear_1, SiLU, linear_2."""

    features: int
    out_features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b {self.out_features}"]:
        x = Dense(self.features, dtype=self.dtype, name="linear_1")(x)
        return Dense(self.out_features, dtype=self.dtype, name="linear_2")(nn.silu(x))


class GegluProjection(nn.Module):
    """diffusers' GEGLU: value times the exact (erf) GELU of the gate."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b {self.features}"]:
        x = Dense(2 * self.features, dtype=self.dtype, name="proj")(x)
        value, gate = jnp.split(x, 2, axis=-1)
        return value * gelu(gate)


class FeedForward(nn.Module):
    """diffusers' FeedForward with GEGLU and four times the width inside."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b {self.features}"]:
        # As a matrix: XLA's loops over halves of rows are slower with more axes.
        y = x.reshape(-1, x.shape[-1])
        y = GegluProjection(4 * x.shape[-1], self.dtype, name="net_0")(y)
        y = Dense(self.features, dtype=self.dtype, name="net_2")(y)
        return y.reshape(*x.shape[:-1], self.features)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the exact GELU, x Phi(x)."""
    return x * 0.5 * (1 + jax.lax.erf(x / math.sqrt(2)))


def sinusoid(t: Float[Array, "*b"], features: int) -> Float[Array, "*b {features}"]:
    """Returns the sinusoidal embedding of SVD: cosines first, then sines.

    Their periods are 2 pi to 2 pi 10^4.
    """
    half = features // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t[..., None].astype(jnp.float32) * jax.lax.broadcast(frequencies, t.shape)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def pool2(x: Float[Array, "*b h w c"]) -> Float[Array, "*b h//2 w//2 c"]:
    """Returns the mean of each block of two by two, written as a mean over a reshape."""
    *b, h, w, c = x.shape
    return x.reshape(*b, h // 2, 2, w // 2, 2, c).mean(axis=(-4, -2))


def pixel_unshuffle(
    x: Float[Array, "*b h w c"], factor: int
) -> Float[Array, "*b h//{factor} w//{factor} c*{factor}*{factor}"]:
    """Returns blocks of pixels as channels, without loss (Table 3, first row).

    Channels are ordered as in torch: by input channel, then row, then column within the block.
    """
    *b, h, w, c = x.shape
    x = x.reshape(*b, h // factor, factor, w // factor, factor, c)
    x = jnp.moveaxis(x, (-1, -4, -2), (-3, -2, -1))
    return x.reshape(*b, h // factor, w // factor, c * factor**2)


def pixel_shuffle(
    x: Float[Array, "*b h w c"], factor: int
) -> Float[Array, "*b h*{factor} w*{factor} c//({factor}*{factor})"]:
    """Returns channels as blocks of pixels, the inverse of `pixel_unshuffle`."""
    *b, h, w, c = x.shape
    x = x.reshape(*b, h, w, c // factor**2, factor, factor)
    x = jnp.moveaxis(x, (-3, -2, -1), (-1, -4, -2))
    return x.reshape(*b, h * factor, w * factor, c // factor**2)
