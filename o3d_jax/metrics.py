"""How alike two images are: PSNR and SSIM, as the literature reports them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

WINDOW = 11
"""Pixels along a side of SSIM's window (Wang et al. 2004, Sec. III-B)."""

WINDOW_SIGMA = 1.5
"""Standard deviation of that window, pixels (same)."""

K1, K2 = 0.01, 0.03
"""Stabilizers of SSIM (same)."""


def psnr(a: Float[Array, "*b h w c"], b: Float[Array, "*b h w c"]) -> Float[Array, "*b"]:
    """Peak signal-to-noise ratio of images in [0, 1], in dB; infinite for equal images."""
    return -10 * jnp.log10(jnp.mean((a - b) ** 2, axis=(-3, -2, -1)))


def ssim(a: Float[Array, "*b h w c"], b: Float[Array, "*b h w c"]) -> Float[Array, "*b"]:
    """Structural similarity of images in [0, 1]; at most 1, which equal images reach.

    Wang et al. (2004), Eq. 13 with the Gaussian window, averaged over channels and over those
    windows that lie inside the image. That is scikit-image's `structural_similarity` with
    gaussian_weights=True, use_sample_covariance=False, data_range=1.

    Raises:
        ValueError: an image is smaller than the window.
    """
    if min(a.shape[-3:-1]) < WINDOW:
        raise ValueError(f"images of {a.shape[-3:-1]} pixels; SSIM needs {WINDOW} both ways")
    mean_a, mean_b = _blur(a), _blur(b)
    variances = _blur(a**2) - mean_a**2 + _blur(b**2) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = K1**2, K2**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return jnp.mean(luminance * structure, axis=(-3, -2, -1))


def _blur(image: Float[Array, "*b h w c"]) -> Float[Array, "*b h-10 w-10 c"]:
    """Gaussian window over rows, then columns, as two banded matrices: fast on every backend."""
    rows, columns = _band(image.shape[-3]), _band(image.shape[-2])
    # Float32 throughout: variances are small differences of these.
    blur = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return blur("Hh,...hwc,Ww->...HWc", rows, image, columns)


def _band(size: int) -> Float[np.ndarray, "{size}-10 {size}"]:
    """Row i holds the window that starts at pixel i."""
    offset = np.arange(size)[None] - np.arange(size - WINDOW + 1)[:, None]
    distance = offset - WINDOW // 2
    weights = np.where(
        abs(distance) <= WINDOW // 2, np.exp(-0.5 * (distance / WINDOW_SIGMA) ** 2), 0
    )
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
