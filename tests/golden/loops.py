"""Goldens of a whole training step and of a whole sampling run, LGM and renderer being a formula.

The original ran with an analytic stand-in for the reconstruction, and so do we: it takes the place
of `reconstruct` in `steps/losses.py` and `steps/sample.py`; what the U-Net is given and returns is
recorded on the way.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from networks import TEMPORAL, cameras_of, clip_config, filled, unet_config, vae_config
from rows import Golden, Limit, channels_first, channels_last, quick

from o3d_jax import edm
from o3d_jax.config import (
    Config,
    DataConfig,
    DiffusionConfig,
    LgmConfig,
    ModelConfig,
    OptimConfig,
    SampleConfig,
)
from o3d_jax.nn.networks import Networks, Ouroboros, build_networks
from o3d_jax.nn.networks import apply as apply_network
from o3d_jax.steps import condition as conditioning
from o3d_jax.steps import losses, sample
from o3d_jax.steps.condition import ConditionDraws, encode_condition
from o3d_jax.steps.denoise import guidance_scale, guide
from o3d_jax.steps.draws import Draws
from o3d_jax.steps.reconstruct import Reconstruction
from o3d_jax.types import Batch, Cameras, Condition, Frozen, Gaussians, Maps, Params, Rendering
from o3d_jax.weights.pytorch.names import to_torch, torch_name


@dataclasses.dataclass
class Recorded:
    """What passed, in order; traced arrays while a program is being compiled."""

    inputs: list[jax.Array] = dataclasses.field(default_factory=list)
    contexts: list[jax.Array] = dataclasses.field(default_factory=list)
    ids: list[jax.Array] = dataclasses.field(default_factory=list)
    maps: list[Maps] = dataclasses.field(default_factory=list)
    outputs: list[jax.Array] = dataclasses.field(default_factory=list)
    views: list[jax.Array] = dataclasses.field(default_factory=list)
    """What is reconstructed, in [0, 1]."""
    times: list[jax.Array] = dataclasses.field(default_factory=list)
    """c_noise of the reconstruction."""


def stand_in(views: jax.Array) -> Reconstruction:
    """The file's `recon_stub`, of views in [0, 1]."""
    x = 2 * views - 1
    depth = 1.5 + 0.3 * jnp.tanh(x.mean(axis=-1, keepdims=True))
    rgb = jax.nn.sigmoid(2 * x + 0.3 * jnp.roll(x, 1, axis=1))
    nothing = jnp.zeros((len(views), 1, 3))
    gaussians = Gaussians(
        means=nothing,
        scales=nothing,
        quats=jnp.zeros((len(views), 1, 4)),
        opacities=nothing[..., 0],
        colors=nothing,
    )
    rendering = Rendering(rgb=rgb, alpha=jnp.ones_like(depth), depth=depth)
    return Reconstruction(gaussians=gaussians, rendering=rendering)


@contextlib.contextmanager
def recording(steps: Any) -> Iterator[Recorded]:
    """Puts the stand-in and a recorder of the U-Net into a module of steps."""
    kept = Recorded()

    def reconstruct(model, views, cameras, c_noise):
        kept.views.append(views)
        kept.times.append(c_noise)
        return stand_in(views)

    def apply(network, variables, x, *rest, **options):
        out = apply_network(network, variables, x, *rest, **options)
        _, given, _, maps = rest
        latents = given.latents[:, None]
        latents = jnp.broadcast_to(latents, (*x.shape[:-1], latents.shape[-1]))
        kept.inputs.append(jnp.concatenate([x, latents], axis=-1))
        kept.contexts.append(given.clip)
        kept.ids.append(given.added_ids)
        kept.maps.append(maps)
        kept.outputs.append(out)
        return out

    with (
        mock.patch.object(steps, "reconstruct", reconstruct),
        mock.patch.object(steps, "apply", apply),
    ):
        yield kept


def model_config(golden: Golden, size: int, views: int, temporal: str) -> ModelConfig:
    """The file's networks, with the release's switches."""
    unet = unet_config(
        golden.config["unet"],
        temporal_context=temporal,
        ray_convention="released",
        ccm_convention="released",
    )
    clip = clip_config(
        golden.config.get("clip")
        or {
            "projection_dim": golden.config["unet"]["cross_attention_dim"],
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
        }
    )
    return ModelConfig(
        image_size=size,
        num_views=views,
        dtype="float32",
        remat=False,
        vae=vae_config(golden.config["vae"]),
        unet=unet,
        clip=clip,
        lgm=LgmConfig(num_views=views),
    )


def released_config(model: ModelConfig, sample_config: SampleConfig | None = None) -> Config:
    """The release's losses and conditioning."""
    return Config(
        name="golden",
        model=model,
        data=DataConfig(frames_per_orbit=2 * model.num_views),
        diffusion=DiffusionConfig(
            feedback_gradient="flows",
            clip_sees_noise_in_training=True,
            training_latents="sampled",
        ),
        sample=sample_config or SampleConfig(),
        optim=OptimConfig(
            reconstruction_loss="l1", lpips_weight=0.0, noisy_weight=0.5, clean_weight=0.5
        ),
    )


def weights(golden: Golden, networks: Networks, batch: Batch) -> tuple[Any, Any]:
    """Variables of the U-Net and the VAE."""
    b, v, h, w, _ = batch.images.shape
    scale = networks.vae.config.downscale
    channels = networks.vae.config.latent_channels
    latents = jnp.zeros((b, v, h // scale, w // scale, channels))
    condition = Condition(
        clip=jnp.zeros((b, 1, networks.unet.cross_attention_dim)),
        latents=latents[:, 0],
        added_ids=jnp.zeros((b, 3)),
    )
    given = (latents, jnp.zeros(b), condition, batch.cameras, Maps.nothing(b, v, h, w))
    return (
        filled(golden, "mv_model", networks.unet, *given),
        filled(golden, "vae", networks.vae, batch.images),
    )


def _views(golden: Golden) -> Batch:
    images = (jnp.asarray(channels_last(golden.given("diffusion_images"))) + 1) / 2
    return Batch(images=images, cameras=_cameras(golden))


def _cameras(golden: Golden) -> Cameras:
    return cameras_of(golden.given("c2w"), golden.given("intrinsics"))


def _draws(golden: Golden, config: DiffusionConfig, batch: Batch) -> Draws:
    """The original's random numbers, in the order in which it drew them."""
    b, v = batch.images.shape[:2]
    posterior = channels_last(golden.given("rng0_vae_images_randn"))
    u = jnp.asarray(golden.given("rng5_sigma_u")).reshape(b)
    condition_u = jnp.asarray(golden.given("rng2_cond_sigma_u")).reshape(b)
    return Draws(
        sigma=edm.sigma_quantile(u, config.p_mean, config.p_std),
        noise=jnp.asarray(channels_last(golden.given("rng1_noise_randn"))),
        posterior=jnp.asarray(posterior.reshape(b, v, *posterior.shape[1:])),
        condition=ConditionDraws(
            sigma=edm.sigma_quantile(condition_u, config.condition_p_mean, config.condition_p_std),
            noise=jnp.asarray(channels_last(golden.given("rng3_cond_image_randn"))),
            posterior=jnp.asarray(channels_last(golden.given("rng4_vae_cond_randn"))),
            dropout=jnp.asarray(golden.given("rng6_dropout_p")).reshape(b),
        ),
    )


def check_train_loss(golden: Golden) -> dict[str, Any]:
    """One step: loss, its parts, what the networks see, and gradients of the denoiser."""
    batch = _views(golden)
    model = model_config(golden, batch.images.shape[2], batch.images.shape[1], "per_video")
    config = released_config(model)
    networks = build_networks(model)
    unet, vae = weights(golden, networks, batch)
    use_feedback = bool(golden.given("rng7_second_pass_u")[0] > 0.5)
    embedding = jnp.asarray(golden.given("encoder_hidden_states"))
    draws = _draws(golden, config.diffusion, batch)

    def loss(unet: Any) -> tuple[jax.Array, tuple[losses.LossTerms, Recorded]]:
        params, frozen = Params(unet=unet, lgm=None), Frozen(vae=vae)
        model = Ouroboros(networks=networks, config=config, params=params, frozen=frozen)
        with (
            recording(losses) as kept,
            mock.patch.object(conditioning, "embed_image", lambda *_: embedding),
        ):
            total, terms = losses.train_loss(model, batch, draws, use_feedback)
        return total, (terms, vars(kept))

    (total, (terms, kept)), gradient = quick(jax.value_and_grad(loss, has_aux=True))(unet)
    found = {"total_loss": total} | _training_outputs(terms, Recorded(**kept), use_feedback)
    leaves = jax.tree.leaves(gradient)
    found["grad_global_norm"] = np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in leaves))
    for keys, leaf in jax.tree_util.tree_flatten_with_path(gradient["params"])[0]:
        path = tuple(key.key for key in keys)
        found[f"grad.{torch_name(path)}"] = to_torch(path, leaf)
    return {f"out.{name}": x for name, x in found.items()}


def train_loss_limits(golden: Golden) -> dict[str, Limit]:
    """The file's noise is that of slightly other weights, and leaves out that of summing up."""
    limit = Limit(2e-5, True, "one sum over all activations, of both signs, in float32")
    factors = [name for name in golden.arrays if name.endswith("mix_factor")]
    return dict.fromkeys(factors, limit)


def _training_outputs(
    terms: losses.LossTerms, kept: Recorded, use_feedback: bool
) -> dict[str, Any]:
    (both,) = kept.views  # Estimates, then true views.
    estimates, times = np.split(np.asarray(both), 2)[0], np.asarray(kept.times[0])
    found = {
        "diffusion_loss": terms.diffusion,
        "recon_loss": 0.5 * (terms.rgb_noisy + terms.rgb_clean),
        "recon_loss0": terms.rgb_clean,
        "recon_loss1": terms.rgb_noisy,
        "unet_input": channels_first(kept.inputs[0]),
        "timestep": times[: len(estimates)],
        "recon_timesteps": times,
        "encoder_hidden_states_used": kept.contexts[0],
        "added_time_ids": kept.ids[0],
        "num_unet_passes": len(kept.outputs),
    } | views_of("recon_input_x0", 2 * estimates - 1)
    for i, out in enumerate(kept.outputs):
        found[f"model_pred_{i}"] = channels_first(out)
    if use_feedback:
        found |= views_of("second_cond_rgb", kept.maps[1].rgb)
        found |= views_of("second_cond_ccm", kept.maps[1].ccm)
    return found


def views_of(name: str, images: Any) -> dict[str, np.ndarray]:
    """Each view under the file's names, whole and with every second pixel."""
    each = np.moveaxis(channels_first(images), 1, 0)
    whole = {f"{name}_view{i}": view for i, view in enumerate(each)}
    return whole | {f"{key}_s2": view[..., ::2, ::2] for key, view in whole.items()}


def check_loop(golden: Golden) -> dict[str, Any]:
    """A sampling run with guidance, level by level."""
    found: dict[str, Any] = {}
    for version, temporal in TEMPORAL.items():
        if golden.has(f"{version}.prev_samples"):
            run = _run_loop(golden, temporal)
            found |= {f"{version}.{name}": x for name, x in run.items()}
    return found


def _run_loop(golden: Golden, temporal: str) -> dict[str, Any]:
    image = (jnp.asarray(channels_last(golden.given("condition_image"))) + 1) / 2
    noise = jnp.asarray(channels_last(golden.given("rng1_latents_randn")))
    about, views = golden.config["scheduler"], noise.shape[1]
    sample_config = SampleConfig(
        levels=golden.config["num_inference_steps"],
        sigma_min=about["sigma_min"],
        sigma_max=about["sigma_max"],
        min_guidance=golden.config["min_guidance"],
        max_guidance=golden.config["max_guidance"],
    )
    model = model_config(golden, image.shape[1], views, temporal)
    config = released_config(model, sample_config)
    networks, cameras = build_networks(model), _cameras(golden)
    images = jnp.broadcast_to(image[:, None], (len(image), views, *image.shape[1:]))
    unet, vae = weights(golden, networks, Batch(images=images, cameras=cameras))
    clip = filled(golden, "image_encoder", networks.clip, image)
    params, frozen = Params(unet=unet, lgm=None), Frozen(vae=vae, clip=clip)
    model = Ouroboros(networks=networks, config=config, params=params, frozen=frozen)
    condition = quick(encode_condition)(
        model,
        image,
        jnp.asarray(channels_last(golden.given("rng0_cond_noise_randn"))),
        jnp.full(len(image), sample_config.condition_noise),
    )
    start = sample.LoopState(
        x=edm.initial_deviation(sample_config.sigma_max) * noise,
        maps=Maps.nothing(len(image), views, *image.shape[1:3]),
        guidance=guidance_scale(views, sample_config.min_guidance, sample_config.max_guidance),
    )

    @quick
    def level(state, sigma, sigma_next):
        with recording(sample) as kept:
            state, estimate = sample.level(model, condition, cameras, state, sigma, sigma_next)
        return state, estimate, vars(kept)

    sigmas, states, estimates, records = sample.noise_levels(sample_config), [start], [], []
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        state, estimate, kept = level(states[-1], sigma, sigma_next)
        states.append(state)
        estimates.append(estimate)
        records.append(Recorded(**kept))
    return _loop_outputs(config, networks, condition, states, estimates, records)


def _loop_outputs(
    config: Config,
    networks: Networks,
    condition: Condition,
    states: list[sample.LoopState],
    estimates: list[sample.Estimate],
    records: list[Recorded],
) -> dict[str, Any]:
    low, high = config.sample.min_guidance, config.sample.max_guidance
    guidance = guidance_scale(config.model.num_views, low, high)
    sigmas = sample.noise_levels(config.sample)
    raw, x0 = [], []
    for i, record in enumerate(records):
        raw.append(guide(*jnp.split(record.outputs[0], 2), guidance))
        s = edm.scalings(sigmas[i])
        x0.append(s.c_skip * states[i].x + s.c_out * raw[-1])
    outputs = {
        "image_embeddings": np.concatenate([np.zeros_like(condition.clip), condition.clip]),
        "guided_model_output": channels_first(np.stack(raw)),
        "pred_x0_latents": channels_first(np.stack(x0)),
        "prev_samples": channels_first(np.stack([state.x for state in states[1:]])),
        "recon_timesteps": np.concatenate([np.asarray(r.times[0])[:1] for r in records]),
    }
    last = estimates[-1].views
    outputs |= views_of("first_decoded_x0", 2 * estimates[0].views - 1)
    outputs |= views_of("last_decoded_x0", 2 * last - 1)
    outputs |= views_of("images_pred", np.clip(last, 0, 1))
    return outputs | views_of("last_position_map", states[-1].maps.ccm)
