"""Where our network and torch's first differ: `o3d weights compare CHECKPOINT DUMP`.

DUMP is a folder that the script of `o3d weights dump-script` wrote beside the torch network; it
says how. Prints a line for every module that both have, in torch's order of execution, then those
that only one has, then where the outputs first differ. Exit status 0: nowhere; 1: somewhere; 2: no
comparison.

Outputs are compared in the one order of axes that a module's name says (weights/pytorch/orders.py).
If they differ there and agree in another, the line names it: right numbers, at the wrong places.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from o3d_jax.cli import parse
from o3d_jax.errors import InputError
from o3d_jax.weights.checkpoint import load_model
from o3d_jax.weights.pytorch.compare import TOLERANCE, compare, comparison_lines, first_difference
from o3d_jax.weights.pytorch.dump import Dump
from o3d_jax.weights.pytorch.replay import replay


@dataclasses.dataclass(frozen=True)
class CompareArguments:
    """Compares a checkpoint with intermediate arrays of a torch network."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """Folder with our model."""
    dump: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DUMP")]
    """Folder that the script of `o3d weights dump-script` wrote."""
    tolerance: float = TOLERANCE
    """Relative L2 error up to which outputs agree. The default is for a dump in float32; one in
    TF32, as torch convolves on GPUs unless told otherwise, or in float16 needs about 3e-2."""


def main(arguments: list[str], program: str) -> None:
    """Reads the command line, prints the comparison, and exits with its status."""
    order = parse(CompareArguments, arguments, prog=program, description=__doc__)
    if not order.tolerance > 0:
        raise InputError(f"--tolerance {order.tolerance}: give a positive number")
    dump = Dump(order.dump)
    run = replay(load_model(order.checkpoint), dump)
    comparison = compare(run, dump, order.tolerance)
    for line in comparison_lines(comparison, order.tolerance):
        sys.stdout.write(line + "\n")
    sys.exit(0 if first_difference(comparison, order.tolerance) is None else 1)
