"""Whether a config fits a machine you don't have, and what it would take there.

    python -m o3d_jax.commands.plan configs/ouroboros3d.py --topology v5p:2x2x2 --out plan.json
    python -m o3d_jax.commands.plan configs/nano.py --topology gpu:8xA100-80G --train.batch-size 32

Compiles the real train step and the real sampler for it, here, and says what they need: memory
against the chip's, floating-point operations, what devices say to each other, a time no step can be
faster than, and what to change if it does not fit. Minutes to half an hour at full size. Exit
status: 0 it fits, 1 it does not, 2 nothing could be compiled.
"""

import argparse
from pathlib import Path

import jax

from o3d_jax.cli import read_config
from o3d_jax.errors import InputError, exit_on_input_error
from o3d_jax.planning.plan import PROGRAMS, plan_all
from o3d_jax.planning.topologies import describe


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
