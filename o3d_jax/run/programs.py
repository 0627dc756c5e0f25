"""The compiled programs of a training run, made before its first step or for a machine elsewhere.

Made in advance, they show at once whether they fit, nothing is compiled while training runs, and a
signal that comes while they are made finds nothing to lose.
"""

import dataclasses
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
from o3d_jax.steps.sample import Estimate, generate_on_devices
from o3d_jax.steps.train import init_state, train_step
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
            params, frozen = init_networks(self.networks, config.model, key, trained)
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
        return Batch(images=jnp.zeros((objects, views, size, size, 3)), cameras=cameras)

    return jax.eval_shape(batch)


def _at(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings
    )


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled programs of a run."""

    steps: dict[bool, jax.stages.Compiled]
    """By the coin: without feedback, with it."""
    step_flops: int
    """Model FLOPs of a step on all devices, the mean over the coin."""
    sampler: jax.stages.Compiled
    heldout: Batch
    """What the sampler is shown, on the host."""
    layout: Layout

    @property
    def largest_step(self) -> jax.stages.Compiled:
        """The step that needs more memory: with feedback, if that can come up."""
        return self.steps[max(self.steps)]

    def evaluate(self, state: TrainState, frozen: Frozen) -> Estimate:
        """What the average makes of the held-out objects, on the host."""
        images, cameras = self.heldout.images[:, 0], self.heldout.cameras
        count = images.shape[0]
        rows = np.arange(-(-count // self.layout.devices) * self.layout.devices) % count
        objects = jax.tree.map(lambda a: a[rows], (images, cameras))
        placed = place(objects, jax.tree.map(lambda _: self.layout.batch, objects))
        # The same noise at each evaluation, so that pictures compare.
        key = place(jax.random.key(0), self.layout.whole)
        found = self.sampler(state.ema, frozen, *placed, key)
        return jax.tree.map(lambda a: a[:count], gather(found))


def compile_programs(system: System, heldout: Batch) -> Programs:
    """Compiles what a run needs: a step for each side of the coin that can come up, the sampler."""
    config, inputs = system.config, system.inputs()
    probability = config.diffusion.feedback_probability
    sides = (probability < 1) * [False] + (probability > 0) * [True]
    steps = {side: system.trace_step(inputs, side) for side in sides}
    count, devices = heldout.images.shape[0], system.layout.devices
    sampler = system.trace_sampler(inputs, -(-count // devices) * devices)
    return Programs(
        steps={side: traced.lower().compile() for side, traced in steps.items()},
        step_flops=_step_flops(system, steps),
        sampler=sampler.lower().compile(),
        heldout=heldout,
        layout=system.layout,
    )


def _step_flops(system: System, steps: dict[bool, jax.stages.Traced]) -> int:
    """Without those of layers that are computed anew, which need a trace of their own."""
    config = system.config
    if config.model.remat:
        return train_step_flops(config, system.networks).total
    probability = config.diffusion.feedback_probability
    weights = {False: 1 - probability, True: probability}
    counted = (weights[side] * count_jaxpr(traced.jaxpr).total for side, traced in steps.items())
    return round(sum(counted))
