"""Algorithm 1: joint training of the denoiser and the reconstruction model."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Key

from o3d_jax import edm
from o3d_jax.config import Config, OptimConfig
from o3d_jax.nn.networks import Networks, apply
from o3d_jax.nn.unet import MultiViewUnet
from o3d_jax.parallel.layout import Layout
from o3d_jax.steps.condition import ConditionDraws, drop_condition, encode_training_condition
from o3d_jax.steps.denoise import denoise, per_object
from o3d_jax.steps.reconstruct import (
    LATENTS,
    Reconstruction,
    decode_views,
    encode_views,
    feedback_maps,
    reconstruct,
)
from o3d_jax.steps.sharded import mean_gradient
from o3d_jax.types import Batch, Frozen, Maps, Params, TrainState, pytree

Video = Float[Array, "b v h w c"]


@pytree
class Draws:
    """All random numbers of one training step."""

    sigma: Float[Array, " b"]
    noise: Float[Array, "b v h w c"]
    posterior: Float[Array, "b v h w c"]
    """Standard normal, on the views' latents; used where these are sampled (release)."""
    condition: ConditionDraws


@pytree
class LossTerms:
    """What is logged of one step."""

    total: Float[Array, ""]
    diffusion: Float[Array, ""]
    """Eq. 5 with the weight of Eq. 11."""
    rgb_noisy: Float[Array, ""]
    """Color error of renders of the object made from noisy estimates (Eq. 2: mean square)."""
    rgb_clean: Float[Array, ""]
    """The same for the object made from true views, c_noise = 0 (Sec. 3.2)."""
    lpips_noisy: Float[Array, ""]
    lpips_clean: Float[Array, ""]


@pytree
class StepReport:
    """What a training step tells about itself; the same on every device."""

    terms: LossTerms
    gradient_norm: Float[Array, ""]
    """Before clipping."""
    sigma: Float[Array, " b"]
    """Noise levels drawn, one an object."""
    is_finite: Bool[Array, ""]
    """Whether loss and gradient were; if not, the step changed nothing but its number."""
    is_last: Bool[Array, ""]
    """Whether any process asked to stop."""


FEEDBACK_GRADIENTS: dict[str, Callable[[Maps], Maps]] = {
    "stopped": jax.lax.stop_gradient,  # Algorithm 1: self_cond.detach().
    "flows": lambda maps: maps,
}
"""By `DiffusionConfig.feedback_gradient`."""


def mean_square(a: Float[Array, "*s"], b: Float[Array, "*s"]) -> Float[Array, ""]:
    """The distance of colors in Eq. 2."""
    return jnp.mean((a - b) ** 2)


def mean_absolute(a: Float[Array, "*s"], b: Float[Array, "*s"]) -> Float[Array, ""]:
    """The distance of colors in the release."""
    return jnp.mean(jnp.abs(a - b))


COLOR_DISTANCES = {"mse": mean_square, "l1": mean_absolute}
"""By `OptimConfig.reconstruction_loss`."""


def draw(config: Config, batch: int, key: Key[Array, ""]) -> Draws:
    """Draws a step's random numbers."""
    model, diffusion = config.model, config.diffusion
    sigma_key, noise_key, views_key, condition_key = jax.random.split(key, 4)
    level_key, image_key, latents_key, drop_key = jax.random.split(condition_key, 4)
    image = (batch, model.image_size, model.image_size, 3)
    latents = (model.latent_size, model.latent_size, model.vae.latent_channels)
    views = (batch, model.num_views, *latents)
    condition = ConditionDraws(
        sigma=edm.draw_sigma(
            level_key, (batch,), diffusion.condition_p_mean, diffusion.condition_p_std
        ),
        noise=jax.random.normal(image_key, image, jnp.float32),
        posterior=jax.random.normal(latents_key, (batch, *latents), jnp.float32),
        dropout=jax.random.uniform(drop_key, (batch,), jnp.float32),
    )
    return Draws(
        sigma=edm.draw_sigma(sigma_key, (batch,), diffusion.p_mean, diffusion.p_std),
        noise=jax.random.normal(noise_key, views, jnp.float32),
        posterior=jax.random.normal(views_key, views, jnp.float32),
        condition=condition,
    )


def draw_coin(config: Config, step: int) -> bool:
    """Whether a step uses feedback: one coin a step, not an object, the same on every process.

    It is drawn on the host, without waiting for a device, and chooses between two compiled
    programs. A `lax.cond` inside one would do, but on CPUs XLA runs the gradients of convolutions
    in a conditional many times slower.
    """
    uniform = np.random.default_rng((config.seed, step)).random()
    return bool(uniform < config.diffusion.feedback_probability)


def train_loss(
    networks: Networks,
    config: Config,
    params: Params,
    frozen: Frozen,
    batch: Batch,
    draws: Draws,
    use_feedback: bool,
) -> tuple[Float[Array, ""], LossTerms]:
    """Algorithm 1. Returns the loss and its terms.

    One backward pass through F, always: with feedback the first pass carries no gradient and the
    second does, without feedback there is only the first. See PAPER.md, row "Alg. 1".
    """
    x, estimate = noised(networks, config, params, frozen, batch, draws)
    first = estimate(Maps.nothing(*batch.images.shape[:4]))
    if use_feedback:
        first = jax.lax.stop_gradient(first)
    noisy, clean = _reconstruct_both(networks, params, frozen, batch, first, draws.sigma)
    maps = feedback_maps(networks, noisy.rendering, batch.cameras)
    maps = FEEDBACK_GRADIENTS[config.diffusion.feedback_gradient](maps)
    pred_x = estimate(maps) if use_feedback else first
    diffusion = diffusion_loss(pred_x, x, draws.sigma)
    return _total(networks, config, frozen, batch, diffusion, noisy, clean)


def noised(
    networks: Networks,
    config: Config,
    params: Params,
    frozen: Frozen,
    batch: Batch,
    draws: Draws,
) -> tuple[Video, Callable[[Maps], Video]]:
    """Clean latents, and the estimate of them from noisy ones as a function of the feedback."""
    diffusion = config.diffusion
    posterior = draws.posterior.reshape(-1, *draws.posterior.shape[2:])
    latents_of = functools.partial(LATENTS[diffusion.training_latents], noise=posterior)
    x = encode_views(networks, frozen.vae, batch.images, latents_of)
    condition = encode_training_condition(
        networks, diffusion, params, frozen, batch.images[:, 0], draws.condition
    )
    condition = drop_condition(condition, draws.condition.dropout, diffusion.condition_dropout)
    noisy_x = x + per_object(draws.sigma, x) * draws.noise

    unet = one_at_a_time(networks.unet)

    def estimate(maps: Maps) -> Video:
        def network(*inputs):
            x_in, c_noise, given, feedback = inputs
            return apply(unet, params.unet, x_in, c_noise, given, batch.cameras, feedback)

        return denoise(network, noisy_x, draws.sigma, condition, maps)

    return x, estimate


def one_at_a_time(unet: MultiViewUnet) -> MultiViewUnet:
    """The denoiser for batches that are not guided, in which no video reads another's context."""
    return unet.clone(config=dataclasses.replace(unet.config, temporal_context="per_video"))


def diffusion_loss(estimate: Video, x: Video, sigma: Float[Array, " b"]) -> Float[Array, ""]:
    """Eq. 5 with the weight of Eq. 11."""
    return (per_object(edm.loss_weight(sigma), x) * (estimate - x) ** 2).mean()


def _reconstruct_both(
    networks: Networks,
    params: Params,
    frozen: Frozen,
    batch: Batch,
    estimate: Float[Array, "b v h w c"],
    sigma: Float[Array, " b"],
) -> tuple[Reconstruction, Reconstruction]:
    """Objects from noisy estimates and from the true views, in one pass of LGM."""
    decoded = decode_views(networks, frozen.vae, estimate)
    c_noise = edm.scalings(sigma).c_noise

    def join(a, b):
        return jnp.concatenate([a, b])

    both = reconstruct(
        networks,
        params.lgm,
        join(decoded, batch.images),
        jax.tree.map(join, batch.cameras, batch.cameras),
        join(c_noise, jnp.zeros_like(c_noise)),
    )
    count = sigma.shape[0]
    return jax.tree.map(lambda a: a[:count], both), jax.tree.map(lambda a: a[count:], both)


def _total(
    networks: Networks,
    config: Config,
    frozen: Frozen,
    batch: Batch,
    diffusion: Float[Array, ""],
    noisy: Reconstruction,
    clean: Reconstruction,
) -> tuple[Float[Array, ""], LossTerms]:
    optim, remat = config.optim, config.model.remat
    distance = COLOR_DISTANCES[optim.reconstruction_loss]
    rgb = [distance(r.rendering.rgb, batch.images) for r in (noisy, clean)]
    lpips = [jnp.zeros(()), jnp.zeros(())]
    if optim.lpips_weight > 0:
        lpips = [
            _lpips(networks, optim, frozen, r.rendering.rgb, batch.images, remat)
            for r in (noisy, clean)
        ]
    loss_noisy, loss_clean = (m + optim.lpips_weight * p for m, p in zip(rgb, lpips, strict=True))
    total = diffusion + optim.noisy_weight * loss_noisy + optim.clean_weight * loss_clean
    terms = LossTerms(
        total=total,
        diffusion=diffusion,
        rgb_noisy=rgb[0],
        rgb_clean=rgb[1],
        lpips_noisy=lpips[0],
        lpips_clean=lpips[1],
    )
    return total, terms


def _lpips(
    networks: Networks,
    optim: OptimConfig,
    frozen: Frozen,
    a: Float[Array, "b v h w 3"],
    b: Float[Array, "b v h w 3"],
    remat: bool,
) -> Float[Array, ""]:
    """Mean over all views; with `remat` one after another, each computed again for its gradient."""
    size = optim.lpips_size

    def fit(images):
        if images.shape[2] <= size:
            return images
        return jax.image.resize(images, (*images.shape[:2], size, size, 3), "linear")

    def of_views(a: Float[Array, "*b h w 3"], b: Float[Array, "*b h w 3"]) -> Float[Array, "*b"]:
        return apply(networks.lpips, frozen.lpips, a, b)

    a, b = fit(a), fit(b)
    if not remat:
        return of_views(a, b).mean()
    one_view = jax.checkpoint(lambda pair: of_views(*pair))
    return jax.lax.map(one_view, (a.reshape(-1, *a.shape[2:]), b.reshape(-1, *b.shape[2:]))).mean()


def learning_rate(optim: OptimConfig, steps: int) -> optax.Schedule:
    """By the number of steps taken before, skipped ones not counted."""
    if optim.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0, optim.learning_rate, optim.warmup_steps, steps, optim.learning_rate / 20
        )
    if optim.warmup_steps:
        return optax.schedules.warmup_constant_schedule(
            0.0, optim.learning_rate, optim.warmup_steps
        )
    return optax.schedules.constant_schedule(optim.learning_rate)


def make_optimizer(optim: OptimConfig, steps: int) -> optax.GradientTransformation:
    """AdamW after clipping the global norm (Sec. 4.1)."""
    return optax.chain(
        optax.clip_by_global_norm(optim.clip_norm),
        optax.adamw(learning_rate(optim, steps), weight_decay=optim.weight_decay),
    )


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; the average starts at the parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),  # pyright: ignore[reportArgumentType]
    )


@functools.partial(
    jax.jit,
    static_argnames=("use_feedback", "networks", "config", "optimizer", "layout"),
    donate_argnames="state",
)
def train_step(
    state: TrainState,
    frozen: Frozen,
    batch: Batch,
    key: Key[Array, ""],
    *,
    use_feedback: bool,
    networks: Networks,
    config: Config,
    optimizer: optax.GradientTransformation,
    layout: Layout | None = None,
    stop: Bool[Array, " n"] | None = None,
) -> tuple[TrainState, StepReport]:
    """One step of Algorithm 1: the next state, and what there is to say of the step.

    `key` is the run's key; the step number is folded in. `use_feedback` is `draw_coin`'s. State and
    frozen networks lie as `layout` says, and so does the next state; None is for one device.
    `stop` has a value from every process, which asks to stop or doesn't. Where the loss or the
    gradient is not finite, the next state is the last but for its number.
    """
    step_key = jax.random.fold_in(jax.random.fold_in(key, state.step), 0)
    draws = draw(config, batch.images.shape[0], step_key)

    def loss(
        params: Params, frozen: Frozen, part: tuple[Batch, Draws]
    ) -> tuple[Float[Array, ""], LossTerms]:
        return train_loss(networks, config, params, frozen, *part, use_feedback)

    accumulate = config.train.accumulate
    parts = (batch, draws)
    gradient, terms = mean_gradient(loss, state.params, frozen, parts, accumulate, layout)
    norm = optax.tree.norm(gradient)
    is_finite = jnp.isfinite(terms.total) & jnp.isfinite(norm)
    new_state = _update(state, gradient, config, optimizer, layout)
    new_state = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new_state, state)
    new_state = dataclasses.replace(new_state, step=state.step + 1)
    report = StepReport(
        terms=terms,
        gradient_norm=norm,
        sigma=draws.sigma,
        is_finite=is_finite,
        is_last=jnp.zeros((), bool) if stop is None else jnp.any(stop),
    )
    if layout is None:
        return new_state, report
    # Left alone, XLA splits small arrays beside large ones, and the next step is compiled anew.
    places = layout.of_state(new_state), jax.tree.map(lambda _: layout.whole, report)
    return jax.lax.with_sharding_constraint((new_state, report), places)


def _update(
    state: TrainState,
    gradient: Params,
    config: Config,
    optimizer: optax.GradientTransformation,
    layout: Layout | None,
) -> TrainState:
    """The state after the optimizer's step, and the average with it.

    From stage 1 on each device makes its share of both, then the parameters are put together.
    """

    def share(tree: Any) -> Any:
        if layout is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, layout.shardings(tree, stage=1))

    before = share(state.params)
    updates, opt_state = optimizer.update(share(gradient), state.opt_state, before)
    params: Any = share(optax.apply_updates(before, updates))
    count = state.step.astype(jnp.float32)
    decay = jnp.minimum(config.optim.ema_decay, (1 + count) / (10 + count))
    ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, params)
    return TrainState(step=state.step + 1, params=params, ema=ema, opt_state=opt_state)
