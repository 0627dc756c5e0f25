"""The training step: the gradient of a loss over all devices, and the optimizer's update."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from o3d_jax.config import Config, OptimConfig
from o3d_jax.nn.networks import Networks
from o3d_jax.parallel.layout import Layout
from o3d_jax.steps.draws import draw
from o3d_jax.steps.losses import LossTerms
from o3d_jax.steps.parts import part_loss
from o3d_jax.steps.sharded import mean_gradient
from o3d_jax.types import Batch, Frozen, Params, TrainState, pytree


@pytree
class StepReport:
    """What a training step tells about itself; the same on every device."""

    terms: LossTerms
    gradient_norm: Float[Array, ""]
    """Before clipping."""
    sigma: Float[Array, " b"] | None
    """Noise levels drawn, one an object; None where the part that trains has none."""
    is_finite: Bool[Array, ""]
    """Whether loss and gradient were; if not, the step changed nothing but its number."""
    is_last: Bool[Array, ""]
    """Whether any process asked to stop."""


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
    gradient, report = _gradient(
        state, frozen, batch, key, use_feedback, networks, config, layout, stop
    )
    return _next_state(state, gradient, report, config, optimizer, layout), report


@functools.partial(jax.jit, static_argnames=("use_feedback", "networks", "config", "layout"))
def train_step_gradient(
    state: TrainState,
    frozen: Frozen,
    batch: Batch,
    key: Key[Array, ""],
    *,
    use_feedback: bool,
    networks: Networks,
    config: Config,
    layout: Layout | None = None,
    stop: Bool[Array, " n"] | None = None,
) -> tuple[Params, StepReport]:
    """The first half of `train_step`, as a program of its own: gradient and report.

    XLA compiles the halves for CPUs in a third of the time and half of the memory of the whole.
    """
    return _gradient(state, frozen, batch, key, use_feedback, networks, config, layout, stop)


@functools.partial(
    jax.jit,
    static_argnames=("config", "optimizer", "layout"),
    donate_argnames="state",
)
def train_step_update(
    state: TrainState,
    gradient: Params,
    *,
    config: Config,
    optimizer: optax.GradientTransformation,
    layout: Layout | None = None,
) -> TrainState:
    """The second half of `train_step`: the next state, of a gradient that is finite.

    Whoever calls it looks at the report first. To choose here between old and new values, array by
    array, would treble what XLA needs to compile this for CPUs.
    """
    return _placed(_update(state, gradient, config, optimizer, layout), layout)


def _gradient(
    state: TrainState,
    frozen: Frozen,
    batch: Batch,
    key: Key[Array, ""],
    use_feedback: bool,
    networks: Networks,
    config: Config,
    layout: Layout | None,
    stop: Bool[Array, " n"] | None,
) -> tuple[Params, StepReport]:
    step_key = jax.random.fold_in(jax.random.fold_in(key, state.step), 0)
    draws = draw(config, batch.images.shape[0], step_key)

    loss = part_loss(networks, config, use_feedback)
    accumulate = config.train.accumulate
    parts = (batch, draws)
    gradient, terms = mean_gradient(loss, state.params, frozen, parts, accumulate, layout)

    norm = optax.tree.norm(gradient)
    report = StepReport(
        terms=terms,
        gradient_norm=norm,
        sigma=None if terms.diffusion is None else draws.sigma,
        is_finite=jnp.isfinite(terms.total) & jnp.isfinite(norm),
        is_last=jnp.zeros((), bool) if stop is None else jnp.any(stop),
    )
    if layout is None:
        return gradient, report
    # Left alone, XLA splits small arrays beside large ones, and the next step is compiled anew.
    places = layout.shardings(gradient, stage=2), jax.tree.map(lambda _: layout.whole, report)
    return jax.lax.with_sharding_constraint((gradient, report), places)


def _next_state(
    state: TrainState,
    gradient: Params,
    report: StepReport,
    config: Config,
    optimizer: optax.GradientTransformation,
    layout: Layout | None,
) -> TrainState:
    """The updated state; where the step is to be skipped, the old one but for its number."""
    is_finite = report.is_finite
    new_state = _update(state, gradient, config, optimizer, layout)
    new_state = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new_state, state)
    return _placed(dataclasses.replace(new_state, step=state.step + 1), layout)


def _placed(state: TrainState, layout: Layout | None) -> TrainState:
    if layout is None:
        return state
    return jax.lax.with_sharding_constraint(state, layout.of_state(state))


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
