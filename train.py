"""Trains Ouroboros3D (Algorithm 1): `python train.py configs/nano.py [--optim.learning-rate 3e-4]`.

With `--train.part vae`, `lgm` or `unet`, one network alone, for models with no weights to start
from. Read top to bottom: what a run consists of, how it is set up, its loop. Of several processes
all do the same; process 0 alone prints and writes. A signal ends a run well, at any moment.

`o3d train` runs this file. A bundled config may also be given by its name, `nano`; after it come
any of its fields, which `--help` lists there.
"""

import contextlib
import functools
import math
import sys
import time
from pathlib import Path
from typing import NamedTuple

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
from o3d_jax.parallel.layout import Layout, make_layout, own_rows
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
from o3d_jax.run.interruption import Interruption
from o3d_jax.run.log import RunLog
from o3d_jax.run.pictures import evaluation_sheet, figures_row
from o3d_jax.run.programs import Programs, System, compile_programs
from o3d_jax.steps.draws import draw_coin
from o3d_jax.steps.parts import scale_latents
from o3d_jax.steps.train import StepReport, init_state, make_optimizer
from o3d_jax.types import Frozen, Params, TrainState
from o3d_jax.weights.checkpoint import Weights, save_model
from o3d_jax.weights.start import start_weights

SCALED_BY = 64
"""Training objects from which the deviation of a new VAE's latents is measured."""


class Run(NamedTuple):
    """What a run consists of."""

    state: TrainState
    """Fresh, or the newest checkpoint's."""
    frozen: Frozen
    batches: grain.DatasetIterator
    """Behind the last batch of `state`."""
    checkpoints: RunCheckpoints
    system: System
    processes: tuple[ProcessInfo, ...]


def train(config: Config, settings: tuple[Setting, ...] = ()) -> None:
    """Runs training to its last step, from the newest checkpoint if there is one.

    Asked by a signal to end, it saves and ends before; by Ctrl-C, with SystemExit. `settings` say
    where the config's values came from.
    """
    with Interruption(tqdm.write) as interruption:
        with interruption.unattended(None):
            if jax.process_count() > 1:
                interruption.patience = config.launch.grace
                # Process 0 goes last: without it JAX aborts the others.
                interruption.linger = 2.0 * (jax.process_index() == 0)
            run = _set_up(config)
        first = int(run.state.step)
        with RunLog(config.folder, config, first) as log:
            interruption.farewell = log.cut_short
            with interruption.unattended(None):  # As long as there is nothing to lose.
                programs = _compile(run, log, settings)
            with contextlib.closing(run.checkpoints):  # Writes to the end, whatever ends the loop.
                state = _loop(config, run, programs, log, interruption)
            if int(state.step) >= config.train.steps:
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
    layout = make_layout(config.train)
    rows = own_rows(layout, config.train.batch_size)
    batches = iter(training_batches(config, rows=rows))
    networks = build_networks(config.model, lpips=config.optim.lpips_loss)
    optimizer = make_optimizer(config.optim, config.train.steps)
    system = System(config, networks, optimizer, layout)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        weights = start_weights(config, networks)
    frozen = place(weights.frozen, layout.of_frozen(weights.frozen))
    folder = config.folder / "checkpoints"
    checkpoints = RunCheckpoints(folder, config, weights.frozen)
    restored = checkpoints.restore(system.inputs().state)
    if restored is None:
        state = _fresh_state(weights, system)
    else:
        state, position = restored
        batches.set_state(position)
    return Run(state, frozen, batches, checkpoints, system, processes)


def _fresh_state(weights: Weights, system: System) -> TrainState:
    """The state before the first step, made where it is to lie: it may fit nowhere else."""
    layout = system.layout
    params = place(weights.params, layout.shardings(weights.params, stage=3))
    init = functools.partial(init_state, optimizer=system.optimizer)
    places = layout.of_state(jax.eval_shape(init, params))
    return jax.jit(init, out_shardings=places)(params)


def _compile(run: Run, log: RunLog, settings: tuple[Setting, ...]) -> Programs:
    """All programs, before the first step; says what runs where."""
    system, config = run.system, run.system.config
    heldout = heldout_batch(config, config.train.eval_objects)
    log.say(f"{config.name}: compiling for {system.layout.devices} devices ...")
    programs = compile_programs(system, heldout)
    text = banner(
        config,
        system.layout.mesh,
        run.state.params,
        run.frozen,
        processes=run.processes,
        memory=program_memory(programs.largest_step),
        settings=settings,
    )
    log.banner(text)
    if int(run.state.step):
        log.say(f"resumed at step {int(run.state.step)}")
    return programs


def _loop(
    config: Config, run: Run, programs: Programs, log: RunLog, interruption: Interruption
) -> TrainState:
    """Training steps to the last, or to a signal; the state after them is saved."""
    state, layout, key = run.state, run.system.layout, _run_key(config, run.system.layout)
    first, steps = int(state.step), config.train.steps
    before: StepReport | None = None
    log.start(programs.step_flops)
    for step in tqdm(
        range(first, steps), initial=first, total=steps, disable=jax.process_index() > 0
    ):
        log.begin_step(step)
        asked = time.perf_counter()
        loaded = next(run.batches)
        waited = time.perf_counter() - asked
        batch, stop = place_batch(layout, loaded.batch), place_flag(layout, interruption.requested)
        step_program = programs.steps[draw_coin(config, step)]
        state, report = step_program(state, run.frozen, batch, key, stop=stop)
        log.record(step + 1, report, loaded.objects, waited)
        position, last = run.batches.get_state(), step + 1 == steps
        stops, before = _stops(interruption, before), report
        if last or ((step + 1) % config.train.eval_every == 0 and not stops):
            with log.paused():  # Of several processes none can finish a save by itself.
                alone = jax.process_count() == 1
                save = run.checkpoints.save if alone else run.checkpoints.save_now
                save(state, position)
            with log.paused(), interruption.unattended(run.checkpoints.wait):
                _evaluate(config, run, programs, log, state)
        if last or stops or (step + 1) % config.train.save_every == 0:
            with log.paused():
                run.checkpoints.save(state, position)
        if stops and not last:
            log.stopped(interruption.name or "a signal to another process")
            break
    return state


def _evaluate(config: Config, run: Run, programs: Programs, log: RunLog, state: TrainState) -> None:
    """Figures and a picture of held-out objects; every so often, of what is sampled, too."""
    step, every = int(state.step), config.train.sample_every
    sample = every == 0 or step % every == 0 or step == config.train.steps
    found = programs.evaluate(state, run.frozen, sample)
    log.evaluation(step, figures_row(programs.heldout, found))
    log.image(step, evaluation_sheet(programs.heldout, found))


def _run_key(config: Config, layout: Layout) -> Key[Array, ""]:
    """The key of all steps, on every device."""
    _, key = jax.random.split(jax.random.key(config.seed))  # The first is start_weights'.
    return place(key, layout.whole)


def _stops(interruption: Interruption, before: StepReport | None) -> bool:
    """Whether this step was the last. Of several processes all know, from the step before it."""
    if jax.process_count() == 1:
        return interruption.requested
    return before is not None and bool(before.is_last)


def _finish(run: Run, state: TrainState, log: RunLog) -> None:
    """Writes the model, or what a part of it became."""
    config = run.system.config
    folder = config.folder / "model"
    weights = Weights(params=state.ema, frozen=run.frozen)
    if config.train.part == "vae":
        weights = _scaled_vae(run.system, state)
    save_model(folder, config, weights)
    if config.train.part == "joint":
        log.say(f"done: o3d sample IMAGE --checkpoint {folder}")
    else:
        log.say(f"done: {folder}, from which later parts of the training start")


def _scaled_vae(system: System, state: TrainState) -> Weights:
    """The VAE, frozen from now on, with latents of the deviation that SVD's scaling assumes."""
    batches = training_batches(system.config)
    count = math.ceil(SCALED_BY / system.config.train.batch_size)
    images = np.concatenate([next(batches).batch.images for _ in range(count)])
    vae = jax.tree.map(jnp.asarray, gather(state.ema.vae))
    scaled = scale_latents(system.networks.vae, vae, jnp.asarray(images))
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
