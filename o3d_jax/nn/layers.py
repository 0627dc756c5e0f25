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


class Conv3x3(nn.Module):
    """`linen.Conv` with a (3, 3) kernel and padding 1, also fast on images of a few pixels.

    Where the kernel is larger than the image, XLA exchanges the two, and on CPUs such a convolution
    takes twenty times as long as the product of its patches.
    """

    features: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*n h w c"]) -> Float[Array, "*n _ _ {self.features}"]:
        shape = (3, 3, x.shape[-1], self.features)
        kernel = parameter(self, "kernel", self.kernel_init, shape)
        bias = parameter(self, "bias", nn.initializers.zeros, (self.features,))

        images = x.reshape(-1, *x.shape[-3:]).astype(self.dtype)
        if images.shape[1] * images.shape[2] < kernel.shape[0] * kernel.shape[1]:
            y = by_patches(images, varying(kernel, x, self.dtype), self.stride)
        else:
            y = jax.lax.conv_general_dilated(
                images,
                jnp.asarray(kernel, self.dtype),
                window_strides=(self.stride, self.stride),
                padding=((1, 1), (1, 1)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        y = y + bias.astype(self.dtype)[None, None, None]
        return y.reshape(*x.shape[:-3], *y.shape[1:])


def by_patches(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c f"], stride: int
) -> Float[Array, "n _ _ f"]:
    """Returns the convolution with padding 1, as one product of all patches and the kernel."""
    n, h, w, c = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [
        padded[:, i : i + h : stride, j : j + w : stride] for i in range(3) for j in range(3)
    ]
    patches = jnp.concatenate(shifted, axis=-1)
    y = product(patches.reshape(-1, 9 * c), kernel.reshape(9 * c, -1))
    return y.reshape(*patches.shape[:-1], -1)


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
    return dx, _over_rows(kept.x, dy)


product.defvjp(_product_forward, _product_backward)


def _over_rows(x: Float[Array, "n d"], dy: Float[Array, "n f"]) -> Float[Array, "d f"]:
    """Returns x^T dy.

    The barrier keeps XLA from laying out an operand by columns: where it does, to save a copy
    elsewhere, its product on CPUs takes ten times as long.
    """
    x, dy = jax.lax.optimization_barrier((x, dy))
    return jax.lax.dot_general(x, dy, (((0,), (0,)), ((), ())))


class TemporalConv(nn.Module):
    """torch's Conv3d with a (3, 1, 1) kernel: a 1-D convolution over the frames of each pixel."""

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "b v h w c"]) -> Float[Array, "b v h w {self.features}"]:
        b, v, h, w, c = x.shape
        kernel = parameter(self, "kernel", self.kernel_init, (3, 1, 1, c, self.features))
        bias = parameter(self, "bias", nn.initializers.zeros, (self.features,))
        x = x.astype(self.dtype).reshape(b, v, h * w, c)
        x = over_frames(x, varying(kernel[:, 0, 0], x, self.dtype))
        return (x + bias.astype(self.dtype)[None, None, None]).reshape(b, v, h, w, self.features)


@jax.custom_vjp
def over_frames(
    x: Float[Array, "b v s c"], kernel: Float[Array, "3 c f"]
) -> Float[Array, "b v s f"]:
    """Returns the sum of the frame before, each frame and the one after, each times its matrix.

    Beyond the ends frames are zero. It has first derivatives only, in reverse mode.
    """
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, None],
        window_strides=(1, 1),
        padding=((1, 1), (0, 0)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _over_frames_forward(
    x: Float[Array, "b v s c"], kernel: Float[Array, "3 c f"]
) -> tuple[Float[Array, "b v s f"], Factors]:
    return over_frames(x, kernel), Factors(x, kernel)


def _over_frames_backward(kept: Factors, dy: Float[Array, "b v s f"]) -> Pair:
    x, kernel = kept
    dx = over_frames(dy, jnp.swapaxes(kernel[::-1], 1, 2))

    def gradient(x: Float[Array, "b v s c"], dy: Float[Array, "b v s f"]) -> Float[Array, "c f"]:
        return _over_rows(x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1]))

    # Three products; as a convolution, whose window is the whole video, it takes three times that.
    before = gradient(x[:, :-1], dy[:, 1:])
    after = gradient(x[:, 1:], dy[:, :-1])
    return dx, jnp.stack([before, gradient(x, dy), after])


over_frames.defvjp(_over_frames_forward, _over_frames_backward)


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


def upsample2(x: Float[Array, "*b h w c"]) -> Float[Array, "*b 2*h 2*w c"]:
    """Returns each pixel four times, as a block of two by two, written as a broadcast."""
    *b, h, w, c = x.shape
    x = jnp.broadcast_to(x[..., :, None, :, None, :], (*b, h, 2, w, 2, c))
    return x.reshape(*b, 2 * h, 2 * w, c)


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
