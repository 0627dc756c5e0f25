"""All networks of a model: their definitions, fresh parameters, and both bound together."""

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from o3d_jax.config import Config, ModelConfig
from o3d_jax.nn.clip import ClipVision
from o3d_jax.nn.lgm import Lgm
from o3d_jax.nn.lpips import Lpips
from o3d_jax.nn.unet import MultiViewUnet
from o3d_jax.nn.vae import Vae
from o3d_jax.splat import Backend
from o3d_jax.types import Cameras, Condition, Frozen, Maps, Params, pytree, static


@dataclass(frozen=True)
class Networks:
    """Definitions without parameters: hashable, a static argument of `jax.jit`.

    Each is applied to a tree of variables, `{"params": ...}`.
    """

    unet: MultiViewUnet
    lgm: Lgm
    clip: ClipVision
    vae: Vae
    lpips: Lpips | None
    vae_chunk: int = 0
    """As `ModelConfig.vae_chunk`."""
    splat_backend: Backend | None = None
    """Which rasterizer draws; None takes the one for the default device."""
    offload: bool = False
    """Whether the model's parameters lie in the host's memory, from where those of a network come
    to the device while it runs (`sampling/in_turn.py`)."""


@pytree
class Ouroboros:
    """A model that can be called: the networks, their parameters, and the configuration.

    It is a pytree whose arrays are the parameters, so that it passes through `jax.jit`,
    `jax.eval_shape` and `jax.shard_map` as one argument. To take a gradient, make one from the
    parameters inside of the function: `dataclasses.replace(model, params=params)`.
    """

    networks: Networks = static()
    config: Config = static()
    params: Params
    frozen: Frozen


def build_networks(model: ModelConfig, lpips: Literal["vgg", "alex"] | None = None) -> Networks:
    """Returns the networks of a configuration.

    `lpips` names the features that a perceptual loss or metric compares; None leaves it out.
    """
    dtype = jnp.dtype(model.dtype)
    remat = model.remat_keeps if model.remat else None
    return Networks(
        unet=MultiViewUnet(
            config=model.unet,
            latent_channels=model.vae.channels,
            cross_attention_dim=model.clip.projection_dim,
            dtype=dtype,
            remat=remat,
        ),
        lgm=Lgm(config=model.lgm, dtype=dtype, remat=remat),
        clip=ClipVision(config=model.clip, dtype=dtype),
        vae=Vae(config=model.vae, dtype=dtype),
        lpips=Lpips(network=lpips, dtype=jnp.float32) if lpips else None,
        vae_chunk=model.vae_chunk,
    )


def apply(
    network: nn.Module | None, variables: Any, *inputs: Any, method: str | None = None
) -> Any:
    """Returns the output of a network, which never changes its variables."""
    assert network is not None  # Of the optional ones, whoever asks for one has built it.
    return network.apply(variables, *inputs, method=method)


def init_networks(
    networks: Networks, model: ModelConfig, key: Key[Array, ""], train_image_encoder: bool
) -> tuple[Params, Frozen]:
    """Returns fresh parameters in float32: those that train, and those that stay.

    `train_image_encoder` says on which side the image tower is. Under `jax.eval_shape` the
    function returns their shapes and takes no memory.
    """
    # XLA compiles threefry for seconds per kernel shape on CPUs, the hardware's generator does not.
    key = jax.random.wrap_key_data(jax.random.bits(key, (4,), jnp.uint32), impl="rbg")
    unet_key, lgm_key, clip_key, vae_key, lpips_key = jax.random.split(key, 5)

    # One object, as every network takes it; only shapes matter.
    views, size = model.num_views, model.image_size
    images = jnp.zeros((1, views, size, size, 3))
    image = images[:, 0]
    cameras = Cameras(
        camera_to_world=jnp.zeros((1, views, 4, 4)), intrinsics=jnp.zeros((1, views, 3, 3))
    )
    latents = jnp.zeros((1, views, *(model.latent_size,) * 2, model.vae.channels))
    condition = Condition(
        clip=jnp.zeros((1, 1, model.clip.projection_dim)),
        latents=latents[:, 0],
        added_ids=jnp.zeros((1, 3)),
    )
    c_noise, maps = jnp.zeros((1,)), Maps.nothing(1, views, size, size)

    clip = _init(networks.clip, clip_key, image)
    params = Params(
        unet=_init(networks.unet, unet_key, latents, c_noise, condition, cameras, maps),
        lgm=_init(networks.lgm, lgm_key, images, cameras, c_noise),
        clip=clip if train_image_encoder else None,
    )
    frozen = Frozen(
        vae=_init(networks.vae, vae_key, images),
        clip=None if train_image_encoder else clip,
        lpips=None if networks.lpips is None else _init(networks.lpips, lpips_key, image, image),
    )
    return params, frozen


def _init(network: nn.Module, key: Key[Array, ""], *inputs: Any) -> Any:
    """Returns fresh variables of one network for inputs of these shapes; no output is computed."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
    return network.lazy_init(key, *shapes)
