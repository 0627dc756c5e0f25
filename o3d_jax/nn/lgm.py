"""LGM with a time embedding: views -> 3D Gaussians (Sec. 3.2).

An asymmetric U-Net over the views of an object, whose attention joins all of them. Its last
feature map is a grid of Gaussians per view. Parameter names are those of the original LGM.
"""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from o3d_jax.config import LgmConfig
from o3d_jax.geometry.rays import nearest_to_origin, pluecker_rays
from o3d_jax.nn.attention import attend
from o3d_jax.nn.convolutions import UpsampledConv3x3
from o3d_jax.nn.layers import Dense, PointwiseConv, pool2, sinusoid
from o3d_jax.nn.norms import GroupNorm
from o3d_jax.nn.remat import recomputed
from o3d_jax.types import Cameras, Gaussians

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SKIP_SCALE = math.sqrt(0.5)  # Keeps the variance of a sum of two branches (LGM).
GAUSSIAN_CHANNELS = (3, 1, 3, 4, 3)  # mean, opacity, scale, quaternion, color

SCALE_UNIT = 0.1
"""What LGM multiplies the softplus of a raw scale by, scene units."""

# torch's default, U(-1, 1) / sqrt(fan_in), with which LGM was trained; a third of the variance of
# Linen's. The biases start at zero.
torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
Conv3 = partial(nn.Conv, kernel_size=(3, 3), padding=1, kernel_init=torch_init)
Conv1 = partial(PointwiseConv, kernel_init=torch_init)


VIEW_WIDTH = 1.37
"""Width of the orbit's view at the origin, scene units: 2 * 1.5 * tan(49.1 degrees / 2)."""


def faint_and_small(
    key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32, *, grid: int
) -> Float[Array, "14"]:
    """Returns the initial bias of the last layer: opacities of 0.1, scales of half a grid cell.

    With a bias of zero they would be 0.5 and 0.07 scene units: hundreds of Gaussians would overlap
    in each pixel, and those in front would keep the gradient from those behind.
    """
    raw_scale = math.log(math.expm1(0.5 * VIEW_WIDTH / grid / SCALE_UNIT))  # `activate` undone.
    mean, opacity, scale, rest = jnp.split(jnp.zeros(shape, dtype), (3, 4, 7))
    return jnp.concatenate([mean, opacity - 2, scale + raw_scale, rest])


class LgmResnet(nn.Module):
    """Residual block with the time embedding added between its convolutions.

    The projection of the embedding starts at zero: a loaded LGM starts as it was.
    """

    features: int
    num_groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], time: Float[Array, "b d"]
    ) -> Float[Array, "b h w {self.features}"]:
        norm = partial(GroupNorm, self.num_groups, dtype=self.dtype)
        y = Conv3(self.features, dtype=self.dtype, name="conv1")(nn.silu(norm(name="norm1")(x)))
        project = Dense(
            self.features,
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            name="emb_layers_1",
        )
        y = y + project(nn.silu(time))[:, None, None]
        y = Conv3(self.features, dtype=self.dtype, name="conv2")(nn.silu(norm(name="norm2")(y)))
        if x.shape[-1] != self.features:
            x = Conv1(self.features, dtype=self.dtype, name="shortcut")(x)
        return (x + y) * SKIP_SCALE


class SelfAttention(nn.Module):
    """Multi-head self-attention with one joint projection to q, k, v."""

    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        dense = partial(Dense, dtype=self.dtype, kernel_init=torch_init)
        q, k, v = jnp.split(dense(3 * x.shape[-1], use_bias=False, name="qkv")(x), 3, axis=-1)
        return dense(x.shape[-1], name="proj")(attend(q, k, v, self.heads))


class ViewAttention(nn.Module):
    """Residual attention over all pixels of all views of an object, tokens in order (v, h, w)."""

    views: int
    heads: int
    num_groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "bv h w c"]) -> Float[Array, "bv h w c"]:
        y = GroupNorm(self.num_groups, dtype=self.dtype, name="norm")(x)
        y = y.reshape(x.shape[0] // self.views, -1, x.shape[-1])
        y = SelfAttention(self.heads, self.dtype, name="attn")(y)
        return (x + y.reshape(x.shape)) * SKIP_SCALE


class LgmBlock(nn.Module):
    """What the blocks of one resolution share: their configuration and how layers are made."""

    features: int
    attention: bool
    config: LgmConfig
    dtype: DTypeLike
    remat: str | None

    @nn.nowrap
    def resnet(self, i: int) -> nn.Module:
        """Returns the layer that torch calls `nets.i`."""
        cls = recomputed(LgmResnet, self.remat)
        return cls(self.features, self.config.norm_num_groups, self.dtype, name=f"nets_{i}")

    @nn.nowrap
    def mix_views(self, i: int) -> nn.Module:
        """Returns the layer that torch calls `attns.i`."""
        cls = recomputed(ViewAttention, self.remat)
        c = self.config
        return cls(c.num_views, c.num_heads, c.norm_num_groups, self.dtype, name=f"attns_{i}")


class DownBlock(LgmBlock):
    """Layers at one resolution, then a halving; returns its output and what it skips ahead."""

    downsample: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "bv h w c"], time: Float[Array, "bv d"]
    ) -> tuple[Float[Array, "bv h2 w2 c2"], list[Float[Array, "bv _ _ c2"]]]:
        skips = []
        for i in range(self.config.layers_per_block):
            x = self.resnet(i)(x, time)
            x = self.mix_views(i)(x) if self.attention else x
            skips.append(x)
        if self.downsample:
            x = Conv3(self.features, strides=(2, 2), dtype=self.dtype, name="downsample")(x)
            skips.append(x)
        return x, skips


class MidBlock(LgmBlock):
    """Layers at the lowest resolution."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "bv h w c"], time: Float[Array, "bv d"]
    ) -> Float[Array, "bv h w c"]:
        x = self.resnet(0)(x, time)
        x = self.mix_views(0)(x) if self.attention else x
        return self.resnet(1)(x, time)


class UpBlock(LgmBlock):
    """Layers at one resolution, each reading one more skip, last first; then a doubling."""

    upsample: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "bv h w c"],
        skips: list[Float[Array, "bv h w _"]],
        time: Float[Array, "bv d"],
    ) -> Float[Array, "bv h2 w2 c2"]:
        for i, skip in enumerate(reversed(skips)):
            x = self.resnet(i)(jnp.concatenate([x, skip], axis=-1), time)
            x = self.mix_views(i)(x) if self.attention else x
        if self.upsample:
            x = UpsampledConv3x3(self.features, self.dtype, torch_init, name="upsample")(x)
        return x


class LgmUnet(nn.Module):
    """LGM's U-Net: features per pixel of the output grid, float32.

    Views of an object are consecutive along the first axis. `c_noise` is one value per object.
    """

    config: LgmConfig
    dtype: DTypeLike = jnp.float32
    remat: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "bv h w 9"], c_noise: Float[Array, " b"]
    ) -> Float[Array, "bv h2 w2 14"]:
        c = self.config

        # One embedding an object, for each of its views.
        dense = partial(Dense, 4 * c.time_features, dtype=self.dtype)
        time = dense(name="time_embed_0")(sinusoid(c_noise, c.time_features))
        time = dense(name="time_embed_2")(nn.silu(time))
        time = jnp.repeat(time, c.num_views, axis=0)

        rest = (c, self.dtype, self.remat)
        x = Conv3(c.down_channels[0], dtype=self.dtype, name="conv_in")(x)
        skips = [x]
        for i, (features, attention) in enumerate(
            zip(c.down_channels, c.down_attention, strict=True)
        ):
            last = i == len(c.down_channels) - 1
            block = DownBlock(features, attention, *rest, not last, name=f"down_blocks_{i}")
            x, more = block(x, time)
            skips += more

        # There may be fewer up than down blocks: the grid is then coarser than the images.
        x = MidBlock(c.down_channels[-1], c.mid_attention, *rest, name="mid_block")(x, time)
        used = c.layers_per_block + 1
        for i, (features, attention) in enumerate(zip(c.up_channels, c.up_attention, strict=True)):
            last = i == len(c.up_channels) - 1
            block = UpBlock(features, attention, *rest, not last, name=f"up_blocks_{i}")
            x = block(x, skips[-used:], time)
            skips = skips[:-used]

        # In float32: bfloat16 would round positions to 1/256 of a scene unit.
        x = GroupNorm(c.norm_num_groups, name="norm_out")(x)
        return Conv3(sum(GAUSSIAN_CHANNELS), name="conv_out")(nn.silu(x))


class Lgm(nn.Module):
    """The reconstruction module: posed views -> Gaussians in world coordinates.

    Positions are clamped to the cube [-1, 1]^3 and not bound to rays, though `config.positions`
    can make rays their starting points. Differs from the release in that the time embedding is
    per object, so any batch works.
    """

    config: LgmConfig
    dtype: DTypeLike = jnp.float32
    remat: str | None = None

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b v h w 3"],
        cameras: Cameras,
        c_noise: Float[Array, " b"],
    ) -> Gaussians:
        """Reads every (v / num_views)-th view; `c_noise` is 0 for clean views (Sec. 3.2)."""
        step = images.shape[1] // self.config.num_views
        cameras = Cameras(
            camera_to_world=cameras.camera_to_world[:, ::step],
            intrinsics=cameras.intrinsics[:, ::step],
        )

        # Views become rows of one batch; attention inside of the U-Net joins them again.
        x = view_features(images[:, ::step], cameras, self.config.input_size)
        x = x.reshape(-1, *x.shape[2:])
        x = LgmUnet(self.config, self.dtype, self.remat, name="unet")(x, c_noise)
        bias = partial(faint_and_small, grid=x.shape[1])
        x = Conv1(sum(GAUSSIAN_CHANNELS), bias_init=bias, name="conv")(x)

        # Where raw values start from what is known, a fresh network learns only the rest.
        if self.config.positions == "ray":
            nearest = nearest_to_origin(pluecker_rays(cameras, (x.shape[1], x.shape[2])))
            x = x.at[..., :3].add(nearest.reshape(*x.shape[:3], 3))
        if self.config.colors == "pixel":
            seen = raw_colors(images[:, ::step], x.shape[1])
            x = x.at[..., -3:].add(seen.reshape(*x.shape[:3], 3))

        rotations = ROTATIONS[self.config.rotation_norm]
        return activate(x.reshape(images.shape[0], -1, x.shape[-1]), rotations)


def raw_colors(images: Float[Array, "b v h w 3"], grid: int) -> Float[Array, "b v {grid} {grid} 3"]:
    """Returns what `activate` turns into the mean color of each cell of a grid over the images.

    It is the inverse of 0.5 tanh(x) + 0.5; colors are kept an 8-bit step away from 0 and 1, where
    it would be infinite.
    """
    b, v, h, w, _ = images.shape
    if h % grid == 0 and w % grid == 0:
        cells = images.reshape(b, v, grid, h // grid, grid, w // grid, 3).mean(axis=(3, 5))
    else:
        cells = jax.image.resize(images, (b, v, grid, grid, 3), "linear")
    return jnp.arctanh(2 * jnp.clip(cells, 1 / 255, 1 - 1 / 255) - 1)


def view_features(
    images: Float[Array, "b v h w 3"], cameras: Cameras, size: int
) -> Float[Array, "b v {size} {size} 9"]:
    """Returns what LGM's U-Net reads: colors by ImageNet's mean and deviation, then Pluecker rays.

    Images are resized as LGM was trained: bilinearly, without antialiasing.
    """
    x = (images - jnp.broadcast_to(jnp.asarray(IMAGENET_MEAN), images.shape)) / jnp.broadcast_to(
        jnp.asarray(IMAGENET_STD), images.shape
    )
    b, v, h, w, _ = images.shape
    if (h, w) == (2 * size, 2 * size):
        x = pool2(x)  # The same at this factor, and faster.
    elif (h, w) != (size, size):
        x = jax.image.resize(x, (b, v, size, size, 3), "bilinear", antialias=False)
    return jnp.concatenate([x, pluecker_rays(cameras, (size, size))], axis=-1)


def per_gaussian(quats: Float[Array, "b n 4"]) -> Float[Array, "b n 4"]:
    """Returns each quaternion at length 1 (LGM since its "fixrot" weights)."""
    return quats / jnp.sqrt(jnp.sum(quats**2, axis=-1, keepdims=True) + 1e-12)


def over_gaussians(quats: Float[Array, "b n 4"]) -> Float[Array, "b n 4"]:
    """Returns quaternions of which each component has length 1 over an object's Gaussians.

    So it was in LGM's first weights, and is in the release. They are of length sqrt(4 / n) and
    drawn as they are, hence nearly unrotated.
    """
    return quats / jnp.sqrt(jnp.sum(quats**2, axis=-2, keepdims=True) + 1e-12)


ROTATIONS = {"per_gaussian": per_gaussian, "over_gaussians": over_gaussians}
"""The choices of `LgmConfig.rotation_norm`."""


def activate(
    features: Float[Array, "b n 14"],
    rotations: Callable[[Float[Array, "b n 4"]], Float[Array, "b n 4"]] = per_gaussian,
) -> Gaussians:
    """Returns the Gaussians that LGM's raw features stand for; quaternions are (w, x, y, z)."""
    ends = [sum(GAUSSIAN_CHANNELS[: i + 1]) for i in range(len(GAUSSIAN_CHANNELS) - 1)]
    means, opacity, scales, quats, colors = jnp.split(features, ends, axis=-1)
    return Gaussians(
        means=jnp.clip(means, -1.0, 1.0),
        opacities=jax.nn.sigmoid(opacity[..., 0]),
        scales=SCALE_UNIT * jax.nn.softplus(scales),
        quats=rotations(quats),
        colors=0.5 * jnp.tanh(colors) + 0.5,
    )
