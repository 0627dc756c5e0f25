"""Floating-point operations of a function, counted in its jaxpr: shapes only, nothing computed.

Counted are matrix products and convolutions, a multiplication and an addition each; all else is
left out, as is usual for model FLOPs. Of a convolution those multiplications count whose factors
are both numbers of the inputs: not those with padding, nor with the zeros that dilation puts
between. So one convolution and its two gradients count alike, also with strides, as they should:
they pair the same numbers.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from o3d_jax.config import Config
from o3d_jax.nn.networks import Networks, init_networks
from o3d_jax.steps.draws import draw, feedback_share
from o3d_jax.steps.parts import part_loss, split_parts
from o3d_jax.steps.train import Training
from o3d_jax.types import Batch, Cameras


class Flops(NamedTuple):
    """What was counted."""

    total: int
    """Operations of one call, on all devices together."""
    unbounded: int
    """While loops with matrix products or convolutions in them. How often they run is not in the
    program, so they count as if they ran once: the total is a lower bound unless this is 0."""


def count_flops(function: Callable[..., Any], *arguments: Any) -> Flops:
    """Returns the operations of `function(*arguments)`; arguments are arrays or their shapes.

    What is computed anew by `jax.checkpoint` counts each time. Of a `lax.cond` the larger branch
    counts; of what depends on the platform the branch for all others, which spells the method out.
    Inside a `shard_map` shapes are those of one device, so what is there counts once for each.
    Kernels of Pallas count nothing.
    """
    return count_jaxpr(jax.make_jaxpr(function)(*arguments))


def count_jaxpr(program: ClosedJaxpr) -> Flops:
    """Returns the operations of what is traced already, as `jitted.trace(...).jaxpr`.

    That costs no time.
    """
    return count_program(program.jaxpr)


def count_program(jaxpr: Jaxpr) -> Flops:
    """Returns the operations of a program within another, as `count_jaxpr` does."""
    each = [_of_equation(equation) for equation in jaxpr.eqns]
    return Flops(sum(f.total for f in each), sum(f.unbounded for f in each))


def _of_equation(equation: JaxprEqn) -> Flops:
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated"):
        return Flops(count_product(equation), 0)
    if name == "pallas_call":
        return Flops(0, 0)

    # All else costs what is inside of it: of branches one, of loops once for each turn.
    inside = [count_program(jaxpr) for jaxpr in programs_within(params)]
    if name == "cond":
        platforms = params.get("branches_platforms") or ()
        return inside[platforms.index(None)] if None in platforms else max(inside)
    total, unbounded = sum(f.total for f in inside), sum(f.unbounded for f in inside)
    if name == "scan":
        return Flops(params["length"] * total, unbounded)
    if name == "shard_map":
        return Flops(_shards(params) * total, unbounded)
    if name == "while":
        return Flops(total, unbounded + (total > 0))
    return Flops(total, unbounded)


def programs_within(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """Yields the programs within an equation: bodies, branches, what is called."""
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, Jaxpr):
                yield one


def _shards(params: dict[str, Any]) -> int:
    """Returns into how many parts a shard_map cuts its work."""
    names = params.get("newly_manual_axes", params.get("manual_axes"))  # Before jax 0.10.
    mesh = params["mesh"]
    return math.prod(mesh.shape[name] for name in (mesh.axis_names if names is None else names))


def count_product(equation: JaxprEqn) -> int:
    """Returns the operations of a product of matrices or a convolution."""
    is_dot = equation.primitive.name == "dot_general"
    return _of_dot(equation) if is_dot else _of_convolution(equation)


def _of_dot(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left: Any = equation.invars[0].aval
    result: Any = equation.outvars[0].aval
    return 2 * math.prod(result.shape) * math.prod(left.shape[axis] for axis in contracted)


def _of_convolution(equation: JaxprEqn) -> int:
    numbers = equation.params["dimension_numbers"]
    left: Any = equation.invars[0].aval
    kernel: Any = equation.invars[1].aval
    result: Any = equation.outvars[0].aval

    # Axes are independent of each other: a tap meets a number if it does along each.
    pairs = 1
    for axis, (padding, _) in enumerate(equation.params["padding"]):
        window = Window(
            size=left.shape[numbers.lhs_spec[2 + axis]],
            taps=kernel.shape[numbers.rhs_spec[2 + axis]],
            outputs=result.shape[numbers.out_spec[2 + axis]],
            stride=equation.params["window_strides"][axis],
            padding=padding,
            left_dilation=equation.params["lhs_dilation"][axis],
            kernel_dilation=equation.params["rhs_dilation"][axis],
        )
        pairs *= _pairs(window)

    # A kernel's input features are those of one group, whichever way groups are made.
    features = kernel.shape[numbers.rhs_spec[1]]
    images_and_features = math.prod(result.shape[axis] for axis in numbers.out_spec[:2])
    return 2 * images_and_features * features * pairs


class Window(NamedTuple):
    """A convolution along one axis, with XLA's names."""

    size: int
    """Numbers of the input."""
    taps: int
    """Numbers of the kernel."""
    outputs: int
    stride: int
    padding: int
    """Zeros before the first number."""
    left_dilation: int
    """Distance between numbers of the input; between them are zeros."""
    kernel_dilation: int


def _pairs(window: Window) -> int:
    """Returns how often, along one axis, a tap of the kernel meets a number of the input."""
    taps = window.kernel_dilation * np.arange(window.taps)
    places = window.stride * np.arange(window.outputs)[:, None] + taps - window.padding

    # Places between two numbers of a dilated input hold zeros, and so does the padding.
    index, hole = np.divmod(places, window.left_dilation)
    return int(((hole == 0) & (index >= 0) & (index < window.size)).sum())


def traced_step_flops(training: Training, steps: dict[bool, jax.stages.Traced]) -> int:
    """Returns the model FLOPs of a training step, the mean over the coin, from its traces.

    `steps` are traces by the coin. Layers that are computed anew in the backward pass are in them
    twice, so where there are such, the loss is traced once more without.
    """
    config = training.config
    if config.model.remat:
        return train_step_flops(config, training.networks).total
    share = feedback_share(config)
    weights = {False: 1 - share, True: share}
    return round(sum(weights[c] * count_jaxpr(t.jaxpr).total for c, t in steps.items()))


def train_step_flops(config: Config, networks: Networks) -> Flops:
    """Returns the model FLOPs of a training step for all objects: the mean over the coin.

    What a backward pass computes anew to save memory does not count, nor does the optimizer. The
    rasterizer's few products of matrices count once for each of its loops. Traces the loss anew,
    some ten seconds: where nothing is computed anew, `count_jaxpr` of the traced step does as well.
    """
    plain = dataclasses.replace(
        networks,
        unet=networks.unet.clone(remat=None),
        lgm=networks.lgm.clone(remat=None),
    )
    share = feedback_share(config)
    with_feedback, without = (_one_object(config, plain, coin) for coin in (True, False))
    mean = share * with_feedback.total + (1 - share) * without.total
    unbounded = max(with_feedback.unbounded, without.unbounded)
    return Flops(round(config.train.batch_size * mean), unbounded)


def _one_object(config: Config, networks: Networks, use_feedback: bool) -> Flops:
    """Returns the operations of the loss and its gradient for one object."""
    model, train = config.model, config.train
    loss = part_loss(networks, config, use_feedback)

    def loss_and_gradient(params, frozen, batch, key):
        return jax.grad(loss, has_aux=True)(params, frozen, (batch, draw(config, 1, key)))

    def arguments(key):
        made = init_networks(networks, model, key, train.train_image_encoder)
        return *split_parts(train.part, *made), _batch(model.num_views, model.image_size), key

    return count_flops(loss_and_gradient, *jax.eval_shape(arguments, jax.random.key(0)))


def _batch(views: int, size: int) -> Batch:
    """Returns a batch of one object."""
    cameras = Cameras(
        camera_to_world=jnp.zeros((1, views, 4, 4)),
        intrinsics=jnp.zeros((1, views, 3, 3)),
    )
    images, alpha = (jnp.zeros((1, views, size, size, channels)) for channels in (3, 1))
    return Batch(images=images, cameras=cameras, alpha=alpha)
