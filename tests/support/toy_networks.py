"""Networks of a few layers that read all that the real ones read.

What `steps/` does with its networks can be seen with any networks; these compile in seconds.
Tests of the real ones are in `tests/nn`; `test_paper.py` puts both together.
"""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from o3d_jax.config import Config
from o3d_jax.geometry.orbits import orbit
from o3d_jax.nn.clip import ClipVision
from o3d_jax.nn.layers import PointwiseConv
from o3d_jax.nn.lgm import Lgm, activate
from o3d_jax.nn.lpips import Lpips
from o3d_jax.nn.networks import Networks, Ouroboros, build_networks, init_networks
from o3d_jax.nn.unet import MultiViewUnet
from o3d_jax.nn.vae import LatentMoments, Vae
from o3d_jax.types import Batch, Cameras, Condition, Gaussians, Maps


def shrink(images: Float[Array, "*b h w c"], factor: int) -> Float[Array, "*b h2 w2 c"]:
    """Mean over blocks of pixels."""
    *b, h, w, c = images.shape
    return images.reshape(*b, h // factor, factor, w // factor, factor, c).mean(axis=(-4, -2))


def pose_features(cameras: Cameras) -> Float[Array, "b v 1 1 24"]:
    """All numbers of a camera, of which two rows are constant."""
    flat = cameras.camera_to_world.reshape(*cameras.camera_to_world.shape[:2], -1)
    k = cameras.intrinsics.reshape(*flat.shape[:2], -1)[..., :8]
    return jnp.concatenate([flat, k], axis=-1)[:, :, None, None]


class ToyUnet(MultiViewUnet):
    """Two dense layers on everything F may look at, and a mean over views."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b v h w c"],
        c_noise: Float[Array, " b"],
        condition: Condition,
        cameras: Cameras,
        maps: Maps | None = None,
    ) -> Float[Array, "b v h w c"]:
        assert maps is not None
        factor = maps.rgb.shape[2] // x.shape[2]
        object_features = jnp.concatenate(
            [c_noise[:, None], condition.clip[:, 0], condition.added_ids / 100], axis=-1
        )[:, None, None, None]
        inputs = [
            x,
            condition.latents[:, None],
            shrink(maps.rgb, factor),
            shrink(maps.ccm, factor),
            pose_features(cameras),
            object_features,
        ]
        y = sum(nn.Dense(8, name=f"read_{i}")(a.astype(self.dtype)) for i, a in enumerate(inputs))
        y = nn.tanh(y)
        y = nn.tanh(nn.Dense(8, name="mix")(y + y.mean(axis=1, keepdims=True)))
        return nn.Dense(x.shape[-1], name="out")(y)


class ToyLgm(Lgm):
    """A grid of four by four Gaussians for each view it reads."""

    @nn.compact
    def __call__(
        self, images: Float[Array, "b v h w 3"], cameras: Cameras, c_noise: Float[Array, " b"]
    ) -> Gaussians:
        step = images.shape[1] // self.config.num_views
        x = shrink(images[:, ::step], images.shape[2] // 4)
        y = nn.Dense(12, name="read_images")(x)
        y = y + nn.Dense(12, name="read_cameras")(pose_features(cameras)[:, ::step])
        y = y + nn.Dense(12, name="read_time")(c_noise[:, None])[:, None, None, None]
        y = nn.Dense(14, name="out")(nn.tanh(y))
        return activate(y.reshape(images.shape[0], -1, 14))


class ToyClip(ClipVision):
    """One dense layer on four pixels."""

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b 1 d"]:
        x = shrink(images, images.shape[1] // 2).reshape(images.shape[0], 1, -1)
        return nn.tanh(nn.Dense(self.config.projection_dim, name="out")(x))


class ToyVae(Vae):
    """A dense layer on blocks of pixels, and one back; the blocks are those of the real one."""

    def setup(self):
        factor = self.config.downscale
        self.down = nn.Dense(2 * self.config.latent_channels)
        self.up = nn.Dense(3 * factor**2)

    def encode(self, images: Float[Array, "*n h w 3"]) -> LatentMoments:
        moments = nn.tanh(self.down(shrink(2 * images - 1, self.config.downscale)))
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return LatentMoments(mean=mean, logvar=logvar)

    def decode(self, latents: Float[Array, "b v h w c"]) -> Float[Array, "b v H W 3"]:
        b, v, h, w, _ = latents.shape
        factor = self.config.downscale
        x = nn.sigmoid(self.up(nn.tanh(latents)))
        x = x.reshape(b, v, h, w, factor, factor, 3)
        return jnp.moveaxis(x, 4, 3).reshape(b, v, h * factor, w * factor, 3)


class LayeredToyVae(Vae):
    """The same with the layers next to the latents that the real one has, which can be scaled."""

    def setup(self):
        self.encoder = nn.Dense(2 * self.config.latent_channels)
        self.quant_conv = PointwiseConv(2 * self.config.latent_channels)
        self.decoder = LayeredToyDecoder(self.config.downscale)

    def encode(self, images: Float[Array, "*n h w 3"]) -> LatentMoments:
        features = nn.tanh(self.encoder(shrink(2 * images - 1, self.config.downscale)))
        mean, logvar = jnp.split(self.quant_conv(features), 2, axis=-1)
        return LatentMoments(mean=mean, logvar=logvar)

    def decode(self, latents: Float[Array, "b v h w c"]) -> Float[Array, "b v H W 3"]:
        return self.decoder(latents)


class LayeredToyDecoder(nn.Module):
    """A convolution of single latents, and a block of pixels from each."""

    factor: int

    @nn.compact
    def __call__(self, latents: Float[Array, "b v h w c"]) -> Float[Array, "b v H W 3"]:
        b, v, h, w, _ = latents.shape
        x = nn.tanh(PointwiseConv(8, name="conv_in")(latents))
        x = nn.sigmoid(nn.Dense(3 * self.factor**2, name="up")(x))
        x = x.reshape(b, v, h, w, self.factor, self.factor, 3)
        return jnp.moveaxis(x, 4, 3).reshape(b, v, h * self.factor, w * self.factor, 3)


class ToyLpips(Lpips):
    """Mean distance of colors after a random mixing: no mean square error."""

    @nn.compact
    def __call__(
        self, a: Float[Array, "*b h w 3"], b: Float[Array, "*b h w 3"]
    ) -> Float[Array, "*b"]:
        mix = nn.Dense(5, use_bias=False, name="mix")
        return jnp.sqrt((mix(a) - mix(b)) ** 2 + 1e-4).mean(axis=(-3, -2, -1))


def toy_system(config: Config) -> Ouroboros:
    """Toys in place of the networks of a configuration, and every term of the loss in use."""
    optim = replace(config.optim, lpips_weight=0.7, clean_weight=0.6)
    real = build_networks(config.model)
    toys = Networks(
        unet=ToyUnet(
            config=config.model.unet,
            latent_channels=real.unet.latent_channels,
            cross_attention_dim=real.unet.cross_attention_dim,
        ),
        lgm=ToyLgm(config=config.model.lgm),
        clip=ToyClip(config=config.model.clip),
        vae=ToyVae(config=config.model.vae),
        lpips=ToyLpips(),
    )
    return filled_system(replace(config, optim=optim), toys)


def filled_system(config: Config, networks: Networks) -> Ouroboros:
    """The networks with parameters of which none is zero."""
    shapes = jax.eval_shape(
        lambda key: init_networks(networks, config.model, key, config.train.train_image_encoder),
        jax.random.key(0),
    )
    params, frozen = filled(shapes)
    return Ouroboros(config=config, networks=networks, params=params, frozen=frozen)


def filled(shapes):
    """Random arrays of these shapes: zero-initialized layers hide leaks."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 4
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(fan_in), leaf.dtype)

    return jax.tree.map(fill, shapes)


def random_batch(config: Config, objects: int) -> Batch:
    """Noise images, each object seen from an orbit of its own."""
    size, views = config.model.image_size, config.model.num_views
    azimuths = np.arange(views) * 360 / views
    orbits = [orbit(5.0 * i, azimuths + 7 * i, 1.5 + 0.1 * i, 45.0 + i) for i in range(objects)]
    images = np.random.default_rng(1).uniform(size=(objects, views, size, size, 3))
    return Batch(
        images=jnp.asarray(images, jnp.float32),
        cameras=jax.tree.map(lambda *leaves: jnp.stack(leaves), *orbits),
    )
