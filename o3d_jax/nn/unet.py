"""The denoiser F: SVD's U-Net, and around it the camera rays (Sec. 3.1) and feedback (Sec. 3.3)."""

import operator
from functools import reduce

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from o3d_jax.config import UnetConfig
from o3d_jax.geometry.rays import harmonic_embedding, pluecker_rays
from o3d_jax.geometry.released import released_rays
from o3d_jax.nn.feedback import FeedbackEncoder
from o3d_jax.nn.layers import Dense, TimestepMlp, sinusoid
from o3d_jax.nn.norms import GroupNorm
from o3d_jax.nn.unet_blocks import DownBlock, MidBlock, UpBlock
from o3d_jax.types import Cameras, Condition, Maps, pytree

RAYS = {"geometric": pluecker_rays, "released": released_rays}
"""The choices of `UnetConfig.ray_convention`."""


@pytree
class RayFeatures:
    """Embedded camera rays, shaped like the activations they are added to."""

    down: tuple[Float[Array, "b v _ _ _"], ...]
    """In front of each down block."""

    mid: Float[Array, "b v _ _ _"]
    """In front of the middle block."""

    up: tuple[Float[Array, "b v _ _ _"], ...]
    """In front of each up block."""


class SpatioTemporalUnet(nn.Module):
    """SVD's image-to-video U-Net (diffusers' UNetSpatioTemporalConditionModel).

    With `rays` and `feedback` it is the denoiser of Secs. 3.1 and 3.3; without, plain SVD.
    Height and width must be multiples of 2 ** (number of scales - 1).
    """

    config: UnetConfig
    out_channels: int = 4
    cross_attention_dim: int = 1024
    dtype: DTypeLike = jnp.float32
    remat: str | None = None

    @nn.nowrap
    def _embed(
        self, c_noise: Float[Array, " b"], added_ids: Float[Array, "b 3"]
    ) -> Float[Array, "b d"]:
        """Returns the embedding of the noise level and of SVD's three micro-conditioning ids."""
        width = self.config.block_out_channels[0]
        ids = sinusoid(added_ids, self.config.addition_time_embed_dim)
        time = TimestepMlp(4 * width, 4 * width, self.dtype, name="time_embedding")
        added = TimestepMlp(4 * width, 4 * width, self.dtype, name="add_embedding")
        return time(sinusoid(c_noise, width)) + added(ids.reshape(ids.shape[0], -1))

    @nn.nowrap
    def _encode(
        self,
        x: Float[Array, "b v h w c"],
        emb: Float[Array, "b d"],
        clip: Float[Array, "b 1 e"],
        rays: RayFeatures | None,
        feedback: tuple[Float[Array, "b v _ _ _"], ...] | None,
    ) -> tuple[Float[Array, "b v _ _ _"], list[Float[Array, "b v _ _ _"]]]:
        """Runs all down blocks; returns the middle block's input, and the skips in order."""
        scales = len(self.config.block_out_channels)
        in_encoder = scales if self.config.feedback_scale4 == "encoder" else scales - 1
        skips = []
        for i in range(scales):
            if rays is not None:
                x = x + rays.down[i].astype(x.dtype)
            skips.append(x)  # With the rays, which the release adds to the recorded tensor.
            block = DownBlock(self.config, i, self.dtype, self.remat, name=f"down_blocks_{i}")
            injected = feedback[i] if feedback is not None and i < in_encoder else None
            x, block_skips = block(x, emb, clip, injected)
            skips.extend(block_skips)

        if rays is not None:
            x = x + rays.mid.astype(x.dtype)
            # The release adds them to the tensor that is this skip, too.
            skips[-1] = skips[-1] + rays.mid.astype(x.dtype)
        return x, skips

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b v h w c"],
        c_noise: Float[Array, " b"],
        clip: Float[Array, "b 1 {self.cross_attention_dim}"],
        added_ids: Float[Array, "b 3"],
        rays: RayFeatures | None = None,
        feedback: tuple[Float[Array, "b v _ _ _"], ...] | None = None,
    ) -> Float[Array, "b v h w {self.out_channels}"]:
        """Returns what F predicts, float32; `x` is scaled noisy latents, then condition latents.

        `feedback` has one feature a scale. The last is added to the output of the middle block
        (`config.feedback_scale4`), the others in their down block.
        """
        config, last = self.config, len(self.config.block_out_channels) - 1
        emb = self._embed(c_noise, added_ids)
        features = config.block_out_channels[0]
        x = nn.Conv(features, (3, 3), padding=1, dtype=self.dtype, name="conv_in")(x)
        x, skips = self._encode(x, emb, clip, rays, feedback)

        x = MidBlock(config, last, self.dtype, self.remat, name="mid_block")(x, emb, clip)
        if feedback is not None and config.feedback_scale4 == "after_mid":
            x = x + feedback[last].astype(x.dtype)

        # Each up block reads a skip more than a down block has layers: what was halved is one, too.
        for i in range(last + 1):
            if rays is not None:
                x = x + rays.up[i].astype(x.dtype)
            block = UpBlock(config, last - i, self.dtype, self.remat, name=f"up_blocks_{i}")
            used = config.layers_per_block + 1
            x = block(x, emb, clip, skips[-used:])
            skips = skips[:-used]

        frames = x.reshape(-1, *x.shape[2:])
        norm = GroupNorm(config.norm_num_groups, 1e-5, self.dtype, name="conv_norm_out")
        x = nn.silu(norm(frames)).reshape(x.shape)
        # In float32: the estimate is a difference, and its error is what the next level sees.
        return nn.Conv(self.out_channels, (3, 3), padding=1, dtype=jnp.float32, name="conv_out")(x)


class RayEmbedding(nn.Module):
    """The "two-layered MLP" of Sec. 3.1: features to add to those of the U-Net, one a latent pixel.

    Reads harmonic Pluecker rays (`geometry/rays.py`). Not zero-initialized, as in the release.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, rays: Float[Array, "b v h w r"]) -> Float[Array, "b v h w {self.features}"]:
        x = Dense(self.features, dtype=self.dtype, name="embed_0")(rays)
        return Dense(self.features, dtype=self.dtype, name="embed_2")(nn.silu(x))


class MultiViewUnet(nn.Module):
    """The denoiser F of Eq. 1: the U-Net, given cameras by ray embeddings and 3D by feedback.

    `Maps.nothing` and None differ: the encoders have biases, so zero maps (the first pass of
    training and the first level of sampling) are features too, while None adds nothing. Parameters
    of the encoders are made from given maps only.
    """

    config: UnetConfig
    latent_channels: int = 4
    cross_attention_dim: int = 1024
    dtype: DTypeLike = jnp.float32
    remat: str | None = None

    @nn.nowrap
    def _embed_rays(self, cameras: Cameras, size: tuple[int, int]) -> RayFeatures:
        """Returns ray embeddings for every place of the U-Net, as wide as what they add to."""
        channels = self.config.block_out_channels
        last = len(channels) - 1
        rays = RAYS[self.config.ray_convention]

        # One ray a latent: at every scale those through the middles of its own pixels.
        grids = [
            harmonic_embedding(rays(cameras, (size[0] >> i, size[1] >> i)), self.config.ray_octaves)
            for i in range(last + 1)
        ]

        # Embeddings are added before a block changes the width, so they have that of the block
        # before.
        def embed(name: str, scale: int, features: int) -> Float[Array, "b v _ _ _"]:
            return RayEmbedding(features, dtype=self.dtype, name=name)(grids[scale])

        return RayFeatures(
            down=tuple(
                embed(f"down_plucker_{i}", i, channels[max(i - 1, 0)]) for i in range(last + 1)
            ),
            mid=embed("mid_plucker", last, channels[last]),
            up=tuple(
                embed(f"up_plucker_{i}", last - i, channels[min(last - i + 1, last)])
                for i in range(last + 1)
            ),
        )

    @nn.nowrap
    def _encode_maps(self, maps: Maps, downscale: int) -> tuple[Float[Array, "b v _ _ _"], ...]:
        """Returns Eqs. 12-14: the sum of the encoders' features, one a scale."""
        inputs = {"none": [], "ccm": [maps.ccm], "rgb+ccm": [maps.rgb, maps.ccm]}
        features = [
            FeedbackEncoder(
                self.config.block_out_channels,
                self.config.feedback_blocks,
                downscale,
                dtype=self.dtype,
                name=f"cond_encoder_{i}",
            )(image)
            for i, image in enumerate(inputs[self.config.feedback])
        ]
        return tuple(reduce(operator.add, scale) for scale in zip(*features, strict=True))

    def __call__(
        self,
        x: Float[Array, "b v h w c"],
        c_noise: Float[Array, " b"],
        condition: Condition,
        cameras: Cameras,
        maps: Maps | None = None,
    ) -> Float[Array, "b v h w c"]:
        """Returns the raw prediction, float32; `x` are noisy latents already scaled by c_in.

        Raises:
            ValueError: if the parameters of feedback encoders are to be made without maps.
        """
        given = jnp.broadcast_to(
            condition.latents[:, None], (*x.shape[:-1], condition.latents.shape[-1])
        )
        both = jnp.concatenate([x, given.astype(x.dtype)], axis=-1)
        return self.of_latents(both, c_noise, condition.clip, condition.added_ids, cameras, maps)

    @nn.compact
    def of_latents(
        self,
        x: Float[Array, "b v h w c2"],
        c_noise: Float[Array, " b"],
        clip: Float[Array, "b 1 {self.cross_attention_dim}"],
        added_ids: Float[Array, "b 3"],
        cameras: Cameras,
        maps: Maps | None,
    ) -> Float[Array, "b v h w {self.latent_channels}"]:
        """Returns the same for the latents that the U-Net reads: noisy ones, then those given."""
        feedback = None
        if maps is not None and self.config.feedback != "none":
            feedback = self._encode_maps(maps, maps.rgb.shape[-3] // x.shape[-3])
        elif self.is_initializing() and self.config.feedback != "none":
            raise ValueError(
                f"feedback {self.config.feedback!r} needs maps when parameters are made; "
                "give Maps.nothing(b, v, h, w)"
            )

        unet = SpatioTemporalUnet(
            self.config,
            self.latent_channels,
            self.cross_attention_dim,
            self.dtype,
            self.remat,
            name="unet",
        )
        rays = self._embed_rays(cameras, (x.shape[-3], x.shape[-2]))
        return unet(x, c_noise, clip, added_ids, rays, feedback)
