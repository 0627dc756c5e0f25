"""Algorithm 2: sampling with 3D-aware feedback."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from o3d_jax import edm
from o3d_jax.config import SampleConfig
from o3d_jax.nn.networks import Ouroboros, apply
from o3d_jax.parallel.layout import Layout
from o3d_jax.steps.condition import condition_of, embed_image
from o3d_jax.steps.denoise import denoise_guided, guidance_scale
from o3d_jax.steps.reconstruct import (
    Reconstruction,
    decode_views,
    feedback_maps,
    reconstruct,
)
from o3d_jax.steps.sharded import on_own_objects
from o3d_jax.types import Cameras, Condition, Maps, pytree

Video = Float[Array, "b v h w c"]
Denoiser = Callable[[Video, Float[Array, " b"]], Video]
"""D of Eq. 3: from noisy latents and their noise levels to the clean estimate."""

Solver = Literal["euler", "heun"]
"""A way to go from one noise level to the next (`SampleConfig.solver`)."""


@pytree
class Estimate:
    """What one noise level found."""

    latents: Float[Array, "b v h w c"]
    """The clean estimate, scaled."""

    views: Float[Array, "b v H W 3"]
    """The same, decoded; about [0, 1]."""

    reconstruction: Reconstruction
    """The object made from `views`; its rendering guides the next level."""


@pytree
class LoopState:
    """What one noise level hands to the next."""

    x: Float[Array, "b v h w c"]
    """Noisy latents, scaled."""

    maps: Maps
    """Feedback for the next estimate."""

    guidance: Float[Array, " v"]
    """Guidance of each view, the same at all levels; as a value, it needs no compiling anew."""


def ode_step(
    denoiser: Denoiser,
    x: Float[Array, "b v h w c"],
    x0: Float[Array, "b v h w c"],
    sigma: Float[Array, ""],
    sigma_next: Float[Array, ""],
    solver: Solver,
) -> Float[Array, "b v h w c"]:
    """Returns the latents after one solver step of the ODE of Eq. 3, from sigma to sigma_next.

    With D the denoiser, Eqs. 3 and 4 give dx/dsigma = (x - D(x; sigma)) / sigma. The slope at
    the start needs no further evaluation: `x0` is D(x; sigma). At sigma 0 the slope of the start
    stands in, which makes Heun's last step an Euler step (Karras et al. 2022, Algorithm 1).
    """
    first_slope = (x - x0) / sigma
    if solver == "euler":
        return x + (sigma_next - sigma) * first_slope

    import diffrax  # It takes half a second to import, which the default need not wait for.

    def slope(sigma_stage, x_stage, _):
        def fresh():
            sigmas = jnp.full(x.shape[0], sigma_stage)
            return (x_stage - denoiser(x_stage, sigmas)) / sigma_stage

        known = (sigma_stage == sigma) | (sigma_stage == 0)
        return jax.lax.cond(known, lambda: first_slope, fresh)

    term, heun = diffrax.ODETerm(slope), diffrax.Heun()
    start = heun.init(term, sigma, sigma_next, x, None)
    x_next, *_ = heun.step(term, sigma, sigma_next, x, None, start, made_jump=False)
    return x_next


def prepare(
    model: Ouroboros, image: Float[Array, "b h w 3"], key: Key[Array, ""]
) -> tuple[Condition, LoopState]:
    """Returns the condition of an input image, and where the loop starts.

    It starts from pure noise and without feedback.
    """
    return begin_run(model, embed_image(model, image), image, key)


def begin_run(
    model: Ouroboros,
    embedding: Float[Array, "b 1 d"],
    image: Float[Array, "b h w 3"],
    key: Key[Array, ""],
) -> tuple[Condition, LoopState]:
    """Returns what `prepare` does, for an image that is embedded already. Only the VAE is run."""
    noise_key, condition_key = jax.random.split(key)
    sizes, sample, b = model.config.model, model.config.sample, image.shape[0]

    noise = jax.random.normal(condition_key, image.shape, jnp.float32)
    noise_std = jnp.full((b,), sample.condition_noise, jnp.float32)
    condition = condition_of(model, embedding, image, noise, noise_std)

    shape = (b, sizes.num_views, sizes.latent_size, sizes.latent_size, sizes.vae.channels)
    deviation = edm.initial_deviation(sample.sigma_max)
    x = deviation * jax.random.normal(noise_key, shape, jnp.float32)
    maps = Maps.nothing(b, sizes.num_views, *image.shape[1:3])
    guidance = guidance_scale(sizes.num_views, sample.min_guidance, sample.max_guidance)
    return condition, LoopState(x=x, maps=maps, guidance=guidance)


@pytree
class Denoised:
    """What the denoiser makes of one noise level."""

    latents: Float[Array, "b v h w c"]
    """The clean estimate, scaled."""

    x: Float[Array, "b v h w c"]
    """Noisy latents of the next level, scaled."""


@pytree
class Rebuilt:
    """What LGM and the renderer make of the views of one noise level."""

    reconstruction: Reconstruction
    maps: Maps
    """Feedback for the next estimate."""


def denoise_level(
    model: Ouroboros,
    condition: Condition,
    cameras: Cameras,
    state: LoopState,
    sigma: Float[Array, ""],
    sigma_next: Float[Array, ""],
) -> Denoised:
    """Returns the clean estimate at one noise level, and the noisy latents of the next.

    Only the U-Net is run. The next latents need no decoding, so this is a program by itself.
    """

    def network(x, c_noise, given, maps):
        twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), cameras)
        return apply(model.networks.unet, model.params.unet, x, c_noise, given, twice, maps)

    # The feedback holds for a level: a solver of several stages sees the same object in all.
    def denoiser(x, sigmas):
        return denoise_guided(network, x, sigmas, condition, state.maps, state.guidance)

    # The printed algorithm never moves x; the release does, by this step (PAPER.md, "Alg. 2").
    x0 = denoiser(state.x, jnp.full(state.x.shape[0], sigma))
    solver = model.config.sample.solver
    return Denoised(latents=x0, x=ode_step(denoiser, state.x, x0, sigma, sigma_next, solver))


def rebuild_object(
    model: Ouroboros,
    views: Float[Array, "b v H W 3"],
    cameras: Cameras,
    sigma: Float[Array, ""],
) -> Rebuilt:
    """Returns the object of a level's views, and what it feeds back. Only LGM is run.

    It is told how noisy the views may still be.
    """
    c_noise = edm.scalings(jnp.full(views.shape[0], sigma)).c_noise
    reconstruction = reconstruct(model, views, cameras, c_noise)
    maps = feedback_maps(model, reconstruction.rendering, cameras)
    return Rebuilt(reconstruction=reconstruction, maps=maps)


def handed_on(
    state: LoopState,
    denoised: Denoised,
    views: Float[Array, "b v H W 3"],
    rebuilt: Rebuilt,
    sample: SampleConfig,
) -> tuple[LoopState, Estimate]:
    """Returns what the parts of a level come to: what it hands on, and what it found."""
    maps = rebuilt.maps if sample.feedback else state.maps
    found = Estimate(latents=denoised.latents, views=views, reconstruction=rebuilt.reconstruction)
    return LoopState(x=denoised.x, maps=maps, guidance=state.guidance), found


def rebuild_level(
    model: Ouroboros,
    cameras: Cameras,
    state: LoopState,
    denoised: Denoised,
    sigma: Float[Array, ""],
) -> tuple[LoopState, Estimate]:
    """Returns what a level hands on and found, once its views are denoised."""
    views = decode_views(model, denoised.latents)
    rebuilt = rebuild_object(model, views, cameras, sigma)
    return handed_on(state, denoised, views, rebuilt, model.config.sample)


def level(
    model: Ouroboros,
    condition: Condition,
    cameras: Cameras,
    state: LoopState,
    sigma: Float[Array, ""],
    sigma_next: Float[Array, ""],
) -> tuple[LoopState, Estimate]:
    """Returns what one noise level of Algorithm 2 hands on, and what it found.

    It estimates the clean views, moves on to the next level, reconstructs the object, and replaces
    the feedback.
    """
    denoised = denoise_level(model, condition, cameras, state, sigma, sigma_next)
    return rebuild_level(model, cameras, state, denoised, sigma)


def noise_levels(sample: SampleConfig) -> Float[Array, " {sample.levels}+1"]:
    """Returns the noise levels of a sampling run, from high to low, and a closing 0."""
    return edm.sigma_schedule(sample.levels, sample.sigma_min, sample.sigma_max)


def reconstructing(sample: SampleConfig) -> Bool[np.ndarray, " {sample.levels}"]:
    """Returns which levels of a sampling run make an object; the last always does."""
    number = np.arange(sample.levels)
    return (number % sample.reconstruct_every == 0) | (number == sample.levels - 1)


sample_step = jax.jit(level)
"""`level`, compiled: one call a noise level, so that a script can show what happens."""

sample_prepare = jax.jit(prepare)
"""`prepare`, compiled."""


@jax.jit
def generate(
    model: Ouroboros, image: Float[Array, "b h w 3"], cameras: Cameras, key: Key[Array, ""]
) -> Estimate:
    """Returns what Algorithm 2 ends with: the last estimate, its object and its renders.

    All levels run in one compiled loop. `image` is on white and in [0, 1], `cameras` relative to
    its view. Differs from the printed algorithm, which never moves x: see PAPER.md, row "Alg. 2".
    """
    condition, state = prepare(model, image, key)
    sample = model.config.sample
    sigmas = noise_levels(sample)

    def step(carry: tuple[LoopState, Estimate], now):
        state, estimate = carry
        sigma, sigma_next, reconstructs = now
        denoised = denoise_level(model, condition, cameras, state, sigma, sigma_next)

        def rebuild(denoised: Denoised) -> tuple[LoopState, Estimate]:
            return rebuild_level(model, cameras, state, denoised, sigma)

        def keep(denoised: Denoised) -> tuple[LoopState, Estimate]:
            return dataclasses.replace(state, x=denoised.x), estimate

        # The denoiser runs at all levels, so it is outside of the choice, and compiled once.
        if sample.reconstruct_every == 1:
            return rebuild(denoised), None
        return jax.lax.cond(reconstructs, rebuild, keep, denoised), None

    # A scan's carry must have its final shapes from the start, so it begins with a zero estimate.
    given = (model, condition, cameras, state, sigmas[0], sigmas[1])
    _, like = jax.eval_shape(level, *given)
    empty = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
    levels = (sigmas[:-1], sigmas[1:], jnp.asarray(reconstructing(sample)))
    (_, estimate), _ = jax.lax.scan(step, (state, empty), levels)
    return estimate


@functools.partial(jax.jit, static_argnames="layout")
def generate_on_devices(
    model: Ouroboros,
    image: Float[Array, "b h w 3"],
    cameras: Cameras,
    key: Key[Array, ""],
    layout: Layout,
) -> Estimate:
    """Returns what `generate` does, for objects that lie on many devices.

    The model's parameters are sharded like a training state's average, by ZeRO stage 1. Each device
    has a key of its own, so that what is found depends on their number.
    """

    def own(model: Ouroboros, objects: tuple, key: Key[Array, ""]) -> Estimate:
        return generate(model, *objects, key)

    return on_own_objects(own, model, (image, cameras), key, layout)
