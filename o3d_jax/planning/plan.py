"""Compiles the programs of a run for machines elsewhere, and prints whether they fit there."""

import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from tqdm import tqdm

from o3d_jax.config import Config
from o3d_jax.files.atomic import written_whole
from o3d_jax.nn.networks import build_networks
from o3d_jax.parallel.layout import make_layout
from o3d_jax.planning.report import Plan, heading, knobs, plan_report, weigh
from o3d_jax.planning.topologies import Topology
from o3d_jax.run.programs import step_shapes, trace_sampler
from o3d_jax.steps.draws import coin_sides
from o3d_jax.steps.train import Training, make_optimizer, train_step

PROGRAMS = ("step", "sampler")


def plan(config: Config, topology: Topology, programs: tuple[str, ...]) -> Iterator[Plan]:
    """Compiles the programs for a topology and weighs them, one after another.

    Raises:
        InputError: the config does not split over so many devices.
    """
    layout = make_layout(config.train, topology.devices)
    networks = build_networks(config.model, lpips=config.optim.lpips_loss)
    networks = dataclasses.replace(networks, splat_backend=_splat_backend(topology))
    optimizer = make_optimizer(config.optim, config.train.steps)
    training = Training(config, networks, optimizer, layout)
    inputs = step_shapes(training)

    def trace(name: str) -> jax.stages.Traced:
        if name == "sampler":
            return trace_sampler(training, inputs, layout.devices)
        # With feedback, where that can come up: both passes, so the larger of the two steps.
        given = (training, inputs.state, inputs.frozen, inputs.given)
        return train_step.trace(*given, use_feedback=coin_sides(config)[-1])

    for name in programs:
        with ticking(f"{name} for {topology.name}"):
            start = time.perf_counter()
            found = weigh(name, topology, training, inputs, trace(name), start)
        yield found


def plan_all(
    config: Config, topologies: list[Topology], programs: tuple[str, ...], out: Path | None
) -> bool:
    """Prints each plan as it is made, and writes them to `out`; returns whether all fit."""
    plans: list[Plan] = []
    for topology in topologies:
        tqdm.write(heading(config, topology))
        for found in plan(config, topology, programs):
            plans.append(found)
            if out is not None:
                with written_whole(out) as scratch:
                    scratch.write_text(json.dumps([p.as_dict() for p in plans], indent=1))
            tqdm.write("\n" + plan_report(found) + "\n")
    fits = all(p.fits for p in plans)
    if not fits:
        tqdm.write(knobs(config))
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
