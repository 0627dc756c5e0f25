"""The training step: the gradient of a loss over all devices, and the optimizer's update."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Bool, Float, Key

from o3d_jax.config import Config, OptimConfig
from o3d_jax.nn.networks import Networks, Ouroboros
from o3d_jax.parallel.layout import Layout
from o3d_jax.steps.draws import draw
from o3d_jax.steps.losses import LossTerms
from o3d_jax.steps.parts import part_loss
from o3d_jax.steps.sharded import mean_gradient
from o3d_jax.types import Batch, Frozen, Params, TrainState, pytree


@dataclasses.dataclass(frozen=True)
class Training:
    """All of a training that is no array: hashable, a static argument of `jax.jit`."""

    config: Config
    networks: Networks
    optimizer: optax.GradientTransformation
    layout: Layout | None = None
    """Where arrays lie; None is for one device."""

    @property
    def on_devices(self) -> Layout:
        """The layout, for what runs on many devices only."""
        if self.layout is None:
            raise ValueError("this training has no layout; make_layout makes one")
        return self.layout

    def model(self, params: Params, frozen: Frozen) -> Ouroboros:
        """Returns the model with these parameters."""
        return Ouroboros(networks=self.networks, config=self.config, params=params, frozen=frozen)


@pytree
class StepInputs:
    """What a training step reads besides the state and the frozen networks."""

    batch: Batch
    key: Key[Array, ""]
    """The run's: the number of the step is folded in."""
    stop: Bool[Array, " n"] | None = None
    """One value from every device's process, which asks to stop or doesn't."""


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
    """Returns the learning rate by the number of steps taken before; skipped ones don't count."""
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
    """Returns AdamW after clipping of the global norm (Sec. 4.1), or Muon in AdamW's place."""
    update = OPTIMIZERS[optim.optimizer](optim, learning_rate(optim, steps))
    return optax.chain(optax.clip_by_global_norm(optim.clip_norm), update)


def _adamw(optim: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(rate, weight_decay=optim.weight_decay, mu_dtype=optim.first_moment)


def _muon(optim: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Returns Muon with updates as large as AdamW's, so that the same learning rate serves both.

    They are scaled as in Liu et al. (2025), "Muon is Scalable for LLM Training", Sec. 2.2.
    """
    return optax.contrib.muon(
        rate,
        weight_decay=optim.weight_decay,
        adam_weight_decay=optim.weight_decay,
        mu_dtype=optim.first_moment,
        muon_weight_dimension_numbers=kernel_matrices,
        consistent_rms=0.2,
    )


OPTIMIZERS = {"adamw": _adamw, "muon": _muon}
"""The choices of `OptimConfig.optimizer`."""

FEWEST_CHANNELS = 8
"""Kernels with fewer channels on a side, which read images or rays or make latents, are AdamW's:
their matrices are too flat to gain from it. So was `nano` trained."""


def kernel_matrices(params: Any) -> Any:
    """Returns how Muon sees each array: as matrices of in x out if it is a kernel, else None.

    A kernel of 3 x 3 pixels is nine such matrices.
    """

    def matrices(
        path: Any, array: Float[Array, "..."]
    ) -> optax.contrib.MuonDimensionNumbers | None:
        is_kernel = array.ndim >= 2 and path[-1] == jax.tree_util.DictKey("kernel")
        if not is_kernel or min(array.shape[-2:]) < FEWEST_CHANNELS:
            return None
        return optax.contrib.MuonDimensionNumbers(array.ndim - 2, array.ndim - 1)

    return jax.tree_util.tree_map_with_path(matrices, params)


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step; the average starts at the parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),  # pyright: ignore[reportArgumentType]
    )


@functools.partial(jax.jit, static_argnames=("training", "use_feedback"), donate_argnames="state")
def train_step(
    training: Training,
    state: TrainState,
    frozen: Frozen,
    given: StepInputs,
    *,
    use_feedback: bool,
) -> tuple[TrainState, StepReport]:
    """Takes one step of Algorithm 1: returns the next state, and a report of the step.

    `use_feedback` is `draw_coin`'s. State and frozen networks lie as the layout says, and so does
    the next state. Where the loss or the gradient is not finite, the next state is the last but for
    its number.
    """
    gradient, report = _gradient(training, state, frozen, given, use_feedback)
    return _next_state(training, state, gradient, report), report


@functools.partial(jax.jit, static_argnames=("training", "use_feedback"))
def train_step_gradient(
    training: Training,
    state: TrainState,
    frozen: Frozen,
    given: StepInputs,
    *,
    use_feedback: bool,
) -> tuple[Params, StepReport]:
    """Returns gradient and report: the first half of `train_step`, as a program of its own.

    XLA compiles the halves for CPUs in a third of the time and half of the memory of the whole.
    """
    return _gradient(training, state, frozen, given, use_feedback)


@functools.partial(jax.jit, static_argnames="training", donate_argnames="state")
def train_step_update(training: Training, state: TrainState, gradient: Params) -> TrainState:
    """Returns the next state for a gradient that is finite: the second half of `train_step`.

    Whoever calls it looks at the report first. To choose here between old and new values, array by
    array, would treble what XLA needs to compile this for CPUs.
    """
    state = _on_device(state, training.layout)
    return _placed(_update(training, state, gradient), training.layout)


def _gradient(
    training: Training, state: TrainState, frozen: Frozen, given: StepInputs, use_feedback: bool
) -> tuple[Params, StepReport]:
    config, layout = training.config, training.layout
    step_key = jax.random.fold_in(jax.random.fold_in(given.key, state.step), 0)
    draws = draw(config, given.batch.images.shape[0], step_key)

    loss = part_loss(training.networks, config, use_feedback)
    parts = (given.batch, draws)
    gradient, terms = mean_gradient(
        loss, state.params, frozen, parts, config.train.accumulate, layout
    )

    norm = optax.tree.norm(gradient)
    report = StepReport(
        terms=terms,
        gradient_norm=norm,
        sigma=None if terms.diffusion is None else draws.sigma,
        is_finite=jnp.isfinite(terms.total) & jnp.isfinite(norm),
        is_last=jnp.zeros((), bool) if given.stop is None else jnp.any(given.stop),
    )
    if layout is None:
        return gradient, report

    # Left alone, XLA splits small arrays beside large ones, and the next step is compiled anew.
    places = layout.shardings(gradient, stage=2), jax.tree.map(lambda _: layout.whole, report)
    return jax.lax.with_sharding_constraint((gradient, report), places)


def _next_state(
    training: Training, state: TrainState, gradient: Params, report: StepReport
) -> TrainState:
    """Returns the updated state, or where the step is skipped the old one but for its number."""
    is_finite = report.is_finite
    state = _on_device(state, training.layout)
    new_state = _update(training, state, gradient)
    new_state = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new_state, state)
    return _placed(dataclasses.replace(new_state, step=state.step + 1), training.layout)


def _on_device(state: TrainState, layout: Layout | None) -> TrainState:
    """Brings the optimizer's state to where it is updated, from where `_placed` put it."""
    if layout is None or not layout.offload_optimizer:
        return state
    places = layout.of_optimizer(state.opt_state, at_rest=False)
    return dataclasses.replace(state, opt_state=jax.device_put(state.opt_state, places))


def _placed(state: TrainState, layout: Layout | None) -> TrainState:
    if layout is None:
        return state
    in_use = dataclasses.replace(layout, offload_optimizer=False)
    state = jax.lax.with_sharding_constraint(state, in_use.of_state(state))
    if not layout.offload_optimizer:
        return state

    # A constraint says on which devices an array lies, but not in which memory.
    places = layout.of_optimizer(state.opt_state, at_rest=True)
    return dataclasses.replace(state, opt_state=jax.device_put(state.opt_state, places))


def _update(training: Training, state: TrainState, gradient: Params) -> TrainState:
    """Returns the state after the optimizer's step, and the average with it.

    From stage 1 on each device makes its share of both, then the parameters are put together.
    """
    layout = training.layout

    def share(tree: Any) -> Any:
        if layout is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, layout.shardings(tree, stage=1))

    before = share(state.params)
    updates, opt_state = training.optimizer.update(share(gradient), state.opt_state, before)
    params: Any = share(optax.apply_updates(before, updates))

    # By hand: optax.incremental_update takes 1 - decay, whose rounding at 0.9999 is felt in decay.
    count = state.step.astype(jnp.float32)
    decay = jnp.minimum(training.config.optim.ema_decay, (1 + count) / (10 + count))
    ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, params)
    return TrainState(step=state.step + 1, params=params, ema=ema, opt_state=opt_state)
