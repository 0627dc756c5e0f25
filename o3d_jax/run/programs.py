"""What the compiled programs of a run take and return, made before its first step.

Made in advance, programs show at once whether they fit, nothing is compiled while training runs,
and a signal that comes while they are made finds nothing to lose. `train.py` compiles the step by
the shapes that are found here; `planning` does so for machines elsewhere. The programs of an
evaluation are compiled here.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from o3d_jax.config import Config
from o3d_jax.nn.networks import init_networks
from o3d_jax.parallel.shards import gather, place
from o3d_jax.run.heldout import HeldOutFigures, heldout_figures_on_devices
from o3d_jax.steps.parts import split_parts
from o3d_jax.steps.sample import Estimate, generate_on_devices
from o3d_jax.steps.train import StepInputs, StepReport, Training, init_state, train_step_update
from o3d_jax.types import Batch, Cameras, Frozen, Params, TrainState, pytree


@pytree
class Inputs:
    """All that a training step reads, as shapes with places or as arrays."""

    state: TrainState
    frozen: Frozen
    given: StepInputs


def step_shapes(training: Training) -> Inputs:
    """Returns shapes and places of all that a training step reads; no array is made."""
    config, layout = training.config, training.on_devices

    def arrays(key: Key[Array, ""]) -> Inputs:
        trained = config.train.train_image_encoder
        made = init_networks(training.networks, config.model, key, trained)
        params, frozen = split_parts(config.train.part, *made)
        given = StepInputs(
            batch=_empty_batch(config, config.train.batch_size),
            key=key,
            stop=jnp.zeros(layout.devices, bool),
        )
        state = init_state(params, training.optimizer)
        return Inputs(state=state, frozen=frozen, given=given)

    shapes = jax.eval_shape(arrays, jax.eval_shape(lambda: jax.random.key(0)))

    # What has rows is split by them; the key, a scalar, is whole on every device.
    places = jax.tree.map(lambda a: layout.batch if a.ndim else layout.whole, shapes.given)
    return Inputs(
        state=_at(shapes.state, layout.of_state(shapes.state)),
        frozen=_at(shapes.frozen, layout.of_frozen(shapes.frozen)),
        given=_at(shapes.given, places),
    )


def batch_shapes(training: Training, objects: int) -> Batch:
    """Returns shapes and places of a batch of so many objects, a multiple of the devices."""
    batch = jax.eval_shape(lambda: _empty_batch(training.config, objects))
    return _at(batch, jax.tree.map(lambda _: training.on_devices.batch, batch))


def sampler_objects(
    training: Training, objects: int
) -> tuple[Float[jax.ShapeDtypeStruct, "b h w 3"], Cameras]:
    """Returns shapes and places of the images and cameras that the sampler takes."""
    batch = batch_shapes(training, objects)
    shape = (objects, *batch.images.shape[2:])
    place = training.on_devices.batch
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place), batch.cameras


def gradient_shapes(training: Training, gradient: jax.stages.Traced) -> Params:
    """Returns shapes and places of the gradient that a traced `train_step_gradient` returns."""
    found, _ = gradient.out_info
    return _at(found, training.on_devices.shardings(found, stage=2))


def trace_update(training: Training, inputs: Inputs, gradient: Params) -> jax.stages.Traced:
    """Returns the trace of `train_step_update` for a gradient of `gradient_shapes`."""
    return train_step_update.trace(training, inputs.state, gradient)


def trace_sampler(training: Training, inputs: Inputs, objects: int) -> jax.stages.Traced:
    """Returns the trace of Algorithm 2 for so many objects, a multiple of the devices."""
    model = training.model(inputs.state.ema, inputs.frozen)
    image, cameras = sampler_objects(training, objects)
    return generate_on_devices.trace(model, image, cameras, inputs.given.key, training.on_devices)


def trace_figures(training: Training, inputs: Inputs, objects: int) -> jax.stages.Traced:
    """Returns the trace of the held-out figures of so many objects, a multiple of the devices."""
    model = training.model(inputs.state.ema, inputs.frozen)
    batch = batch_shapes(training, objects)
    return heldout_figures_on_devices.trace(model, batch, inputs.given.key, training.on_devices)


def _empty_batch(config: Config, objects: int) -> Batch:
    views, size = config.model.num_views, config.model.image_size
    poses, lenses = jnp.zeros((objects, views, 4, 4)), jnp.zeros((objects, views, 3, 3))
    images, alpha = (jnp.zeros((objects, views, size, size, c)) for c in (3, 1))
    cameras = Cameras(camera_to_world=poses, intrinsics=lenses)
    return Batch(images=images, cameras=cameras, alpha=alpha)


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
        self, state: TrainState, frozen: Frozen, given: StepInputs
    ) -> tuple[TrainState, StepReport]:
        """Returns what `train_step` does; the state is used up."""
        gradient, report = self.gradient(state, frozen, given)
        if not report.is_finite:  # Waits for the gradient, on whose devices nothing could overlap.
            return dataclasses.replace(state, step=state.step + 1), report
        return self.update(state, gradient), report

    def memory_analysis(self) -> Any:
        """Returns what XLA says of the gradient's memory, by far the larger."""
        return self.gradient.memory_analysis()


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is found out about held-out objects, on the host; rows are objects."""

    figures: HeldOutFigures
    sampled: Estimate | None
    """What the sampler makes of the inputs; None if it was not asked, or one part trains alone."""


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """The compiled programs of an evaluation, and the objects that it is about."""

    training: Training
    heldout: Batch
    """What is evaluated, on the host."""
    figures: jax.stages.Compiled
    sampler: jax.stages.Compiled | None
    """None where one part trains alone."""

    def evaluate(self, state: TrainState, frozen: Frozen, sample: bool = True) -> Evaluation:
        """Returns figures of the average on the held-out objects, and if asked what it samples."""
        layout, model = self.training.on_devices, self.training.model(state.ema, frozen)
        figures, sampled = [], []
        for number, (part, count) in enumerate(_chunks(self.heldout, layout.devices)):
            batch = place(part, jax.tree.map(lambda _: layout.batch, part))

            # The same noise at each evaluation, so that figures and pictures compare.
            key = place(jax.random.key(number), layout.whole)
            found = self.figures(model, batch, key)
            figures.append(_first(gather(found), count))
            if sample and self.sampler is not None:
                made = self.sampler(model, batch.images[:, 0], batch.cameras, key)
                sampled.append(_first(gather(made), count))
        return Evaluation(figures=_joined(figures), sampled=_joined(sampled) if sampled else None)


def compile_evaluator(training: Training, inputs: Inputs, heldout: Batch) -> Evaluator:
    """Compiles what an evaluation runs; only joint training makes a model that can sample."""
    objects = _chunk_size(heldout.images.shape[0], training.on_devices.devices)
    figures = trace_figures(training, inputs, objects).lower().compile()
    sampler = None
    if training.config.train.part == "joint":
        sampler = trace_sampler(training, inputs, objects).lower().compile()
    return Evaluator(training, heldout, figures, sampler)


OBJECTS_AT_A_TIME = 4
"""The most objects that a device evaluates at a time."""


def _chunk_size(objects: int, devices: int) -> int:
    """Returns the objects in a chunk over all devices: no more than are needed."""
    rows = math.ceil(objects / devices)
    return devices * min(rows, OBJECTS_AT_A_TIME)


def _chunks(heldout: Batch, devices: int) -> Iterator[tuple[Batch, int]]:
    """Yields equal parts of the objects, and how many count.

    The last part is filled with repetitions, which don't.
    """
    total = heldout.images.shape[0]
    size = _chunk_size(total, devices)
    for start in range(0, total, size):
        rows = np.arange(start, start + size) % total
        yield jax.tree.map(lambda a, rows=rows: a[rows], heldout), min(size, total - start)


def _first(tree: Any, count: int) -> Any:
    return jax.tree.map(lambda a: a[:count], tree)


def _joined(parts: list[Any]) -> Any:
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
