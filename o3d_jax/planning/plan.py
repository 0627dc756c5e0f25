"""Compiles the programs of a run for machines elsewhere, and prints whether they fit there."""

import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from o3d_jax.config import Config
from o3d_jax.errors import InputError
from o3d_jax.files.atomic import written_whole
from o3d_jax.nn.networks import Networks, build_networks
from o3d_jax.parallel.layout import make_layout
from o3d_jax.planning.report import (
    Held,
    Plan,
    Planned,
    heading,
    held,
    knobs,
    plan_report,
    sampling_knobs,
    weigh,
)
from o3d_jax.planning.sampling import sample_programs
from o3d_jax.planning.topologies import Topology
from o3d_jax.run.programs import (
    gradient_shapes,
    sampler_objects,
    step_shapes,
    trace_sampler,
    trace_update,
)
from o3d_jax.steps.draws import coin_sides
from o3d_jax.steps.train import Training, make_optimizer, train_step, train_step_gradient

PROGRAMS = ("step", "sampler")
"""What training runs: its step, and all of a sampling run beside its state, for evaluations."""

SAMPLE = "sample"
"""What `o3d sample` runs, with nothing beside it."""


def plan(
    config: Config, topology: Topology, programs: tuple[str, ...], offload: bool = False
) -> Iterator[Plan]:
    """Compiles the programs for a topology and weighs them, one after another.

    `offload` is that of `o3d sample`, which is weighed on one device.

    Raises:
        InputError: the config does not split over so many devices, or offloads to a host that
            cannot be asked about.
    """
    on_gpu = topology.devices[0].platform in ("gpu", "cuda")
    if config.train.offload_optimizer and on_gpu and programs != (SAMPLE,):
        raise InputError(
            "--train.offload-optimizer cannot be planned for GPUs: where there is none, the "
            "compiler knows no memory but theirs; leave it out, and take the optimizer's share off"
        )
    networks = build_networks(config.model, lpips=config.optim.lpips_loss)
    networks = dataclasses.replace(networks, splat_backend=_splat_backend(topology))
    trained = [name for name in programs if name != SAMPLE]
    if trained:
        yield from _plan_training(config, networks, topology, trained)
    if SAMPLE in programs:
        networks = dataclasses.replace(networks, lpips=None, offload=offload)
        yield from _plan_sample(config, networks, topology)


def _plan_training(
    config: Config, networks: Networks, topology: Topology, programs: list[str]
) -> Iterator[Plan]:
    layout = make_layout(config.train, topology.devices)
    optimizer = make_optimizer(config.optim, config.train.steps)
    training = Training(config, networks, optimizer, layout)
    inputs = step_shapes(training)
    state, devices = inputs.state, layout.devices

    # With feedback, where that can come up: both passes, so the larger of the two steps.
    given = (training, state, inputs.frozen, inputs.given)
    side = coin_sides(config)[-1]

    def work(name: str) -> Planned:
        count, objects = config.train.batch_size, inputs.given.batch
        match name:
            case "step":
                traced = train_step.trace(*given, use_feedback=side)
                read = (state, inputs.frozen, objects)
            case "gradient":
                traced = train_step_gradient.trace(*given, use_feedback=side)
                read = (state.params, inputs.frozen, objects)
            case "update":
                gradient = train_step_gradient.trace(*given, use_feedback=side)
                objects = gradient_shapes(training, gradient)  # In the batch's place.
                traced = trace_update(training, inputs, objects)
                read = (state, objects)
            case _:
                count, objects = devices, sampler_objects(training, devices)
                traced = trace_sampler(training, inputs, devices)
                read = (state.ema, inputs.frozen, objects)
        parts = (state.params, state.ema, state.opt_state, inputs.frozen, objects)
        return Planned(name, count, traced, Held(*map(held, parts)), held(read))

    if config.train.offload_optimizer:  # As `train.py` compiles it then.
        halves = ("gradient", "update")
        programs = [half for name in programs for half in (halves if name == "step" else (name,))]
    for name in programs:
        with ticking(f"{name} for {topology.name}"):
            start = time.perf_counter()
            found = weigh(work(name), topology, start)
        yield found


def _plan_sample(config: Config, networks: Networks, topology: Topology) -> Iterator[Plan]:
    alone = topology._replace(devices=topology.devices[:1])
    for program in sample_programs(config, networks, alone.devices[0]):
        with ticking(f"{program.name} for {topology.name}"):
            start = time.perf_counter()
            params, frozen = held(program.model.params), held(program.model.frozen)
            inputs = held(program.inputs)
            beside = Held(params, 0, 0, frozen, inputs)
            work = Planned(f"sample, {program.name}", 1, program.trace(), beside, sum(beside))
            found = weigh(work, alone, start)
        yield found


def plan_all(
    config: Config,
    topologies: list[Topology],
    programs: tuple[str, ...],
    out: Path | None,
    offload: bool = False,
) -> bool:
    """Prints each plan as it is made, and writes them to `out`; returns whether all fit."""
    plans: list[Plan] = []
    trains = programs != (SAMPLE,)
    for topology in topologies:
        tqdm.write(heading(config, topology, trains))
        for found in plan(config, topology, programs, offload):
            plans.append(found)
            if out is not None:
                with written_whole(out) as scratch:
                    scratch.write_text(json.dumps([p.as_dict() for p in plans], indent=1))
            tqdm.write("\n" + plan_report(found) + "\n")
    fits = all(p.fits for p in plans)
    if not fits:
        tqdm.write(knobs(config) if trains else sampling_knobs(offload))
    return fits


def _splat_backend(topology: Topology) -> str:
    """Returns the rasterizer that `render` would choose there."""
    return "pallas" if topology.devices[0].platform in ("gpu", "cuda") else "xla"


@contextmanager
def ticking(what: str) -> Iterator[None]:
    """Shows, while its block runs, that something goes on, and for how long already."""
    done = threading.Event()

    def tick() -> None:
        bar = "{desc}: {elapsed}"
        with tqdm(desc=f"compiling {what}", bar_format=bar, disable=None) as shown:
            while not done.wait(1):
                shown.update(0)
                shown.refresh()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
