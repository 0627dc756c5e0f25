"""How alike two images are: PSNR, SSIM and LPIPS, as the literature reports them."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from o3d_jax.nn.lpips import Lpips
from o3d_jax.nn.networks import apply

WINDOW = 11
"""Pixels along a side of SSIM's window (Wang et al. 2004, Sec. III-B)."""

WINDOW_SIGMA = 1.5
"""Standard deviation of that window, pixels (same)."""

K1, K2 = 0.01, 0.03
"""Stabilizers of SSIM (same)."""


def psnr(a: Float[Array, "*b h w c"], b: Float[Array, "*b h w c"]) -> Float[Array, "*b"]:
    """Returns the peak signal-to-noise ratio of images in [0, 1], in dB; infinite if equal."""
    return -10 * jnp.log10(jnp.mean((a - b) ** 2, axis=(-3, -2, -1)))


def ssim(
    a: Float[Array, "*b h w c"],
    b: Float[Array, "*b h w c"],
    window: int = WINDOW,
    window_sigma: float = WINDOW_SIGMA,
    border: Literal["inside", "reflected"] = "inside",
) -> Float[Array, "*b"]:
    """Returns the structural similarity of images in [0, 1]; at most 1, which equal images reach.

    It is Eq. 13 of Wang et al. (2004) with the Gaussian window, averaged over channels and over the
    windows that lie inside the image. That is scikit-image's `structural_similarity` with
    gaussian_weights=True, use_sample_covariance=False, data_range=1. With the border "reflected",
    there is a window around each pixel, and the image goes on beyond its edges as in a mirror:
    torchmetrics' `structural_similarity_index_measure` with data_range=1. `window` is odd, in
    pixels, and `window_sigma` its standard deviation.

    Raises:
        ValueError: an image is smaller than the window.
    """
    if min(a.shape[-3:-1]) < window:
        raise ValueError(f"images of {a.shape[-3:-1]} pixels; SSIM needs {window} both ways")
    if border == "reflected":
        sides = [(0, 0)] * (a.ndim - 3) + [(window // 2, window // 2)] * 2 + [(0, 0)]
        a, b = (jnp.pad(x, sides, "reflect") for x in (a, b))

    # Both variances are needed as a sum only.
    blur = functools.partial(_blur, window=window, sigma=window_sigma)
    mean_a, mean_b = blur(a), blur(b)
    variances = blur(a**2) - mean_a**2 + blur(b**2) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = K1**2, K2**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return jnp.mean(luminance * structure, axis=(-3, -2, -1))


def lpips(
    params: Any,
    a: Float[Array, "*b h w 3"],
    b: Float[Array, "*b h w 3"],
    network: Literal["vgg", "alex"] = "vgg",
    size: int | None = None,
) -> Float[Array, "*b"]:
    """Returns LPIPS of images in [0, 1]: 0 for equal ones, and larger the less alike they look.

    `params` are as `weights/pytorch/lpips.py` reads them. With a `size`, images are first resized
    to as many pixels both ways (linear, antialiased where they shrink), since the distance depends
    on it.

    Raises:
        ValueError: the images are too small for the network.
    """
    if size is not None:
        shape = (*a.shape[:-3], size, size, 3)
        a, b = (jax.image.resize(x, shape, "linear") for x in (a, b))
    return apply(Lpips(network), {"params": params}, a, b)


def _blur(
    image: Float[Array, "*b h w c"], window: int, sigma: float
) -> Float[Array, "*b h-{window}+1 w-{window}+1 c"]:
    """Returns the mean over a Gaussian window, as two banded matrices: fast on every backend."""
    rows, columns = (_band(image.shape[axis], window, sigma) for axis in (-3, -2))
    # Float32 throughout: variances are small differences of these.
    blur = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return blur("Hh,...hwc,Ww->...HWc", rows, image, columns)


def _band(size: int, window: int, sigma: float) -> Float[np.ndarray, "{size}-{window}+1 {size}"]:
    """Returns a matrix whose row i holds the window that starts at pixel i."""
    offset = np.arange(size)[None] - np.arange(size - window + 1)[:, None]
    distance = offset - window // 2
    weights = np.where(abs(distance) <= window // 2, np.exp(-0.5 * (distance / sigma) ** 2), 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
