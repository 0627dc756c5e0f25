"""Our networks, given the inputs of a torch dump: which one, and its inputs in our layout."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from o3d_jax.config import ModelConfig
from o3d_jax.errors import InputError
from o3d_jax.nn.clip import CLIP_MEAN, CLIP_STD
from o3d_jax.nn.networks import Networks, build_networks
from o3d_jax.nn.observe import Observer, apply_observed
from o3d_jax.nn.unet import SpatioTemporalUnet
from o3d_jax.types import Cameras, Condition, Maps
from o3d_jax.weights.checkpoint import Model
from o3d_jax.weights.pytorch.dump import Dump


@dataclasses.dataclass(frozen=True)
class Replay:
    """A network of ours, ready to run on a dump's inputs."""

    module: Any
    variables: Any
    inputs: tuple[Any, ...]
    videos: int
    frames: int
    """Frames of each video; torch folds them into one axis, or moves them behind the pixels."""
    method: str | None = None
    temporal_context: str = "per_video"
    """The U-Net's, which also says in what order torch has the contexts."""

    def run(self, observe: Observer) -> None:
        """Runs it op by op; `observe` is given every module's output."""
        apply_observed(self.module, self.variables, self.inputs, observe, self.method)


def replay(model: Model, dump: Dump) -> Replay:
    """Returns the dump's network with our weights, in float32, and the dump's inputs.

    Raises:
        InputError: an unknown network, one that the checkpoint lacks, or inputs that don't fit.
    """
    if dump.network not in REPLAYS:
        raise InputError(f"network {dump.network!r} in {dump.folder} is none of {list(REPLAYS)}")
    prepare, part = REPLAYS[dump.network]
    params, frozen = model.weights.params, model.weights.frozen
    held = {
        "unet": params.unet,
        "lgm": params.lgm,
        "vae": frozen.vae,
        "clip": frozen.clip if params.clip is None else params.clip,
    }
    if held[part] is None:
        raise InputError(f"the checkpoint has no {part}, which the network {dump.network} needs")
    config = dataclasses.replace(model.config.model, dtype="float32", remat=False)
    return prepare(build_networks(config), config, held[part], dump)


def _channels_last(x: Float[np.ndarray, "*n c h w"]) -> Float[Array, "*n h w c"]:
    return jnp.asarray(np.moveaxis(x, -3, -1))


def _per_video(dump: Dump, name: str) -> Float[Array, " b"]:
    """Returns one number for each video; torch may have been given one for all."""
    videos = dump.sizes["b"]
    scalar = dump.rank(name) == 0
    value = dump.input(name, "" if scalar else "b")
    return jnp.asarray(np.broadcast_to(value, (videos,)))


def _cameras(dump: Dump, camera_to_world: str) -> Cameras:
    return Cameras(
        camera_to_world=jnp.asarray(dump.input(camera_to_world, "b f 4 4")),
        intrinsics=jnp.asarray(dump.input("intrinsics", "b f 3 3")),
    )


def _sample(config: ModelConfig, dump: Dump) -> Float[np.ndarray, "b f c h w"]:
    sample = dump.input("sample", f"b f {2 * config.vae.latent_channels} h w")
    multiple = 2 ** (len(config.unet.block_out_channels) - 1)
    if sample.shape[-2] % multiple or sample.shape[-1] % multiple:
        raise InputError(
            f"input 'sample' has {sample.shape[-2]} x {sample.shape[-1]} latents; our U-Net needs "
            f"multiples of {multiple}"
        )
    return sample


def _svd_unet(networks: Networks, config: ModelConfig, variables: Any, dump: Dump) -> Replay:
    sample = _sample(config, dump)
    network = networks.unet
    plain = SpatioTemporalUnet(
        network.config, network.latent_channels, network.cross_attention_dim, network.dtype
    )
    clip = dump.input("encoder_hidden_states", f"b 1 {config.clip.projection_dim}")
    inputs = (
        _channels_last(sample),
        _per_video(dump, "timestep"),
        jnp.asarray(clip),
        jnp.asarray(dump.input("added_time_ids", "b 3")),
    )
    inner = {"params": variables["params"]["unet"]}
    b, f = sample.shape[:2]
    return Replay(plain, inner, inputs, b, f, temporal_context=config.unet.temporal_context)


def _unet(networks: Networks, config: ModelConfig, variables: Any, dump: Dump) -> Replay:
    sample = _sample(config, dump)
    noisy, given = np.split(sample, 2, axis=2)

    # Torch repeats the condition for every frame, here there is one for all.
    if np.ptp(given, axis=1).any():
        raise InputError("input 'sample' has other condition latents in one frame than in another")

    maps = None
    if dump.has("cond_rgb") or dump.has("cond_ccm"):
        rgb, ccm = (_channels_last(dump.input(n, "b f 3 H W")) for n in ("cond_rgb", "cond_ccm"))
        maps = Maps(rgb=rgb, ccm=ccm)
        size = tuple(n * config.vae.downscale for n in sample.shape[-2:])
        if rgb.shape[2:4] != size:
            raise InputError(f"inputs 'cond_rgb' and 'cond_ccm' must be {size[0]} x {size[1]} px")

    clip = dump.input("encoder_hidden_states", f"b 1 {config.clip.projection_dim}")
    condition = Condition(
        clip=jnp.asarray(clip),
        latents=_channels_last(given[:, 0]),
        added_ids=jnp.asarray(dump.input("added_time_ids", "b 3")),
    )
    c_noise, cameras = _per_video(dump, "timestep"), _cameras(dump, "extrinsics")
    inputs = (_channels_last(noisy), c_noise, condition, cameras, maps)
    b, f = sample.shape[:2]
    context = config.unet.temporal_context
    return Replay(networks.unet, variables, inputs, b, f, temporal_context=context)


def _recon_model(networks: Networks, config: ModelConfig, variables: Any, dump: Dump) -> Replay:
    images = dump.input("images", "b f 3 h w")
    b, v = images.shape[0], config.lgm.num_views
    if images.shape[1] % v:
        raise InputError(f"input 'images' has {images.shape[1]} views, not a multiple of {v}")
    inputs = (
        _channels_last((images + 1) / 2),
        _cameras(dump, "c2w"),
        _per_video(dump, "timestep"),
    )
    return Replay(networks.lgm, variables, inputs, b, v)


def _vae_encoder(networks: Networks, config: ModelConfig, variables: Any, dump: Dump) -> Replay:
    images = _channels_last((dump.input("images", "n 3 h w") + 1) / 2)
    return Replay(networks.vae, variables, (images,), images.shape[0], 1, "encode")


def _vae_decoder(networks: Networks, config: ModelConfig, variables: Any, dump: Dump) -> Replay:
    latents = dump.input("latents", f"b f {config.vae.latent_channels} h w")
    inputs = (_channels_last(latents),)
    b, f = latents.shape[:2]
    return Replay(networks.vae, variables, inputs, b, f, "decode")


def _image_encoder(networks: Networks, config: ModelConfig, variables: Any, dump: Dump) -> Replay:
    size = config.clip.image_size
    pixels = dump.input("pixel_values", f"n 3 {size} {size}")
    mean, std = (np.asarray(value, np.float32) for value in (CLIP_MEAN, CLIP_STD))
    images = np.moveaxis(pixels, 1, -1) * std + mean
    return Replay(networks.clip, variables, (jnp.asarray(images),), len(pixels), 1)


Prepare = Callable[[Networks, ModelConfig, Any, Dump], Replay]

REPLAYS: dict[str, tuple[Prepare, str]] = {
    "svd_unet": (_svd_unet, "unet"),
    "unet": (_unet, "unet"),
    "recon_model": (_recon_model, "lgm"),
    "vae_encoder": (_vae_encoder, "vae"),
    "vae_decoder": (_vae_decoder, "vae"),
    "image_encoder": (_image_encoder, "clip"),
}
"""How the network that a dump names runs here, and which part of a checkpoint it is."""
