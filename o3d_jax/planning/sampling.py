"""What `o3d sample` runs on one device: its programs, with parameters as sampling keeps them."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from o3d_jax.config import Config
from o3d_jax.nn.networks import Networks, Ouroboros, init_networks
from o3d_jax.sampling.in_turn import (
    begin_program,
    decode_program,
    denoise_program,
    embed_program,
    object_program,
    with_network,
)
from o3d_jax.steps.sample import sample_prepare, sample_step
from o3d_jax.types import Cameras, Frozen, Params
from o3d_jax.weights.checkpoint import Weights, named_parts
from o3d_jax.weights.storage import kept_dtype


class Program(NamedTuple):
    """A program of a sampling run."""

    name: str
    model: Ouroboros
    """What of the model is on the device while it runs, as shapes."""
    inputs: tuple[Any, ...]
    """What else it reads, as shapes."""
    levels: bool
    """Whether it runs at noise levels, or once before them."""
    rebuilds: bool
    """Whether it runs at those levels only that make an object."""
    trace: Callable[[], jax.stages.Traced]


def sample_programs(config: Config, networks: Networks, device: Any) -> Iterator[Program]:
    """Yields the programs that make an object, for the device: whole ones, or with
    `networks.offload` the networks in turn."""
    model = sampler_shapes(config, networks)
    views, size = config.model.num_views, config.model.image_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    cameras = jax.eval_shape(
        lambda: Cameras(
            camera_to_world=jnp.zeros((1, views, 4, 4)), intrinsics=jnp.zeros((1, views, 3, 3))
        )
    )
    key, sigma = jax.eval_shape(lambda: (jax.random.key(0), jnp.zeros(())))
    condition, state = jax.eval_shape(sample_prepare, model, image, key)
    level = (condition, cameras, state, sigma, sigma)
    latents = state.x
    videos = state.maps.rgb

    def program(name: str, function: Any, network: Any, *inputs: Any, levels=True, rebuilds=False):
        alone = model if network is None else with_network(model, network)
        at = jax.sharding.SingleDeviceSharding(device)
        shapes = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=at), (alone, inputs)
        )
        placed, given = shapes
        return Program(
            name, placed, given, levels, rebuilds, lambda: function.trace(placed, *given)
        )

    if not networks.offload:
        yield program("prepare", sample_prepare, None, image, key, levels=False)
        yield program("level", sample_step, None, *level, rebuilds=True)
        return
    yield program("embed", embed_program, "clip", image, levels=False)
    yield program("begin", begin_program, "vae", condition.clip, image, key, levels=False)
    yield program("denoise", denoise_program, "unet", *level)
    yield program("decode", decode_program, "vae", latents, rebuilds=True)
    yield program("object", object_program, "lgm", videos, cameras, sigma, rebuilds=True)


def sampler_shapes(config: Config, networks: Networks) -> Ouroboros:
    """Returns the model as sampling keeps it in memory, as shapes."""
    trained = config.train.train_image_encoder
    params, frozen = jax.eval_shape(
        lambda key: init_networks(networks, config.model, key, trained), jax.random.key(0)
    )
    params = Params(unet=params.unet, lgm=params.lgm, clip=params.clip)
    weights = Weights(params=params, frozen=Frozen(vae=frozen.vae, clip=frozen.clip))

    def kept(keys: Any, array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        place = tuple(key.key for key in keys)
        dtype = kept_dtype(place, array.shape, array.dtype, config.model.dtype)
        return jax.ShapeDtypeStruct(array.shape, dtype)

    parts = jax.tree_util.tree_map_with_path(kept, named_parts(weights))
    return Ouroboros(
        networks=networks,
        config=config,
        params=Params(unet=parts["unet"], lgm=parts["lgm"], clip=parts.get("clip")),
        frozen=Frozen(vae=parts["frozen_vae"], clip=parts.get("frozen_clip")),
    )
