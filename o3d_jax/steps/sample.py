"""Algorithm 2: sampling with 3D-aware feedback."""

import functools
from collections.abc import Callable

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from o3d_jax import edm
from o3d_jax.config import Config, SampleConfig
from o3d_jax.nn.networks import Networks, apply
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
from o3d_jax.types import Cameras, Condition, Frozen, Maps, Params, pytree

Video = Float[Array, "b v h w c"]
Denoiser = Callable[[Video, Float[Array, " b"], Maps], Video]

SOLVERS = {"euler": diffrax.Euler(), "heun": diffrax.Heun()}


@pytree
class Estimate:
    """What one noise level found."""

    views: Float[Array, "b v H W 3"]
    """The clean estimate, decoded; about [0, 1]."""

    reconstruction: Reconstruction
    """The object made from `views`; its rendering guides the next level."""


@pytree
class LoopState:
    """What one noise level hands to the next."""

    x: Float[Array, "b v h w c"]
    """Noisy latents, scaled."""

    maps: Maps
    """Feedback for the next estimate."""


def ode_step(
    denoiser: Denoiser,
    x: Float[Array, "b v h w c"],
    x0: Float[Array, "b v h w c"],
    maps: Maps,
    sigma: Float[Array, ""],
    sigma_next: Float[Array, ""],
    solver: diffrax.AbstractSolver,
) -> Float[Array, "b v h w c"]:
    """One solver step of the ODE of Eq. 3 from sigma to sigma_next, the feedback held fixed.

    With D the denoiser, Eqs. 3 and 4 give dx/dsigma = (x - D(x; sigma)) / sigma. The slope at
    the start needs no further evaluation: `x0` is D(x; sigma). At sigma 0 the slope of the start
    stands in, which makes Heun's last step an Euler step (Karras et al. 2022, Algorithm 1).
    """
    first_slope = (x - x0) / sigma

    def slope(sigma_stage, x_stage, _):
        if isinstance(solver, diffrax.Euler):  # Its only stage; spares compiling F once more.
            return first_slope

        def fresh():
            sigmas = jnp.full(x.shape[0], sigma_stage)
            return (x_stage - denoiser(x_stage, sigmas, maps)) / sigma_stage

        known = (sigma_stage == sigma) | (sigma_stage == 0)
        return jax.lax.cond(known, lambda: first_slope, fresh)

    term = diffrax.ODETerm(slope)
    start = solver.init(term, sigma, sigma_next, x, None)
    x_next, *_ = solver.step(term, sigma, sigma_next, x, None, start, made_jump=False)
    return x_next


def prepare(
    networks: Networks,
    config: Config,
    params: Params,
    frozen: Frozen,
    image: Float[Array, "b h w 3"],
    key: Key[Array, ""],
) -> tuple[Condition, LoopState]:
    """The condition of an input image, and pure noise with no feedback."""
    noise_key, condition_key = jax.random.split(key)
    model, b = config.model, image.shape[0]
    noise = jax.random.normal(condition_key, image.shape, jnp.float32)
    noise_std = jnp.full((b,), config.sample.condition_noise, jnp.float32)
    condition = encode_condition(
        networks, config.diffusion, params, frozen, image, noise, noise_std
    )
    shape = (b, model.num_views, model.latent_size, model.latent_size, model.vae.channels)
    x = edm.initial_deviation(config.sample.sigma_max) * jax.random.normal(
        noise_key, shape, jnp.float32
    )
    return condition, LoopState(x=x, maps=Maps.nothing(b, model.num_views, *image.shape[1:3]))


def level(
    networks: Networks,
    config: Config,
    params: Params,
    frozen: Frozen,
    condition: Condition,
    cameras: Cameras,
    state: LoopState,
    sigma: Float[Array, ""],
    sigma_next: Float[Array, ""],
) -> tuple[LoopState, Estimate]:
    """One noise level of Algorithm 2: estimate, reconstruct, move on, replace the feedback."""
    sample = config.sample

    def network(x, c_noise, given, maps):
        twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), cameras)
        return apply(networks.unet, params.unet, x, c_noise, given, twice, maps)

    guidance = guidance_scale(config.model.num_views, sample.min_guidance, sample.max_guidance)

    def denoiser(x, sigmas, maps):
        return denoise_guided(network, x, sigmas, condition, maps, guidance)

    sigmas = jnp.full(state.x.shape[0], sigma)
    x0 = denoiser(state.x, sigmas, state.maps)
    views = decode_views(networks, frozen.vae, x0)
    c_noise = edm.scalings(sigmas).c_noise
    reconstruction = reconstruct(networks, params.lgm, views, cameras, c_noise)
    x = ode_step(denoiser, state.x, x0, state.maps, sigma, sigma_next, SOLVERS[sample.solver])
    maps = state.maps
    if sample.feedback:
        maps = feedback_maps(networks, reconstruction.rendering, cameras)
    return LoopState(x=x, maps=maps), Estimate(views=views, reconstruction=reconstruction)


def noise_levels(sample: SampleConfig) -> Float[Array, " {sample.levels}+1"]:
    """The levels of a run, and a closing 0."""
    return edm.sigma_schedule(sample.levels, sample.sigma_min, sample.sigma_max)


sample_step = functools.partial(jax.jit, static_argnames=("networks", "config"))(level)
"""`level`, compiled: one call a noise level, so that a script can show what happens."""

sample_prepare = functools.partial(jax.jit, static_argnames=("networks", "config"))(prepare)
"""`prepare`, compiled."""


@functools.partial(jax.jit, static_argnames=("networks", "config"))
def generate(
    networks: Networks,
    config: Config,
    params: Params,
    frozen: Frozen,
    image: Float[Array, "b h w 3"],
    cameras: Cameras,
    key: Key[Array, ""],
) -> Estimate:
    """Algorithm 2 in one compiled loop: the last estimate, its object and its renders.

    `image` is on white and in [0, 1], `cameras` relative to its view. Differs from the printed
    algorithm, which never moves x: see PAPER.md, row "Alg. 2".
    """
    condition, state = prepare(networks, config, params, frozen, image, key)
    sigmas = noise_levels(config.sample)

    def step(carry: tuple[LoopState, Estimate], pair):
        state, _ = carry
        return level(
            networks, config, params, frozen, condition, cameras, state, pair[0], pair[1]
        ), None

    like = jax.eval_shape(
        lambda s: level(
            networks, config, params, frozen, condition, cameras, s, sigmas[0], sigmas[1]
        )[1],
        state,
    )
    empty = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
    (_, estimate), _ = jax.lax.scan(step, (state, empty), (sigmas[:-1], sigmas[1:]))
    return estimate


@functools.partial(jax.jit, static_argnames=("networks", "config", "layout"))
def generate_on_devices(
    networks: Networks,
    config: Config,
    params: Params,
    frozen: Frozen,
    image: Float[Array, "b h w 3"],
    cameras: Cameras,
    key: Key[Array, ""],
    layout: Layout,
) -> Estimate:
    """`generate` of objects that lie on many devices; `params` lie as a training state's average.

    Each device has a key of its own, so that what is found depends on their number.
    """

    def own(params: Params, frozen: Frozen, objects: tuple, key: Key[Array, ""]) -> Estimate:
        return generate(networks, config, params, frozen, *objects, key)

    return on_own_objects(own, params, frozen, (image, cameras), key, layout)
