"""Whether a config fits a machine you don't have, and what it would take there.

    python -m o3d_jax.tools.plan configs/ouroboros3d.py --topology v5p:2x2x2 --out plan.json
    python -m o3d_jax.tools.plan configs/nano.py --topology gpu:8xA100-80G --train.batch-size 32

Compiles the real train step and the real sampler for it, here, and says what they need: memory
against the chip's, floating-point operations, what devices say to each other, a time no step can be
faster than, and what to change if it does not fit. Minutes to half an hour at full size. Exit
status: 0 it fits, 1 it does not, 2 nothing could be compiled.
"""

import argparse
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from tqdm import tqdm

from o3d_jax.config import Config
from o3d_jax.errors import InputError, exit_on_input_error
from o3d_jax.io.atomic import written_whole
from o3d_jax.nn.networks import build_networks
from o3d_jax.parallel import make_layout
from o3d_jax.steps.train import make_optimizer
from o3d_jax.tools.cli import read_config
from o3d_jax.tools.plan_report import Plan, heading, knobs, report, weigh
from o3d_jax.tools.programs import Inputs, System
from o3d_jax.tools.topologies import Topology, describe

PROGRAMS = ("step", "sampler")


def plan(config: Config, topology: Topology, programs: tuple[str, ...]) -> Iterator[Plan]:
    """Compiles the programs for a topology and weighs them, one after another.

    Raises:
        InputError: the config does not split over so many devices.
    """
    layout = make_layout(config.train, topology.devices)
    networks = build_networks(config.model, lpips=config.optim.lpips_loss)
    networks = dataclasses.replace(networks, splat_backend=_splat_backend(topology))
    system = System(config, networks, make_optimizer(config.optim, config.train.steps), layout)
    inputs = system.inputs()
    trace: dict[str, Callable[[Inputs], jax.stages.Traced]] = {
        # With feedback: both passes, so the larger of the two steps.
        "step": lambda i: system.trace_step(i, config.diffusion.feedback_probability > 0),
        "sampler": lambda i: system.trace_sampler(i, layout.devices),
    }
    for name in programs:
        with ticking(f"{name} for {topology.name}"):
            start = time.perf_counter()
            traced = trace[name](inputs)
            found = weigh(name, topology, system, inputs, traced, start)
        yield found


def plan_all(
    config: Config, topologies: list[Topology], programs: tuple[str, ...], out: Path | None
) -> bool:
    """Prints each plan as it is made, and writes them to `out`; whether all fit."""
    plans: list[Plan] = []
    for topology in topologies:
        tqdm.write(heading(config, topology))
        for found in plan(config, topology, programs):
            plans.append(found)
            if out is not None:
                with written_whole(out) as scratch:
                    scratch.write_text(json.dumps([p.as_dict() for p in plans], indent=1))
            tqdm.write("\n" + report(found) + "\n")
    fits = all(p.fits for p in plans)
    if not fits:
        tqdm.write(knobs(config))
    return fits


def _splat_backend(topology: Topology) -> str:
    """What `render` would choose there."""
    return "pallas" if topology.devices[0].platform in ("gpu", "cuda") else "xla"


@contextmanager
def ticking(what: str) -> Iterator[None]:
    """Shows that something goes on, and for how long already."""
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


def read_arguments() -> tuple[argparse.Namespace, list[str]]:
    """The command line: plan's own options, and those of the config."""
    parser = argparse.ArgumentParser(
        prog="plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--topology", required=True, action="append", help="as v5e:4x4; repeatable")
    parser.add_argument("--program", choices=(*PROGRAMS, "both"), default="both")
    parser.add_argument(
        "--effort",
        choices=("O0", "O1", "O2", "O3"),
        default="O0",
        help="of the compiler; above O0 full size takes hours",
    )
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    return parser.parse_known_args()


@exit_on_input_error()
def main() -> None:
    """Reads the command line."""
    jax.config.update("jax_platforms", "cpu")  # Devices that are here are not asked.
    chosen, overrides = read_arguments()
    config = read_config(chosen.config, overrides)
    if chosen.out is not None and not chosen.out.absolute().parent.is_dir():
        raise InputError(f"no folder {chosen.out.absolute().parent} for --out; make it first")
    jax.config.update("jax_optimization_level", chosen.effort)
    jax.config.update("jax_enable_compilation_cache", False)  # What is in it shows no text.
    programs = PROGRAMS if chosen.program == "both" else (chosen.program,)
    topologies = [describe(name) for name in chosen.topology]
    if not plan_all(config, topologies, programs, chosen.out):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
