"""The compiled programs of a training run, made before its first step or for a machine elsewhere.

Made in advance, they show at once whether they fit, nothing is compiled while training runs, and a
signal that comes while they are made finds nothing to lose.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key

from o3d_jax.config import Config
from o3d_jax.nn.networks import Networks, init_networks
from o3d_jax.parallel.layout import Layout
from o3d_jax.parallel.shards import gather, place
from o3d_jax.run.flops import count_jaxpr, train_step_flops
from o3d_jax.run.heldout import HeldOutFigures, heldout_figures_on_devices
from o3d_jax.steps.draws import feedback_share
from o3d_jax.steps.parts import split_parts
from o3d_jax.steps.sample import Estimate, generate_on_devices
from o3d_jax.steps.train import (
    StepReport,
    init_state,
    train_step,
    train_step_gradient,
    train_step_update,
)
from o3d_jax.types import Batch, Cameras, Frozen, TrainState, pytree


@pytree
class Inputs:
    """All that a step or the sampler reads, as shapes with places or as arrays."""

    state: TrainState
    frozen: Frozen
    batch: Batch
    key: Any
    """Key[Array, ""], the run's."""
    stop: Any
    """Bool[Array, " n"], one a device."""


@dataclasses.dataclass(frozen=True)
class System:
    """What is to be compiled, and for what."""

    config: Config
    networks: Networks
    optimizer: optax.GradientTransformation
    layout: Layout

    def inputs(self) -> Inputs:
        """Shapes and places of a step's inputs."""
        config, layout = self.config, self.layout

        def state_and_frozen(key: Key[Array, ""]) -> tuple[TrainState, Frozen]:
            trained = config.train.train_image_encoder
            made = init_networks(self.networks, config.model, key, trained)
            params, frozen = split_parts(config.train.part, *made)
            return init_state(params, self.optimizer), frozen

        key = jax.eval_shape(lambda: jax.random.key(0))
        state, frozen = jax.eval_shape(state_and_frozen, key)
        batch = batch_shapes(config, config.train.batch_size)
        return Inputs(
            state=_at(state, layout.of_state(state)),
            frozen=_at(frozen, layout.of_frozen(frozen)),
            batch=_at(batch, jax.tree.map(lambda _: layout.batch, batch)),
            key=_at(key, layout.whole),
            stop=jax.ShapeDtypeStruct((layout.devices,), bool, sharding=layout.batch),
        )

    def trace_step(self, inputs: Inputs, use_feedback: bool) -> jax.stages.Traced:
        """`train_step` on one side of the coin."""
        return train_step.trace(
            inputs.state,
            inputs.frozen,
            inputs.batch,
            inputs.key,
            use_feedback=use_feedback,
            networks=self.networks,
            config=self.config,
            optimizer=self.optimizer,
            layout=self.layout,
            stop=inputs.stop,
        )

    def trace_gradient(self, inputs: Inputs, use_feedback: bool) -> jax.stages.Traced:
        """`train_step_gradient` on one side of the coin."""
        return train_step_gradient.trace(
            inputs.state,
            inputs.frozen,
            inputs.batch,
            inputs.key,
            use_feedback=use_feedback,
            networks=self.networks,
            config=self.config,
            layout=self.layout,
            stop=inputs.stop,
        )

    def trace_update(self, inputs: Inputs, gradient: jax.stages.Traced) -> jax.stages.Traced:
        """`train_step_update` of what a traced gradient's program returns."""
        found, _ = gradient.out_info
        return train_step_update.trace(
            inputs.state,
            _at(found, self.layout.shardings(found, stage=2)),
            config=self.config,
            optimizer=self.optimizer,
            layout=self.layout,
        )

    def trace_sampler(self, inputs: Inputs, objects: int) -> jax.stages.Traced:
        """`generate_on_devices` of so many objects, a multiple of the devices."""
        return generate_on_devices.trace(
            self.networks,
            self.config,
            inputs.state.ema,
            inputs.frozen,
            *self.sampler_objects(objects),
            inputs.key,
            self.layout,
        )

    def trace_figures(self, inputs: Inputs, objects: int) -> jax.stages.Traced:
        """`heldout_figures_on_devices` of so many objects, a multiple of the devices."""
        batch = batch_shapes(self.config, objects)
        return heldout_figures_on_devices.trace(
            self.networks,
            self.config,
            inputs.state.ema,
            inputs.frozen,
            _at(batch, jax.tree.map(lambda _: self.layout.batch, batch)),
            inputs.key,
            self.layout,
        )

    def sampler_objects(self, objects: int) -> tuple[Any, Cameras]:
        """Shapes and places of the images and cameras that the sampler takes."""
        batch = batch_shapes(self.config, objects)
        batch = _at(batch, jax.tree.map(lambda _: self.layout.batch, batch))
        shape = (objects, *batch.images.shape[2:])
        image = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=self.layout.batch)
        return image, batch.cameras


def batch_shapes(config: Config, objects: int) -> Batch:
    """The shapes of a batch."""
    views, size = config.model.num_views, config.model.image_size

    def batch() -> Batch:
        poses, lenses = jnp.zeros((objects, views, 4, 4)), jnp.zeros((objects, views, 3, 3))
        cameras = Cameras(camera_to_world=poses, intrinsics=lenses)
        images, alpha = (jnp.zeros((objects, views, size, size, c)) for c in (3, 1))
        return Batch(images=images, cameras=cameras, alpha=alpha)

    return jax.eval_shape(batch)


def _at(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings
    )


@dataclasses.dataclass(frozen=True)
class Halves:
    """A training step as two programs, one after the other."""

    gradient: jax.stages.Compiled
    update: jax.stages.Compiled

    def __call__(
        self, state: TrainState, frozen: Frozen, batch: Batch, key: Key[Array, ""], *, stop: Any
    ) -> tuple[TrainState, StepReport]:
        """As `train_step`; the state is used up."""
        gradient, report = self.gradient(state, frozen, batch, key, stop=stop)
        if not report.is_finite:  # Waits for the gradient, on whose devices nothing could overlap.
            return dataclasses.replace(state, step=state.step + 1), report
        return self.update(state, gradient), report

    def memory_analysis(self) -> Any:
        """The gradient's, by far the larger."""
        return self.gradient.memory_analysis()


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is found out about held-out objects, on the host; rows are objects."""

    figures: HeldOutFigures
    sampled: Estimate | None
    """What the sampler makes of the inputs; None if it was not asked, or one part trains alone."""


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled programs of a run."""

    steps: dict[bool, jax.stages.Compiled | Halves]
    """By the coin: without feedback, with it."""
    step_flops: int
    """Model FLOPs of a step on all devices, the mean over the coin."""
    figures: jax.stages.Compiled
    sampler: jax.stages.Compiled | None
    """None where one part trains alone."""
    heldout: Batch
    """What is evaluated, on the host."""
    layout: Layout

    @property
    def largest_step(self) -> jax.stages.Compiled | Halves:
        """The step that needs more memory: with feedback, if that can come up."""
        return self.steps.get(True) or self.steps[False]

    def evaluate(self, state: TrainState, frozen: Frozen, sample: bool = True) -> Evaluation:
        """Returns figures of the average on the held-out objects, and if asked what it samples."""
        parts = list(_chunks(self.heldout, self.layout.devices))
        figures, sampled = [], []
        for number, (part, count) in enumerate(parts):
            batch = place(part, jax.tree.map(lambda _: self.layout.batch, part))
            # The same noise at each evaluation, so that figures and pictures compare.
            key = place(jax.random.key(number), self.layout.whole)
            found = self.figures(state.ema, frozen, batch, key)
            figures.append(_first(gather(found), count))
            if sample and self.sampler is not None:
                made = self.sampler(state.ema, frozen, batch.images[:, 0], batch.cameras, key)
                sampled.append(_first(gather(made), count))
        return Evaluation(figures=_joined(figures), sampled=_joined(sampled) if sampled else None)


OBJECTS_AT_A_TIME = 4
"""Objects that a device evaluates at a time, at most."""


def _chunk_size(objects: int, devices: int) -> int:
    """Objects in a chunk over all devices: no more than are needed."""
    rows = math.ceil(objects / devices)
    return devices * min(rows, OBJECTS_AT_A_TIME)


def _chunks(heldout: Batch, devices: int) -> Iterator[tuple[Batch, int]]:
    """Equal parts of the objects, and how many count: the last part is filled with repetitions."""
    total = heldout.images.shape[0]
    size = _chunk_size(total, devices)
    for start in range(0, total, size):
        rows = np.arange(start, start + size) % total
        yield jax.tree.map(lambda a, rows=rows: a[rows], heldout), min(size, total - start)


def _first(tree: Any, count: int) -> Any:
    return jax.tree.map(lambda a: a[:count], tree)


def _joined(parts: list[Any]) -> Any:
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def compile_programs(system: System, heldout: Batch) -> Programs:
    """Compiles what a run needs: a step for each side of the coin that can come up, evaluations."""
    config, inputs = system.config, system.inputs()
    share, is_joint = feedback_share(config), config.train.part == "joint"
    sides = [side for side, chance in ((False, 1 - share), (True, share)) if chance > 0]

    # XLA compiles the halves of a step for CPUs in less time and memory than the whole.
    is_on_cpu = system.layout.mesh.devices.flat[0].platform == "cpu"
    trace = system.trace_gradient if is_on_cpu else system.trace_step
    traced = {side: trace(inputs, side) for side in sides}
    steps: dict[bool, Any] = {side: each.lower().compile() for side, each in traced.items()}
    if is_on_cpu:
        update = system.trace_update(inputs, traced[sides[0]]).lower().compile()
        steps = {side: Halves(gradient, update) for side, gradient in steps.items()}

    objects = _chunk_size(heldout.images.shape[0], system.layout.devices)
    figures = system.trace_figures(inputs, objects)
    sampler = system.trace_sampler(inputs, objects).lower().compile() if is_joint else None
    return Programs(
        steps=steps,
        step_flops=_step_flops(system, traced),
        figures=figures.lower().compile(),
        sampler=sampler,
        heldout=heldout,
        layout=system.layout,
    )


def _step_flops(system: System, steps: dict[bool, jax.stages.Traced]) -> int:
    """Without those of layers that are computed anew, which need a trace of their own."""
    config = system.config
    if config.model.remat:
        return train_step_flops(config, system.networks).total
    share = feedback_share(config)
    weights = {False: 1 - share, True: share}
    counted = (weights[side] * count_jaxpr(traced.jaxpr).total for side, traced in steps.items())
    return round(sum(counted))
