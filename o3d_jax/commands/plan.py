"""Whether a config fits a machine you don't have, and what it would take there.

    o3d plan ouroboros3d --topology v5p:2x2x2 --out plan.json
    o3d plan nano --topology gpu:8xA100-80G --train.batch-size 32
    o3d plan released --topology gpu:1xRTX4090-24G --program sample --offload

Compiles the real train step and the real sampler for it, here, and says what they need: memory
against the chip's, floating-point operations, what devices say to each other, a time no step can be
faster than, and what to change if it does not fit. Minutes to half an hour at full size. Exit
status: 0 it fits, 1 it does not, 2 nothing could be compiled.

After the config come the options of the plan and those of the config: `o3d plan nano --help`.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from o3d_jax.cli import bundled_or_own, config_in, parse
from o3d_jax.config import Config
from o3d_jax.errors import InputError
from o3d_jax.planning.plan import PROGRAMS, plan_all
from o3d_jax.planning.topologies import describe


@dataclasses.dataclass(frozen=True)
class PlanArguments:
    """What to plan for which machines."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    topology: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A machine, as v5e:4x4 or gpu:8xH100; may be given several times."""
    program: Literal["step", "sampler", "both", "sample"] = "both"
    """What to compile: the training step, a sampling run beside a training state, both of these, or
    what `o3d sample` runs on one device by itself."""
    offload: tyro.conf.FlagCreatePairsOff[bool] = False
    """Plan `o3d sample --offload`, whose networks are on the device one at a time."""
    effort: Literal["O0", "O1", "O2", "O3"] = "O0"
    """How hard the compiler tries; above O0 full size takes hours."""
    out: Path | None = None
    """A JSON file for the figures."""


def main(arguments: list[str], program: str) -> None:
    """Reads the command line."""
    if arguments[:1] in (["-h"], ["--help"]):
        sys.stdout.write(str(__doc__))
        return
    jax.config.update("jax_platforms", "cpu")  # Devices that are here are not asked.
    order = _read(arguments, program)
    jax.config.update("jax_optimization_level", order.effort)
    jax.config.update("jax_enable_compilation_cache", False)  # What is in it shows no text.
    programs = PROGRAMS if order.program == "both" else (order.program,)
    topologies = [describe(name) for name in order.topology]
    if not plan_all(order.config, topologies, programs, order.out, order.offload):
        raise SystemExit(1)


def _read(arguments: list[str], program: str) -> PlanArguments:
    """Returns the config of the first argument, changed by the others.

    Raises:
        InputError: no config, no machine, or no folder for the figures.
    """
    if not arguments or arguments[0].startswith("-"):
        raise InputError(f"no config; give one first, as `{program} nano --topology v5e:4x4`")
    given, *options = arguments
    asked = PlanArguments(config_in(bundled_or_own(Path(given))))
    order = parse(PlanArguments, options, default=asked, prog=f"{program} {given}")
    if not order.topology:
        raise InputError("no machine to plan for; give --topology, as --topology v5e:4x4")
    if order.offload and order.program != "sample":
        raise InputError(f"--offload goes with --program sample, not with {order.program}")
    if order.out is not None and not order.out.absolute().parent.is_dir():
        raise InputError(f"no folder {order.out.absolute().parent} for --out; make it first")
    return order
