"""Algorithm 2: sampling with 3D-aware feedback."""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from o3d_jax import edm
from o3d_jax.config import SampleConfig
from o3d_jax.nn.networks import Ouroboros, apply
from o3d_jax.parallel.layout import Layout
from o3d_jax.steps.condition import encode_condition
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
    noise_key, condition_key = jax.random.split(key)
    sizes, sample, b = model.config.model, model.config.sample, image.shape[0]

    noise = jax.random.normal(condition_key, image.shape, jnp.float32)
    noise_std = jnp.full((b,), sample.condition_noise, jnp.float32)
    condition = encode_condition(model, image, noise, noise_std)

    shape = (b, sizes.num_views, sizes.latent_size, sizes.latent_size, sizes.vae.channels)
    deviation = edm.initial_deviation(sample.sigma_max)
    x = deviation * jax.random.normal(noise_key, shape, jnp.float32)
    maps = Maps.nothing(b, sizes.num_views, *image.shape[1:3])
    guidance = guidance_scale(sizes.num_views, sample.min_guidance, sample.max_guidance)
    return condition, LoopState(x=x, maps=maps, guidance=guidance)


def level(
    model: Ouroboros,
    condition: Condition,
    cameras: Cameras,
    state: LoopState,
    sigma: Float[Array, ""],
    sigma_next: Float[Array, ""],
) -> tuple[LoopState, Estimate]:
    """Returns what one noise level of Algorithm 2 hands on, and what it found.

    It estimates the clean views, reconstructs the object, moves on to the next level, and replaces
    the feedback.
    """
    sample = model.config.sample

    def network(x, c_noise, given, maps):
        twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), cameras)
        return apply(model.networks.unet, model.params.unet, x, c_noise, given, twice, maps)

    # The feedback holds for a level: a solver of several stages sees the same object in all.
    def denoiser(x, sigmas):
        return denoise_guided(network, x, sigmas, condition, state.maps, state.guidance)

    # x0 becomes images, and these an object, which is told how noisy they may still be.
    sigmas = jnp.full(state.x.shape[0], sigma)
    x0 = denoiser(state.x, sigmas)
    views = decode_views(model, x0)
    c_noise = edm.scalings(sigmas).c_noise
    reconstruction = reconstruct(model, views, cameras, c_noise)

    # The printed algorithm never moves x; the release does, by this step (PAPER.md, "Alg. 2").
    x = ode_step(denoiser, state.x, x0, sigma, sigma_next, sample.solver)
    maps = state.maps
    if sample.feedback:
        maps = feedback_maps(model, reconstruction.rendering, cameras)
    found = Estimate(latents=x0, views=views, reconstruction=reconstruction)
    return LoopState(x=x, maps=maps, guidance=state.guidance), found


def noise_levels(sample: SampleConfig) -> Float[Array, " {sample.levels}+1"]:
    """Returns the noise levels of a sampling run, from high to low, and a closing 0."""
    return edm.sigma_schedule(sample.levels, sample.sigma_min, sample.sigma_max)


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
    sigmas = noise_levels(model.config.sample)

    def one_level(state: LoopState, sigma, sigma_next) -> tuple[LoopState, Estimate]:
        return level(model, condition, cameras, state, sigma, sigma_next)

    def step(carry: tuple[LoopState, Estimate], pair):
        return one_level(carry[0], *pair), None

    # A scan's carry must have its final shapes from the start, so it begins with a zero estimate.
    _, like = jax.eval_shape(one_level, state, sigmas[0], sigmas[1])
    empty = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
    (_, estimate), _ = jax.lax.scan(step, (state, empty), (sigmas[:-1], sigmas[1:]))
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
