"""Algorithm 1's step as one would write it first, beside ours; half of `train_step.py`."""

import dataclasses
import functools
import runpy
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from o3d_jax import edm
from o3d_jax.config import Config
from o3d_jax.geometry.orbits import orbit
from o3d_jax.nn.networks import build_networks, init_networks
from o3d_jax.steps.draws import draw
from o3d_jax.steps.losses import diffusion_loss, mean_square, noised
from o3d_jax.steps.reconstruct import decode_views, feedback_maps, reconstruct
from o3d_jax.steps.train import StepInputs, Training, init_state, make_optimizer, train_step
from o3d_jax.types import Batch, Frozen, Maps, TrainState

CONFIGS = Path(__file__).parents[1] / "configs"
TINY, NANO, MIDDLE = "tiny", "nano", "middle"


class Measured(NamedTuple):
    """Of one program."""

    name: str
    compile_s: float
    seconds: tuple[float, ...]
    """Of the processor, in order of the rounds, in which all programs ran in turn."""
    arguments_mb: float
    outputs_mb: float
    """Without those that take the place of a donated argument."""
    temporaries_mb: float

    @property
    def memory_mb(self) -> float:
        """What XLA asks for while the program runs."""
        return self.arguments_mb + self.outputs_mb + self.temporaries_mb


class Workload(NamedTuple):
    """A configuration and how many objects a step takes."""

    config: Config
    objects: int


def workload(name: str) -> Workload:
    """`tiny` and `nano` of two objects; `middle` of one: 128 px, wider networks, and `remat`."""
    if name in (TINY, NANO):
        return Workload(runpy.run_path(str(CONFIGS / f"{name}.py"))["config"], 2)
    nano: Config = runpy.run_path(str(CONFIGS / "nano.py"))["config"]
    model = dataclasses.replace(
        nano.model,
        image_size=128,
        remat=True,
        unet=dataclasses.replace(
            nano.model.unet,
            block_out_channels=(64, 128, 256, 256),
            num_attention_heads=(1, 2, 4, 4),
            norm_num_groups=32,
        ),
        lgm=dataclasses.replace(
            nano.model.lgm,
            input_size=128,
            down_channels=(32, 64, 128, 192),
            up_channels=(192, 128, 64),
        ),
    )
    return Workload(dataclasses.replace(nano, name=MIDDLE, model=model), 1)


@functools.partial(jax.jit, static_argnames="training")
def plain_step(
    training: Training, state: TrainState, frozen: Frozen, given: StepInputs
) -> tuple[TrainState, jax.Array]:
    """Both passes through F in every step, with the gradient of both; nothing is donated.

    The diffusion loss is the mean of that of both estimates, LGM runs on the estimates and on the
    views one after the other. All else is Algorithm 1: feedback carries no gradient, nor does VAE.
    """
    config, batch = training.config, given.batch
    draws = draw(config, batch.images.shape[0], jax.random.fold_in(given.key, state.step))
    c_noise = edm.scalings(draws.sigma).c_noise

    def loss(params):
        model = training.model(params, frozen)
        x, estimate = noised(model, batch, draws)
        first = estimate(Maps.nothing(*batch.images.shape[:4]))
        decoded = decode_views(model, first)
        cameras = batch.cameras
        noisy = reconstruct(model, decoded, cameras, c_noise)
        clean = reconstruct(model, batch.images, cameras, jnp.zeros_like(c_noise))
        maps = jax.lax.stop_gradient(feedback_maps(model, noisy.rendering, cameras))
        second = estimate(maps)
        diffusion = sum(diffusion_loss(each, x, draws.sigma) for each in (first, second)) / 2
        rgb = [mean_square(r.rendering.rgb, batch.images) for r in (noisy, clean)]
        return diffusion + config.optim.noisy_weight * rgb[0] + config.optim.clean_weight * rgb[1]

    value, gradient = jax.value_and_grad(loss)(state.params)
    before: Any = state.params
    updates, opt_state = training.optimizer.update(gradient, state.opt_state, before)
    params: Any = optax.apply_updates(before, updates)
    decay = config.optim.ema_decay
    ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, params)
    return TrainState(step=state.step + 1, params=params, ema=ema, opt_state=opt_state), value


def random_batch(config: Config, objects: int) -> Batch:
    """Noise seen by cameras around it: what a step costs does not depend on what it sees."""
    views, size = config.model.num_views, config.model.image_size
    cameras = orbit(10.0, np.arange(views) * 360 / views, 1.5, 49.1)
    return Batch(
        images=jnp.asarray(
            np.random.default_rng(0).random((objects, views, size, size, 3), np.float32)
        ),
        cameras=jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * objects), cameras),
    )


class Program:
    """A compiled step that keeps its own state."""

    def __init__(self, name: str, step: Any, work: Workload, remat: bool, **static: Any):
        config = work.config
        model = dataclasses.replace(config.model, remat=remat)
        config = dataclasses.replace(config, model=model)
        networks = build_networks(model)
        optimizer = make_optimizer(config.optim, config.train.steps)
        params, frozen = init_networks(
            networks, model, jax.random.key(0), config.train.train_image_encoder
        )
        self.name = name
        self.state = init_state(params, optimizer)
        batch = random_batch(config, work.objects)
        self.rest = (frozen, StepInputs(batch=batch, key=jax.random.key(1)))
        training = Training(config, networks, optimizer)
        started = time.process_time()
        self.compiled = step.lower(training, self.state, *self.rest, **static).compile()
        self.compile_s = time.process_time() - started

    def run(self) -> float:
        """One step; processor seconds."""
        started = time.process_time()
        self.state = jax.block_until_ready(self.compiled(self.state, *self.rest))[0]
        return time.process_time() - started

    def measured(self, seconds: list[float]) -> Measured:
        memory = self.compiled.memory_analysis()
        outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
        return Measured(
            self.name,
            self.compile_s,
            tuple(seconds),
            memory.argument_size_in_bytes / 1e6,
            outputs / 1e6,
            memory.temp_size_in_bytes / 1e6,
        )


def measure(name: str, repeats: int) -> list[Measured]:
    """The plain step first, then ours without and with feedback, timed in turn."""
    work = workload(name)
    remat = work.config.model.remat
    programs = [
        Program("straightforward", plain_step, work, remat=False),
        Program("ours, without feedback", train_step, work, remat, use_feedback=False),
        Program("ours, with feedback", train_step, work, remat, use_feedback=True),
    ]
    for program in programs:
        program.run()
    rounds = [[program.run() for program in programs] for _ in range(repeats)]
    return [p.measured(list(s)) for p, s in zip(programs, zip(*rounds, strict=True), strict=True)]
