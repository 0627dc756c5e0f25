"""CLIP's image tower, with SVD's preprocessing: an image -> the embedding that conditions F.

Parameter names are those of transformers' CLIPVisionModelWithProjection.
"""

import functools
import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from o3d_jax.config import ClipConfig
from o3d_jax.nn.attention import attend
from o3d_jax.nn.layers import Dense, gelu, parameter
from o3d_jax.nn.norms import LayerNorm

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC_A = -0.75  # Free constant of the cubic convolution kernel (Keys 1981); torch's choice.


class ClipAttention(nn.Module):
    """Multi-head self-attention."""

    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        dense = partial(Dense, x.shape[-1], dtype=self.dtype)
        q, k, v = dense(name="q_proj")(x), dense(name="k_proj")(x), dense(name="v_proj")(x)
        return dense(name="out_proj")(attend(q, k, v, self.heads))


class ClipMlp(nn.Module):
    """Two layers with an exact GELU between them."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        y = gelu(Dense(self.features, dtype=self.dtype, name="fc1")(x))
        return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(y)


class ClipLayer(nn.Module):
    """One pre-norm transformer layer."""

    config: ClipConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        c = self.config
        y = LayerNorm(dtype=self.dtype, name="layer_norm1")(x)
        x = x + ClipAttention(c.num_attention_heads, self.dtype, name="self_attn")(y)
        y = LayerNorm(dtype=self.dtype, name="layer_norm2")(x)
        return x + ClipMlp(c.intermediate_size, self.dtype, name="mlp")(y)


class ClipEncoder(nn.Module):
    """The stack of transformer layers."""

    config: ClipConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        for i in range(self.config.num_hidden_layers):
            x = ClipLayer(self.config, self.dtype, name=f"layers_{i}")(x)
        return x


class ClipEmbeddings(nn.Module):
    """Patches as tokens, behind a learned class token, plus learned positions."""

    config: ClipConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        size, patch = self.config.hidden_size, (self.config.patch_size,) * 2
        init = nn.initializers.normal(0.02)
        conv = nn.Conv(
            size, patch, patch, "VALID", use_bias=False, dtype=self.dtype, name="patch_embedding"
        )
        x = conv(images)
        x = x.reshape(x.shape[0], -1, size)

        token = parameter(self, "class_embedding", init, (size,)).astype(self.dtype)
        token = jnp.broadcast_to(token, (x.shape[0], 1, size))
        x = jnp.concatenate([token, x], axis=1)

        embed = nn.Embed(
            x.shape[1], size, dtype=self.dtype, embedding_init=init, name="position_embedding"
        )
        return x + embed(jnp.arange(x.shape[1]))[None]


class ClipTransformer(nn.Module):
    """Embeddings, layers, and the class token's final state, normalized."""

    config: ClipConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        x = ClipEmbeddings(self.config, self.dtype, name="embeddings")(images)
        # Spelled as in the checkpoints.
        x = LayerNorm(dtype=self.dtype, name="pre_layrnorm")(x)
        x = ClipEncoder(self.config, self.dtype, name="encoder")(x)
        return LayerNorm(dtype=self.dtype, name="post_layernorm")(x[:, 0])


class ClipVision(nn.Module):
    """From an image in [0, 1] to its embedding, one token to attend to; float32, not normalized."""

    config: ClipConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"]
    ) -> Float[Array, "b 1 {self.config.projection_dim}"]:
        x = normalize(resize_antialiased(images, self.config.image_size))
        x = ClipTransformer(self.config, self.dtype, name="vision_model")(x)
        project = Dense(
            self.config.projection_dim, use_bias=False, dtype=self.dtype, name="visual_projection"
        )
        return project(x)[:, None].astype(jnp.float32)


def normalize(images: Float[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """Returns images in [0, 1] shifted and scaled by CLIP's mean and deviation."""
    mean = jnp.broadcast_to(jnp.asarray(CLIP_MEAN, images.dtype), images.shape)
    std = jnp.broadcast_to(jnp.asarray(CLIP_STD, images.dtype), images.shape)
    return (images - mean) / std


def resize_antialiased(
    images: Float[Array, "*b h w c"], size: int
) -> Float[Array, "*b {size} {size} c"]:
    """Returns images resized as in SVD: Gaussian blur, then bicubic with corners aligned.

    They may leave [0, 1] a little. The operation is linear and separable, hence one small matrix
    per axis. Images of the right size stay as they are.
    """
    *_, h, w, _ = images.shape
    if (h, w) == (size, size):
        return images
    rows = jnp.asarray(resize_matrix(h, size), images.dtype)
    columns = jnp.asarray(resize_matrix(w, size), images.dtype)
    exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)  # As images are.
    return exact("jw,...iwc->...ijc", columns, exact("ih,...hwc->...iwc", rows, images))


def resize_matrix(size_in: int, size_out: int) -> Float[np.ndarray, "{size_out} {size_in}"]:
    """Returns SVD's antialiased resize of one axis (diffusers, `_resize_with_antialiasing`)."""
    return bicubic_matrix(size_in, size_out) @ blur_matrix(size_in, size_in / size_out)


def blur_matrix(size: int, factor: float) -> Float[np.ndarray, "{size} {size}"]:
    """Returns the Gaussian blur before shrinking by `factor`, as a matrix.

    Beyond the border, pixels are those reflected at it, the outermost one not repeated.
    """
    sigma = max((factor - 1) / 2, 0.001)
    width = int(max(4 * sigma, 3)) // 2 * 2 + 1
    offsets = np.arange(width) - width // 2
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    reflected = np.pad(np.arange(size), width // 2, mode="reflect")
    matrix = np.zeros((size, size))
    for i in range(width):
        np.add.at(matrix, (np.arange(size), reflected[i : i + size]), kernel[i])
    return matrix


def bicubic_matrix(size_in: int, size_out: int) -> Float[np.ndarray, "{size_out} {size_in}"]:
    """Returns cubic convolution as a matrix: `size_out` points from first to last pixel center."""
    positions = np.arange(size_out) * ((size_in - 1) / max(size_out - 1, 1))
    matrix = np.zeros((size_out, size_in))
    for tap in range(-1, 3):
        pixels = np.floor(positions).astype(int) + tap
        weights = np.vectorize(cubic_weight)(positions - pixels)
        np.add.at(matrix, (np.arange(size_out), np.clip(pixels, 0, size_in - 1)), weights)
    return matrix


def cubic_weight(distance: float) -> float:
    """Returns the weight of a pixel at this distance in cubic convolution (Keys 1981)."""
    x, a = math.fabs(distance), BICUBIC_A
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    if x < 2:
        return a * (x**3 - 5 * x**2 + 8 * x - 4)
    return 0.0
