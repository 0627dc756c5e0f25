"""Convolutions over the pixels of an image and over the frames of a video.

Each is written so that it is fast on CPUs too, where XLA leaves some shapes to slow code. That
changes results by rounding only; but a number that is not finite may spread a few pixels further.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from o3d_jax.nn.layers import Factors, Pair, over_rows, parameter, product, varying


class Conv3x3(nn.Module):
    """`linen.Conv` with a (3, 3) kernel and padding 1.

    It is also fast on images of a few pixels (`by_patches`) and of few channels (`_in_pairs`).
    """

    features: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*n h w c"]) -> Float[Array, "*n _ _ {self.features}"]:
        return _apply(self, x, functools.partial(_convolved, stride=self.stride))


class UpsampledConv3x3(nn.Module):
    """`Conv3x3`, with its parameters, of images that are doubled before: each pixel four times."""

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*n h w c"]) -> Float[Array, "*n 2*h 2*w {self.features}"]:
        return _apply(self, x, _upsampled)


def _apply(
    layer: Conv3x3 | UpsampledConv3x3,
    x: Float[Array, "*n h w c"],
    convolve: Callable[[Float[Array, "..."], Float[Array, "..."]], Float[Array, "..."]],
) -> Float[Array, "*n _ _ f"]:
    """Returns what `convolve` makes of images and the layer's kernel, plus the layer's bias."""
    shape = (3, 3, x.shape[-1], layer.features)
    kernel = parameter(layer, "kernel", layer.kernel_init, shape)
    bias = parameter(layer, "bias", nn.initializers.zeros, (layer.features,))

    images = x.reshape(-1, *x.shape[-3:]).astype(layer.dtype)
    y = convolve(images, varying(kernel, x, layer.dtype))
    y = y + bias.astype(layer.dtype)[None, None, None]
    return y.reshape(*x.shape[:-3], *y.shape[1:])


KERNEL = 9
"""Pixels of a kernel."""


def _convolved(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c f"], stride: int = 1
) -> Float[Array, "n _ _ f"]:
    """Returns the convolution with padding 1, in the way that suits the shape."""
    pixels, features = x.shape[1] * x.shape[2], kernel.shape[-1]
    if pixels < KERNEL:
        return by_patches(x, kernel, stride)

    # Pairs halve the image, which must not become smaller than the kernel either.
    if stride == 1 and pixels >= 2 * KERNEL and _pays_in_pairs(x, features):
        return jax.lax.platform_dependent(x, kernel, cpu=_in_pairs, default=_convolution)
    return _convolution(x, kernel, stride)


Padding = tuple[tuple[int, int], tuple[int, int]]
"""Rows before and after the image, then columns."""


def _convolution(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "_ _ c f"],
    stride: int = 1,
    padding: Padding = ((1, 1), (1, 1)),
) -> Float[Array, "n _ _ f"]:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


NARROW = 12
"""Channels up to which a convolution on CPUs pays in pairs of pixels. Half of the products are with
zeros, but XLA hands 24 channels to a library that is three times as fast as its code for 12, and
does not vectorize loops over 12 or fewer. At 16 channels both ways take the same time."""


def _pays_in_pairs(x: Float[Array, "*s w c"], features: int) -> bool:
    return max(x.shape[-1], features) <= NARROW and x.shape[-2] % 2 == 0


def _in_pairs(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c f"]
) -> Float[Array, "n h w f"]:
    """Returns the convolution with padding 1, computed with two neighbors in a row as one pixel."""
    n, h, w, c = x.shape

    # Pixel p of a pair reads pixel q of the pair before (j = 0), its own or the next, if they are
    # one pixel apart or less.
    j, q, p, tap = np.ogrid[:3, :2, :2, :3]
    reads = (2 * (j - 1) + q - p == tap - 1).astype(kernel.dtype)
    paired = jnp.einsum("jqpt,itcf->ijqcpf", reads, kernel, precision="highest")

    features = kernel.shape[-1]
    paired = paired.reshape(3, 3, 2 * c, 2 * features)
    return _convolution(x.reshape(n, h, w // 2, 2 * c), paired).reshape(n, h, w, features)


def by_patches(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c f"], stride: int
) -> Float[Array, "n _ _ f"]:
    """Returns the convolution with padding 1, as one product of all patches and the kernel.

    Where the kernel is larger than the image, XLA exchanges the two, and on CPUs such a convolution
    takes twenty times as long as this.
    """
    n, h, w, c = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [
        padded[:, i : i + h : stride, j : j + w : stride] for i in range(3) for j in range(3)
    ]
    patches = jnp.concatenate(shifted, axis=-1)
    y = product(patches.reshape(-1, 9 * c), kernel.reshape(9 * c, -1))
    return y.reshape(*patches.shape[:-1], -1)


FEWEST_UPSAMPLED = 8
"""Pixels along a side from which on CPUs `_by_parity` is faster: 1.5 to 2 times, forward
and backward; at 4 it is as fast."""


def _upsampled(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c f"]
) -> Float[Array, "n 2*h 2*w f"]:
    """Returns the convolution with padding 1 of the doubled images."""
    if min(x.shape[1:3]) < FEWEST_UPSAMPLED:
        return _of_doubled(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=_by_parity, default=_of_doubled)


def _of_doubled(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c f"]
) -> Float[Array, "n 2*h 2*w f"]:
    return _convolved(upsample2(x), kernel)


def _by_parity(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c f"]
) -> Float[Array, "n 2*h 2*w f"]:
    """Returns what `_of_doubled` does, from four convolutions of the small images.

    There is one for each place in a block of two by two. A window of 3x3 pixels around it covers
    only 2x2 of the small image: 16 products in place of 36.
    """
    # A window around the first of two pixels has one tap on the pixel before and two on its own;
    # around the second, two on its own and one on the next.
    covers = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], kernel.dtype)
    kernels = jnp.einsum("ars,bqt,stcf->abrqcf", covers, covers, kernel, precision="highest")

    def at(row: int, column: int) -> Float[Array, "n h w f"]:
        padding = ((1 - row, row), (1 - column, column))
        return _convolution(x, kernels[row, column], padding=padding)

    n, h, w, _ = x.shape
    rows = [jnp.stack([at(row, 0), at(row, 1)], axis=3) for row in range(2)]
    return jnp.stack(rows, axis=2).reshape(n, 2 * h, 2 * w, kernel.shape[-1])


def upsample2(x: Float[Array, "*b h w c"]) -> Float[Array, "*b 2*h 2*w c"]:
    """Returns each pixel four times, as a block of two by two, written as a broadcast."""
    *b, h, w, c = x.shape
    x = jnp.broadcast_to(x[..., :, None, :, None, :], (*b, h, 2, w, 2, c))
    return x.reshape(*b, 2 * h, 2 * w, c)


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
    if not _pays_in_pairs(x, kernel.shape[-1]):
        return _convolution_over_frames(x, kernel)
    return jax.lax.platform_dependent(
        x, kernel, cpu=_over_frames_in_pairs, default=_convolution_over_frames
    )


def _convolution_over_frames(
    x: Float[Array, "b v s c"], kernel: Float[Array, "3 c f"]
) -> Float[Array, "b v s f"]:
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, None],
        window_strides=(1, 1),
        padding=((1, 1), (0, 0)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _over_frames_in_pairs(
    x: Float[Array, "b v s c"], kernel: Float[Array, "3 c f"]
) -> Float[Array, "b v s f"]:
    b, v, s, c = x.shape
    same = np.eye(2, dtype=kernel.dtype)
    paired = jnp.einsum("qp,tcf->tqcpf", same, kernel, precision="highest")
    features = kernel.shape[-1]
    paired = paired.reshape(3, 2 * c, 2 * features)
    y = _convolution_over_frames(x.reshape(b, v, s // 2, 2 * c), paired)
    return y.reshape(b, v, s, features)


def _over_frames_forward(
    x: Float[Array, "b v s c"], kernel: Float[Array, "3 c f"]
) -> tuple[Float[Array, "b v s f"], Factors]:
    return over_frames(x, kernel), Factors(x, kernel)


def _over_frames_backward(kept: Factors, dy: Float[Array, "b v s f"]) -> Pair:
    x, kernel = kept
    dx = over_frames(dy, jnp.swapaxes(kernel[::-1], 1, 2))

    def gradient(x: Float[Array, "b v s c"], dy: Float[Array, "b v s f"]) -> Float[Array, "c f"]:
        return over_rows(x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1]))

    # Three products; as a convolution, whose window is the whole video, it takes three times that.
    before = gradient(x[:, :-1], dy[:, 1:])
    after = gradient(x[:, 1:], dy[:, :-1])
    return dx, jnp.stack([before, gradient(x, dy), after])


over_frames.defvjp(_over_frames_forward, _over_frames_backward)
