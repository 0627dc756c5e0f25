"""Goldens of networks: our modules on the same input, filled from their parameters' names."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rows import Golden, Limit, UnknownFileError, channels_first, channels_last, merged, quick

from o3d_jax.config import ClipConfig, LgmConfig, UnetConfig, VaeConfig
from o3d_jax.nn.clip import ClipVision, normalize, resize_matrix
from o3d_jax.nn.feedback import FeedbackEncoder
from o3d_jax.nn.lgm import Lgm, LgmUnet, over_gaussians, per_gaussian, view_features
from o3d_jax.nn.unet import MultiViewUnet, SpatioTemporalUnet
from o3d_jax.nn.vae import Vae
from o3d_jax.types import Cameras, Gaussians, Maps
from o3d_jax.weights.pytorch.names import manifest
from support.synthetic import synthetic_variables

TEMPORAL = {"out": "per_video", "out_d025": "interleaved"}
"""What the two versions of diffusers behind the goldens do."""

LARGE = 10**8
"""Parameters from which on running takes longer than compiling."""


def filled(
    golden: Golden, model: str, module: nn.Module, *inputs: Any, method: str | None = None
) -> Any:
    """Variables of a module from its names.

    Raises:
        UnknownFileError: its names and shapes are not those of the file.
    """
    init = functools.partial(module.init, method=method)
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs)["params"]
    theirs, ours = golden.manifest(model), manifest(shapes)
    if theirs is not None and theirs != ours:
        wrong = sorted(theirs.items() ^ ours.items())[:3]
        raise UnknownFileError(f"parameters of {model} differ from ours: {wrong}")
    return synthetic_variables(module, *inputs, seed=golden.seed(model), method=method)


def run(module: nn.Module, variables: Any, *inputs: Any, **options: Any) -> Any:
    """The module's output, compiled in the way that suits its size."""
    large = sum(leaf.size for leaf in jax.tree.leaves(variables)) > LARGE
    compiled = jax.jit if large else quick
    return compiled(lambda variables, *inputs: module.apply(variables, *inputs, **options))(
        variables, *inputs
    )


def cameras_of(camera_to_world: np.ndarray, intrinsics: np.ndarray) -> Cameras:
    return Cameras(
        camera_to_world=jnp.asarray(camera_to_world, jnp.float32),
        intrinsics=jnp.asarray(intrinsics, jnp.float32),
    )


def per_batch(value: np.ndarray, batch: int) -> jax.Array:
    """One value an object, where the file has that or one for all."""
    return jnp.broadcast_to(jnp.asarray(value, jnp.float32).reshape(-1), (batch,))


def unet_config(values: dict[str, Any], **switches: Any) -> UnetConfig:
    """Ours, of diffusers' names."""
    if values["transformer_layers_per_block"] != 1:
        raise UnknownFileError("transformer_layers_per_block is not 1; ours is SVD's, of one")
    return UnetConfig(
        block_out_channels=tuple(values["block_out_channels"]),
        layers_per_block=values["layers_per_block"],
        num_attention_heads=tuple(values["num_attention_heads"]),
        addition_time_embed_dim=values["addition_time_embed_dim"],
        **switches,
    )


def vae_config(values: dict[str, Any]) -> VaeConfig:
    return VaeConfig(
        block_out_channels=tuple(values["block_out_channels"]),
        layers_per_block=values["layers_per_block"],
        latent_channels=values["latent_channels"],
        scaling_factor=values["scaling_factor"],
    )


def clip_config(values: dict[str, Any]) -> ClipConfig:
    if values["hidden_act"] != "gelu" or values["layer_norm_eps"] != 1e-5:
        raise UnknownFileError("ours has gelu and an epsilon of 1e-5, as ViT-H/14")
    skip = ("hidden_act", "layer_norm_eps")
    return ClipConfig(**{name: value for name, value in values.items() if name not in skip})


def lgm_config(values: dict[str, Any], views: int, **more: Any) -> LgmConfig:
    named = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    for side in ("down", "up"):  # The original ignores what attention flags are too many.
        flags = named[f"{side}_attention"]
        named[f"{side}_attention"] = flags[: len(named[f"{side}_channels"])]
    return LgmConfig(num_views=views, **named, **more)


def check_unet(golden: Golden) -> dict[str, Any]:
    """SVD's U-Net alone."""
    sample = jnp.asarray(channels_last(golden.given("sample")))
    inputs = (
        sample,
        per_batch(golden.given("timestep"), len(sample)),
        jnp.asarray(golden.given("encoder_hidden_states")),
        jnp.asarray(golden.given("added_time_ids")),
    )
    found, variables = {}, None
    for version, temporal in TEMPORAL.items():
        if not golden.has(f"{version}.sample"):
            continue
        config = unet_config(golden.config["unet"], temporal_context=temporal)
        module = SpatioTemporalUnet(
            config, golden.config["unet"]["out_channels"], inputs[2].shape[-1]
        )
        variables = variables or filled(golden, "unet", module, *inputs)
        found[f"{version}.sample"] = channels_first(run(module, variables, *inputs))
    return found


METHOD = MultiViewUnet.of_latents.__name__
"""The files have condition latents that differ between views."""


def check_mvmodel(golden: Golden) -> dict[str, Any]:
    """The release's denoiser: rays, feedback, zero maps and no maps."""
    sample = jnp.asarray(channels_last(golden.given("sample")))
    maps = Maps(
        rgb=jnp.asarray(channels_last(golden.given("cond_rgb"))),
        ccm=jnp.asarray(channels_last(golden.given("cond_ccm"))),
    )
    inputs = (
        sample,
        per_batch(golden.given("timestep"), len(sample)),
        jnp.asarray(golden.given("encoder_hidden_states")),
        jnp.asarray(golden.given("added_time_ids")),
        cameras_of(golden.given("extrinsics"), golden.given("intrinsics")),
    )
    variants = {"sample": maps, "sample_zero_cond": jax.tree.map(jnp.zeros_like, maps)}
    variants["sample_cond_none"] = None
    found, variables = {}, None
    for version, temporal in TEMPORAL.items():
        config = unet_config(
            golden.config["unet"], temporal_context=temporal, ray_convention="released"
        )
        module = MultiViewUnet(config, golden.config["unet"]["out_channels"], inputs[2].shape[-1])
        variables = variables or filled(golden, "mv_model", module, *inputs, maps, method=METHOD)
        for name, given in variants.items():
            if golden.has(f"{version}.{name}"):
                options = {"method": METHOD, "capture_intermediates": _blocks}
                out, kept = run(module, variables, *inputs, given, **options)
                found[f"{version}.{name}"] = channels_first(out)
                if name == "sample":
                    found |= _block_outputs(version, kept["intermediates"]["unet"])
    return found


def _blocks(module: nn.Module, method: str) -> bool:
    return method == "__call__" and (module.name or "").startswith(("down_b", "mid_b", "up_b"))


def _block_outputs(version: str, kept: Any) -> dict[str, Any]:
    """Raw outputs of blocks, as the file names them; of down blocks without the skips."""
    found = {}
    for name, outputs in kept.items():
        out = outputs["__call__"][0]
        out = out[0] if isinstance(out, tuple) else out
        short = name.replace("_blocks", "").replace("_block", "")
        found[f"{version}.dbg_{short}"] = merged(channels_first(out))
    return found


def check_adapter(golden: Golden) -> dict[str, Any]:
    """A feedback encoder."""
    config = golden.config["adapter"]
    if (config["ksize"], config["sk"], config["use_conv"]) != (1, True, False):
        raise UnknownFileError("ksize, sk, use_conv are not 1, True, False as in the release")
    downscale = math.isqrt(config["cin"] // 3)
    cond = jnp.asarray(channels_last(golden.given("cond")))
    module = FeedbackEncoder(tuple(config["channels"]), config["nums_rb"], downscale)
    features = run(module, filled(golden, "adapter", module, cond), cond)
    return {f"out.feature_{i}": merged(channels_first(x)) for i, x in enumerate(features)}


def check_vae(golden: Golden) -> dict[str, Any]:
    """Encoder, temporal decoder, and the pipeline's decoding of scaled latents."""
    config = vae_config(golden.config["vae"])
    module = Vae(config)
    images = (jnp.asarray(channels_last(golden.given("images"))) + 1) / 2
    variables = filled(golden, "vae", module, images[None])
    moments = run(module, variables, images, method="encode")
    std = jnp.exp(0.5 * moments.logvar)
    found = {"mean": moments.mean, "mode": moments.mean, "logvar": moments.logvar, "std": std}
    latents = jnp.asarray(channels_last(golden.given("latents")))
    videos = latents.reshape(-1, int(golden.given("num_frames")), *latents.shape[1:])
    found["decoded"] = 2 * merged(run(module, variables, videos, method="decode")) - 1
    scaled = jnp.asarray(channels_last(golden.given("pipeline_latents")))
    decoded = run(module, variables, scaled / config.scaling_factor, method="decode")
    found = {f"out.{name}": channels_first(x) for name, x in found.items()}
    frames = np.moveaxis(np.asarray(2 * decoded - 1), -1, 1)
    return found | {"out.pipeline_frames_bcfhw": frames}


def check_clip(golden: Golden) -> dict[str, Any]:
    """CLIP's image tower, or the resizing and normalizing in front of it."""
    parts = {"model": _clip_model, "pre": _clip_preprocessing}
    return parts[golden.config["part"]](golden)


def _clip_model(golden: Golden) -> dict[str, Any]:
    module = ClipVision(clip_config(golden.config["clip"]))
    pixels = channels_last(golden.given("pixel_values"))
    zero, one = (normalize(jnp.full((1, 1, 3), float(value))) for value in (0, 1))
    images = (jnp.asarray(pixels) - zero[None]) / (one - zero)[None]  # Undoes `normalize`.
    variables = filled(golden, "image_encoder", module, images)

    def kept(module: nn.Module, method: str) -> bool:
        return module.name in ("encoder", "pre_layrnorm")

    embeds, captured = run(module, variables, images, capture_intermediates=kept)
    inner = captured["intermediates"]["vision_model"]
    return {
        "out.image_embeds": embeds[:, 0],
        "out.last_hidden_state": inner["encoder"]["__call__"][0],
        "out.hidden_state_0": inner["pre_layrnorm"]["__call__"][0],
    }


def _clip_preprocessing(golden: Golden) -> dict[str, Any]:
    found = {}
    for name in (name[len("in.image") :] for name in golden.arrays if name.startswith("in.image")):
        image = channels_last(golden.given(f"image{name}"))
        size = golden.config[f"size{name}"]
        rows, columns = (resize_matrix(n, m) for n, m in zip(image.shape[1:3], size, strict=True))
        resized = np.einsum("ih,nhwc,jw->nijc", rows, image, columns).astype(np.float32)
        found[f"out.resized{name}"] = channels_first(resized)
        if image.shape[-1] == 3:
            values = normalize(jnp.asarray((resized + 1) / 2))
            found[f"out.pixel_values{name}"] = channels_first(values)
    return found


def clip_limits(golden: Golden) -> dict[str, Limit]:
    """torch has the positions of bicubic samples in float32, ours are float64."""
    limits = {}
    for name in (name for name in golden.arrays if name.startswith("in.image")):
        pixels = max(golden.arrays[name].shape[-2:])
        # An error of 6e-8 of the position, on slopes of up to the whole range, 2, a pixel.
        limit = 2 * 6e-8 * pixels
        reason = f"the original has positions of up to {pixels} in float32"
        suffix = name[len("in.image") :]
        limits[f"out.resized{suffix}"] = Limit(limit, False, reason)
        # Halved, then divided by CLIP's deviations, of at least 0.26.
        limits[f"out.pixel_values{suffix}"] = Limit(limit / 2 / 0.26, False, reason)
    return limits


def check_lgm_unet(golden: Golden) -> dict[str, Any]:
    """LGM's U-Net with time, for clean and for noisy views."""
    x = jnp.asarray(channels_last(golden.given("x")))
    views = golden.config["num_frames"]
    module = LgmUnet(lgm_config(golden.config["unet"], views, input_size=x.shape[1]))
    found, variables = {}, None
    for name in [name.removeprefix("in.") for name in golden.arrays if name.startswith("in.t")]:
        c_noise = per_batch(golden.given(name), len(x) // views)
        variables = variables or filled(golden, "unet", module, x, c_noise)
        found[f"out.y_{name}"] = channels_first(run(module, variables, x, c_noise))
    return found


def check_lgm_gaussians(golden: Golden) -> dict[str, Any]:
    """All of LGM: its input, raw features, and Gaussians in both conventions of rotation."""
    images = (jnp.asarray(channels_last(golden.given("images"))) + 1) / 2
    fov = np.deg2rad(np.asarray(golden.given("fov"), np.float64))
    intrinsics = np.zeros((*fov.shape, 3, 3))
    intrinsics[..., 0, 0] = intrinsics[..., 1, 1] = 0.5 / np.tan(fov / 2)
    intrinsics[..., :2, 2], intrinsics[..., 2, 2] = 0.5, 1
    cameras = cameras_of(golden.given("c2w"), intrinsics)
    config = lgm_config(
        golden.config["options"], golden.config["num_frames"], rotation_norm="over_gaussians"
    )
    inputs = (images, cameras, per_batch(golden.given("timestep"), len(images)))
    module = Lgm(config)
    variables = filled(golden, "recon_model", module, *inputs)

    def kept(module: nn.Module, method: str) -> bool:
        return module.name == "conv"

    gaussians, captured = run(module, variables, *inputs, capture_intermediates=kept)
    raw = captured["intermediates"]["conv"]["__call__"][0]
    quats = raw.reshape(len(images), -1, 14)[..., 7:11]
    step = images.shape[1] // config.num_views
    seen = jax.tree.map(lambda a: a[:, ::step], (images, cameras))
    return {
        "out.gaussians": packed(gaussians),
        "out.rotation_per_gaussian": per_gaussian(quats),
        "out.rotation_over_gaussians": over_gaussians(quats),
        "out.unet_input": merged(channels_first(view_features(*seen, config.input_size))),
        "out.raw_features": channels_first(raw),
    }


def packed(gaussians: Gaussians) -> np.ndarray:
    """The original's order: mean, opacity, scales, quaternion, color."""
    parts = [gaussians.means, gaussians.opacities[..., None], gaussians.scales]
    return np.concatenate([*parts, gaussians.quats, gaussians.colors], axis=-1)
