"""Trains Ouroboros3D (Algorithm 1): `python train.py configs/nano.py [--optim.learning-rate 3e-4]`.

With `--train.part vae`, `lgm` or `unet`, one network alone, for models with no weights to start
from. Read top to bottom: what a run consists of, how it is set up, its loop. Several processes all
do the same, but process 0 alone prints and writes. A signal ends a run well, at any moment.

`o3d train` runs this file. A bundled config may also be given by its name, `nano`; after it come
any of its fields, which `--help` lists there.
"""

import contextlib
import functools
import math
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key
from tqdm import tqdm

from o3d_jax.cli import Setting, explained_config, use_compilation_cache
from o3d_jax.config import Config
from o3d_jax.data.loader import heldout_batch, training_batches
from o3d_jax.errors import InputError, exit_on_input_error
from o3d_jax.nn.networks import build_networks
from o3d_jax.parallel.host import keep_freed_memory, use_cpu_devices
from o3d_jax.parallel.layout import make_layout, own_rows
from o3d_jax.parallel.processes import (
    ProcessInfo,
    check_same_config,
    leaving_others_on_error,
    process_map,
    start_processes,
)
from o3d_jax.parallel.shards import gather, place, place_batch, place_flag
from o3d_jax.run.banner import banner, program_memory
from o3d_jax.run.checkpoints import RunCheckpoints
from o3d_jax.run.flops import traced_step_flops
from o3d_jax.run.interruption import Interruption
from o3d_jax.run.log import RunLog
from o3d_jax.run.pictures import evaluation_sheet, figures_row
from o3d_jax.run.programs import (
    Evaluator,
    Halves,
    Inputs,
    compile_evaluator,
    gradient_shapes,
    step_shapes,
    trace_update,
)
from o3d_jax.run.schedule import StopVote, is_last, must_evaluate, must_sample, must_save
from o3d_jax.steps.draws import coin_sides, draw_coin
from o3d_jax.steps.parts import scale_latents
from o3d_jax.steps.train import (
    StepInputs,
    Training,
    init_state,
    make_optimizer,
    train_step,
    train_step_gradient,
)
from o3d_jax.types import Frozen, Params, TrainState
from o3d_jax.weights.checkpoint import Weights, save_model
from o3d_jax.weights.start import start_weights

SCALED_BY = 64
"""How many training objects the deviation of a new VAE's latents is measured on."""

Step = jax.stages.Compiled | Halves
"""A compiled `train_step`, called with state, frozen networks and `StepInputs`."""


class Run(NamedTuple):
    """What a run consists of."""

    training: Training
    state: TrainState
    """Fresh, or the newest checkpoint's."""
    frozen: Frozen
    key: Key[Array, ""]
    """The key of all steps, on every device."""
    batches: grain.DatasetIterator
    """Behind the last batch of `state`."""
    checkpoints: RunCheckpoints
    processes: tuple[ProcessInfo, ...]


class Programs(NamedTuple):
    """What a run has compiled before its first step."""

    steps: dict[bool, Step]
    """By the coin: without feedback, with it."""
    step_flops: int
    """Model FLOPs of a step on all devices, the mean over the coin."""
    evaluator: Evaluator

    @property
    def largest_step(self) -> Step:
        """The step that needs more memory: with feedback, if that can come up."""
        return self.steps[True] if True in self.steps else self.steps[False]


def train(config: Config, settings: tuple[Setting, ...] = ()) -> None:
    """Runs training to its last step, from the newest checkpoint if there is one.

    A signal makes it save and end early; after Ctrl-C it raises SystemExit. `settings` say where
    the config's values came from.
    """
    with Interruption(tqdm.write) as interruption:
        with interruption.unattended(None):
            if jax.process_count() > 1:
                interruption.patience = config.launch.grace
                # Process 0 goes last, by two seconds: without it JAX aborts the others.
                interruption.linger = 2.0 if jax.process_index() == 0 else 0.0
            run = _set_up(config)

        with RunLog(config.folder, config, int(run.state.step)) as log:
            interruption.farewell = log.cut_short
            with interruption.unattended(None):  # As long as there is nothing to lose.
                programs = _compile(run, log, settings)
            # Writes to the end, whatever ends the loop. An error is told before that: the other
            # processes may give up meanwhile, and JAX then aborts this one.
            with contextlib.closing(run.checkpoints), exit_on_input_error():
                state = _loop(run, programs, log, interruption)
            if is_last(config.train, int(state.step)):
                with interruption.unattended(None):  # The last state is saved.
                    _finish(run, state, log)
    if interruption.status:
        raise SystemExit(interruption.status)


def _set_up(config: Config) -> Run:
    """Opens the data, and puts weights or the newest checkpoint on the devices."""
    processes = process_map()
    if len(processes) > 1 and jax.process_index() == 0:
        tqdm.write(
            "\n".join(f"process {p.index}: {p.host}, {p.devices} devices" for p in processes)
        )
    check_same_config(config)

    # Each process loads those rows of a batch that lie on its own devices.
    layout = make_layout(config.train)
    rows = own_rows(layout, config.train.batch_size)
    batches = iter(training_batches(config, rows=rows))

    # The seed is split here and nowhere else. Fresh weights are made on the host: they may fit
    # nowhere else as long as they are whole.
    networks = build_networks(config.model, lpips=config.optim.lpips_loss)
    optimizer = make_optimizer(config.optim, config.train.steps)
    training = Training(config, networks, optimizer, layout)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        weights_key, steps_key = jax.random.split(jax.random.key(config.seed))
        weights = start_weights(config, networks, weights_key)
    frozen = place(weights.frozen, layout.of_frozen(weights.frozen))
    key = place(steps_key, layout.whole)

    # An earlier part of this run goes on as if it had never stopped, data and all.
    checkpoints = RunCheckpoints(config.folder / "checkpoints", config, weights.frozen)
    restored = checkpoints.restore(step_shapes(training).state)
    if restored is None:
        state = _fresh_state(weights, training)
    else:
        state, position = restored
        batches.set_state(position)
    return Run(training, state, frozen, key, batches, checkpoints, processes)


def _fresh_state(weights: Weights, training: Training) -> TrainState:
    """Returns the state before the first step, made where it is to lie: it may fit nowhere else."""
    layout = training.on_devices
    params = place(weights.params, layout.shardings(weights.params, stage=3))
    init = functools.partial(init_state, optimizer=training.optimizer)
    places = layout.of_state(jax.eval_shape(init, params))
    return jax.jit(init, out_shardings=places)(params)


def _compile(run: Run, log: RunLog, settings: tuple[Setting, ...]) -> Programs:
    """Compiles all programs, before the first step, and says what runs where."""
    training, config = run.training, run.training.config
    heldout = heldout_batch(config, config.train.eval_objects)
    layout = training.on_devices
    log.say(f"{config.name}: compiling for {layout.devices} devices ...")

    # By shapes alone: nothing is allocated, and what does not fit shows here.
    inputs = step_shapes(training)
    steps, step_flops = _compile_steps(training, inputs)
    programs = Programs(steps, step_flops, compile_evaluator(training, inputs, heldout))

    text = banner(
        config,
        layout.mesh,
        Weights(params=run.state.params, frozen=run.frozen),
        processes=run.processes,
        memory=program_memory(programs.largest_step),
        settings=settings,
    )
    log.banner(text)
    if int(run.state.step):
        log.say(f"resumed at step {int(run.state.step)}")
    return programs


def _compile_steps(training: Training, inputs: Inputs) -> tuple[dict[bool, Step], int]:
    """Compiles Algorithm 1 for each side of its coin that can come up; returns its FLOPs, too."""
    sides = coin_sides(training.config)
    given = (training, inputs.state, inputs.frozen, inputs.given)
    in_halves = training.on_devices.mesh.devices.flat[0].platform == "cpu"
    if not (in_halves or training.config.train.offload_optimizer):
        traced = {side: train_step.trace(*given, use_feedback=side) for side in sides}
        steps: dict[bool, Step] = {s: each.lower().compile() for s, each in traced.items()}
        return steps, traced_step_flops(training, traced)

    # XLA compiles the halves of a step for CPUs in less time and memory than the whole; and in the
    # whole it would bring the optimizer's state to the device long before its update. The
    # optimizer's half is the same for both sides.
    traced = {side: train_step_gradient.trace(*given, use_feedback=side) for side in sides}
    gradients = {side: each.lower().compile() for side, each in traced.items()}
    gradient = gradient_shapes(training, traced[sides[0]])
    update = trace_update(training, inputs, gradient).lower().compile()
    steps = {side: Halves(gradient, update) for side, gradient in gradients.items()}
    return steps, traced_step_flops(training, traced)


def _loop(run: Run, programs: Programs, log: RunLog, interruption: Interruption) -> TrainState:
    """Takes training steps to the last, or to a signal; the state after them is saved."""
    state, config, layout = run.state, run.training.config, run.training.on_devices
    vote = StopVote(interruption)
    log.start(programs.step_flops)
    for step in _steps_to_go(int(state.step), config.train.steps):
        log.begin_step(step)
        loaded, waited = _timed(next, run.batches)
        batch, stop = place_batch(layout, loaded.batch), place_flag(layout, vote.own)
        given = StepInputs(batch=batch, key=run.key, stop=stop)

        # Algorithm 1, compiled above for this side of its coin. The call returns before the devices
        # are done: what follows runs beside them, until it asks for a number.
        compiled_step = programs.steps[draw_coin(config, step)]
        state, report = compiled_step(state, run.frozen, given)
        taken, position = step + 1, run.batches.get_state()
        log.record(taken, report, loaded.objects, waited)

        stops = vote.stops(report)
        if must_evaluate(config.train, taken, stops):
            _evaluate(run, programs.evaluator, log, state, position, interruption)
        if must_save(config.train, taken, stops):
            with log.paused():
                run.checkpoints.save(state, position)
        if stops and not is_last(config.train, taken):
            log.stopped(interruption.name or "a signal to another process")
            break
    return state


def _steps_to_go(first: int, steps: int) -> Iterable[int]:
    """Returns the numbers of the steps not taken yet, with a bar that shows them."""
    hidden = jax.process_index() > 0
    return tqdm(range(first, steps), initial=first, total=steps, disable=hidden)


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Returns what a function returns, and the seconds that it took."""
    asked = time.perf_counter()
    found = function(*arguments)
    return found, time.perf_counter() - asked


def _evaluate(
    run: Run,
    evaluator: Evaluator,
    log: RunLog,
    state: TrainState,
    position: dict[str, Any],
    interruption: Interruption,
) -> None:
    """Saves the state, then writes figures and a picture of held-out objects.

    The state is saved first, because a signal may come during the evaluation. A single process then
    only waits for the write to finish. Several processes cannot finish a save one by one, so they
    wait for it before they evaluate.
    """
    with log.paused():
        save = run.checkpoints.save if jax.process_count() == 1 else run.checkpoints.save_now
        save(state, position)

    step, heldout = int(state.step), evaluator.heldout
    with log.paused(), interruption.unattended(run.checkpoints.wait):
        sample = must_sample(run.training.config.train, step)
        found = evaluator.evaluate(state, run.frozen, sample)
        log.evaluation(step, figures_row(heldout, found))
        log.image(step, evaluation_sheet(heldout, found))


def _finish(run: Run, state: TrainState, log: RunLog) -> None:
    """Writes the model, or what a part of it became."""
    config = run.training.config
    folder = config.folder / "model"
    weights = Weights(params=state.ema, frozen=run.frozen)
    if config.train.part == "vae":
        weights = _scaled_vae(run.training, state)
    save_model(folder, config, weights)

    if config.train.part == "joint":
        log.say(f"done: o3d sample IMAGE --checkpoint {folder}")
    else:
        log.say(f"done: {folder}, from which later parts of the training start")


def _scaled_vae(training: Training, state: TrainState) -> Weights:
    """Returns the VAE, frozen from now on, with latents as SVD's scaling factor assumes them.

    Their standard deviation is measured on a few training objects.
    """
    batches = training_batches(training.config)
    count = math.ceil(SCALED_BY / training.config.train.batch_size)
    images = np.concatenate([next(batches).batch.images for _ in range(count)])
    vae = jax.tree.map(jnp.asarray, gather(state.ema.vae))
    scaled = scale_latents(training.networks.vae, vae, jnp.asarray(images))
    return Weights(params=Params(unet=None, lgm=None), frozen=Frozen(vae=scaled))


@leaving_others_on_error()
@exit_on_input_error()
def main(arguments: list[str], program: str = "python train.py") -> None:
    """Reads the command line; `program` is what its `--help` calls it."""
    if arguments in (["-h"], ["--help"]):
        sys.stdout.write(str(__doc__))
        return
    if not arguments or arguments[0].startswith("-"):
        raise InputError(f"no config file; give one first, as `{program} nano`")
    config, settings = explained_config(Path(arguments[0]), arguments[1:], program)
    use_compilation_cache()
    use_cpu_devices(config.launch.cpu_devices)
    keep_freed_memory()
    with Interruption(tqdm.write) as interruption, interruption.unattended(None):
        start_processes(config.launch)
    train(config, settings)


if __name__ == "__main__":
    main(sys.argv[1:])
