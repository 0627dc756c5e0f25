"""Algorithm 2 for one object, a compiled step a noise level, so that one sees it move."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from o3d_jax.config import Config, SampleConfig
from o3d_jax.errors import InputError
from o3d_jax.files.images import to_bytes
from o3d_jax.geometry.orbits import orbit, relative_to_first
from o3d_jax.geometry.released import FRAME_CHOICES
from o3d_jax.media.nothing import check_object
from o3d_jax.nn.networks import Ouroboros, build_networks
from o3d_jax.sampling.in_turn import denoise_in_turn, level_in_turn, prepare_in_turn
from o3d_jax.steps.denoise import guidance_scale
from o3d_jax.steps.sample import (
    Denoised,
    Estimate,
    LoopState,
    noise_levels,
    reconstructing,
    sample_prepare,
    sample_step,
)
from o3d_jax.types import Cameras, Gaussians, Maps
from o3d_jax.weights.checkpoint import Weights, named_parts
from o3d_jax.weights.completeness import check_complete
from o3d_jax.weights.streaming import open_model, weights_to_sample

MOST_LEVELS = 1000

Feedback = Literal["none", "ccm", "rgb+ccm"]
"""Which maps of the last object the next estimate sees: neither, coordinates, or both."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What an object depends on besides the model and the image."""

    sample: SampleConfig
    seed: int
    """Seed of the noise that sampling starts from."""
    elevation: float
    """Degrees at which the image looks down on the object."""
    feedback: Feedback


@dataclasses.dataclass(frozen=True)
class Level:
    """What one noise level found of one object. Images have 8 bits, as they are shown and kept."""

    sigma: float
    latents: Float[np.ndarray, "v h w c"]
    """The clean estimate, scaled."""
    views: UInt8[np.ndarray, "v H W 3"]
    """The clean estimate, decoded."""
    guide: UInt8[np.ndarray, "v H W 3"]
    """Renders that the estimate was guided by; black where there were none."""
    renders: UInt8[np.ndarray, "v H W 3"]
    """The object made from the views, as it looks from their cameras."""
    alpha: UInt8[np.ndarray, "v H W"]
    """Its opacity there."""
    gaussians: Gaussians
    """The object."""
    reconstructed: bool = True
    """Whether this level made an object (`SampleConfig.reconstruct_every`). If it did not, the
    views, the object and its renders are those of the last level that did."""


class Found(NamedTuple):
    """A level, and what the next one starts from."""

    level: Level
    state: LoopState


class Start(NamedTuple):
    """Where a run goes on."""

    level: int
    """The number of its first level, from 0."""
    state: LoopState
    last: Level | None
    """The level before; None at the first."""


def read_sampler(checkpoint: Path, offload: bool = False) -> Ouroboros:
    """Returns the model of a checkpoint, on the default device, or with `offload` on the host.

    Raises:
        InputError: there is none, or it lacks networks that sampling needs.
    """
    stored = open_model(checkpoint)
    check_complete(checkpoint, {keys[0] for keys in stored.leaves})
    weights = weights_to_sample(stored, offload)
    return Ouroboros(
        networks=dataclasses.replace(build_networks(stored.config.model), offload=offload),
        config=stored.config,
        params=weights.params,
        frozen=weights.frozen,
    )


def default_feedback(config: Config) -> Feedback:
    """Returns what a model feeds back if nobody asks for anything else."""
    return config.model.unet.feedback if config.sample.feedback else "none"


def check_choices(config: Config, guidance: float | None, feedback: Feedback | None) -> None:
    """Checks what may be chosen of a run, where it is.

    Raises:
        InputError: the guidance is out of range, or the model never saw the maps to feed back.
    """
    if guidance is not None and not 0 <= guidance <= 100:
        raise InputError(f"--guidance {guidance} is not in 0 .. 100; 1 is none, try 2 to 3")
    seen = config.model.unet.feedback
    if feedback is not None and not {*feedback.split("+")} <= {*seen.split("+"), "none"}:
        raise InputError(
            f"--feedback {feedback}: the model was built for {seen}; give none"
            + ("" if seen == "none" else f" or {seen}")
        )


def with_choices(
    sample: SampleConfig,
    levels: int | None = None,
    guidance: float | None = None,
    reconstruct_every: int | None = None,
) -> SampleConfig:
    """Returns the model's way to sample with another number of levels, guidance, or objects.

    Guidance is that of the last view; where that of the first is above, it is the same.

    Raises:
        InputError: too few levels or too many, or objects at every 0 levels.
    """
    if levels is not None and levels > MOST_LEVELS:
        raise InputError(f"--levels {levels} is above {MOST_LEVELS}; 16 to 50 are enough")
    try:
        if levels is not None:
            sample = dataclasses.replace(sample, levels=levels)
    except ValueError as error:
        raise InputError(f"--levels {levels}: {error}") from error
    if reconstruct_every is not None:
        if reconstruct_every < 1:
            raise InputError(f"--reconstruct-every {reconstruct_every} is below 1, every level")
        sample = dataclasses.replace(sample, reconstruct_every=reconstruct_every)
    if guidance is None:
        return sample
    low = min(sample.min_guidance, guidance)
    return dataclasses.replace(sample, min_guidance=low, max_guidance=guidance)


def view_azimuths(config: Config) -> Float[np.ndarray, " v"]:
    """Returns the degrees from the input to each generated view: those of training."""
    frames = config.data.frames_per_orbit
    chosen = FRAME_CHOICES[config.data.orbit_frames](0, config.model.num_views, frames)
    return chosen * (360 / frames)


def orbit_cameras(config: Config, elevation: float, azimuths: Float[np.ndarray, " v"]) -> Cameras:
    """Returns cameras around the object at the input's elevation, relative to the input's.

    `elevation` and `azimuths` are in degrees; azimuth 0 is the input's.
    """
    cameras = orbit(elevation, azimuths, config.camera.radius, config.camera.fov)
    return relative_to_first(cameras)


def run_levels(
    model: Ouroboros,
    recipe: Recipe,
    image: Float[np.ndarray, "h w 3"],
    start: Start | None = None,
) -> Iterator[Found]:
    """Yields what each noise level finds, from the highest on, or from where a run left off.

    `image` is on white and in [0, 1]. Without a `start`, the run begins with pure noise. All
    levels are one compiled program, and so are runs that differ in recipe and image only.

    Raises:
        InputError: what the model makes is not finite, or cannot be seen; says at which level.
    """
    shared = dataclasses.replace(model, config=_shared_config(model.config, recipe.sample))
    azimuths, sample = view_azimuths(model.config), recipe.sample
    cameras = orbit_cameras(model.config, recipe.elevation, azimuths)
    cameras = jax.tree.map(lambda a: a[None], cameras)
    key = jax.random.key(recipe.seed)
    # Whole levels are one program where all networks are on the device and run at each of them.
    in_turn = model.networks.offload or sample.reconstruct_every > 1
    prepare, level = (prepare_in_turn, level_in_turn) if in_turn else (sample_prepare, sample_step)
    condition, state = prepare(shared, jnp.asarray(image)[None], key)
    first, state, last = start or Start(0, state, None)

    guidance = guidance_scale(len(azimuths), sample.min_guidance, sample.max_guidance)
    sigmas, rebuilds = noise_levels(sample), reconstructing(sample)
    for i in range(first, sample.levels):
        maps = _fed_back(state.maps, recipe.feedback)
        state = dataclasses.replace(state, maps=maps, guidance=guidance)
        given = (shared, condition, cameras, state, sigmas[i], sigmas[i + 1])
        if last is None or rebuilds[i]:
            state, estimate = level(*given)
            when = f"at noise level {i + 1} of {sample.levels} (sigma {sigmas[i]:.3g})"
            check_object(estimate.reconstruction.gaussians, when, _parts(model))
            last = _on_host(float(sigmas[i]), maps, estimate)
        else:
            denoised = denoise_in_turn(*given)
            state = dataclasses.replace(state, x=denoised.x)
            last = _same_object(last, float(sigmas[i]), maps, denoised)
        yield Found(last, state)


def _parts(model: Ouroboros) -> dict[str, Any]:
    """The model's parameters by the names of their networks."""
    return named_parts(Weights(params=model.params, frozen=model.frozen))


def noised_anew(level: Level, state: LoopState, sigma: float, seed: int) -> LoopState:
    """Returns the state with fresh noise of deviation `sigma` on what `level` found.

    So a run starts anew from a noise level below the highest: what it had found is kept as far as
    it shows through the noise.
    """
    noise = jax.random.normal(jax.random.key(seed), (1, *level.latents.shape), jnp.float32)
    return dataclasses.replace(state, x=jnp.asarray(level.latents)[None] + sigma * noise)


def _shared_config(config: Config, sample: SampleConfig) -> Config:
    """The config without what no compiled step reads, so that runs share a program."""
    like = SampleConfig()
    # Feedback is switched off by its values in `_fed_back`.
    shared = dataclasses.replace(
        sample,
        levels=like.levels,
        min_guidance=like.min_guidance,
        max_guidance=like.max_guidance,
        feedback=True,
        reconstruct_every=like.reconstruct_every,
    )
    return dataclasses.replace(config, sample=shared)


def _fed_back(maps: Maps, feedback: Feedback) -> Maps:
    """The maps, black where they are not to be seen, as all are at the first level."""
    rgb, ccm = "rgb" in feedback, "ccm" in feedback
    return Maps(
        rgb=maps.rgb if rgb else jnp.zeros_like(maps.rgb),
        ccm=maps.ccm if ccm else jnp.zeros_like(maps.ccm),
    )


def _same_object(last: Level, sigma: float, maps: Maps, denoised: Denoised) -> Level:
    """A level that made no object, after one that did or kept one."""
    return dataclasses.replace(
        last,
        sigma=sigma,
        latents=np.asarray(denoised.latents[0]),
        guide=to_bytes(np.asarray(maps.rgb[0])),
        reconstructed=False,
    )


def _on_host(sigma: float, maps: Maps, estimate: Estimate) -> Level:
    """The only object of a batch, all but its Gaussians on the host, with images of 8 bits."""

    def image(batch: Float[Array, "1 v h w c"]) -> UInt8[np.ndarray, "v h w c"]:
        return to_bytes(np.asarray(batch[0]))

    made = estimate.reconstruction
    return Level(
        sigma=sigma,
        latents=np.asarray(estimate.latents[0]),
        views=image(estimate.views),
        guide=image(maps.rgb),
        renders=image(made.rendering.rgb),
        alpha=image(made.rendering.alpha)[..., 0],
        gaussians=jax.tree.map(lambda a: a[0], made.gaussians),
    )
