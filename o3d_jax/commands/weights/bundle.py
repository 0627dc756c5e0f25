"""Makes a model small enough to ship: `o3d weights bundle runs/nano/model OUT`.

Parameters in float16: half the size, and 3 decimal digits are more than training settles.
"""

import dataclasses
import sys
from pathlib import Path

import tyro

from o3d_jax.cli import parse
from o3d_jax.config import DataConfig
from o3d_jax.weights.checkpoint import load_model, save_model


@dataclasses.dataclass(frozen=True)
class BundleArguments:
    """A model to make small."""

    model: tyro.conf.Positional[Path]
    """Folder of the model, RUN/model of a training run."""
    out: tyro.conf.Positional[Path]
    """Folder to write."""


def main(arguments: list[str], program: str) -> None:
    """Reads one model and writes another."""
    order = parse(BundleArguments, arguments, prog=program, description=__doc__)
    model = load_model(order.model)
    data = dataclasses.replace(model.config.data, cache=DataConfig().cache)
    config = dataclasses.replace(model.config, data=data)
    save_model(order.out, config, model.weights, dtype="float16")
    size = sum(p.stat().st_size for p in order.out.rglob("*") if p.is_file())
    sys.stdout.write(f"{order.out}: {size / 1e6:.1f} MB\n")
